"""
Environments with other versions of the libraries, one for each file in `environments/`: `NAME.txt` lists what it has.

Made with uv below ~/.cache/loadspan-loaders (or $LOADSPAN_LOADERS), a folder for each content of the file; an old one is removed.
The first line of a file may name a Python: `# python 3.10`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = HERE / "environments"
CACHE = Path(os.environ.get("LOADSPAN_LOADERS") or Path.home() / ".cache" / "loadspan-loaders")


def known() -> list[str]:
    """Names of the environments; `core` is the one that the tests run in."""
    return ["core", *sorted(file.stem for file in FILES.glob("*.txt"))]


def make(name: str) -> str:
    """The Python of the environment *name*, made if it is not there."""
    if name == "core":
        return sys.executable
    file = FILES / f"{name}.txt"
    text = file.read_text()
    folder = CACHE / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        for old in CACHE.glob(f"{name}-*"):
            shutil.rmtree(old)
        head = text.partition("\n")[0].split()
        version = head[2] if head[:2] == ["#", "python"] else f"{sys.version_info[0]}.{sys.version_info[1]}"
        uv = (sys.executable, "-m", "uv")
        subprocess.run([*uv, "venv", "-q", "--python", version, str(folder)], check=True)
        install = [*uv, "pip", "install", "-q", "--python", str(python), "-r", str(file), "-e", f"{ROOT}[cli]"]
        subprocess.run(install, check=True)
        (folder / "made").touch()
    return str(python)


def run(name: str, only: str, *, write: bool) -> int:
    """Run the cases in the environment *name*; its exit code."""
    out = CACHE / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"environment {name}", flush=True)  # noqa: T201 - the command's output
    done = subprocess.run([make(name), str(HERE / "conform.py"), "--only", only, "--json", str(out)], check=False)
    if write and not only and out.exists():
        table.write(name, *json.loads(out.read_text()))
    return done.returncode
