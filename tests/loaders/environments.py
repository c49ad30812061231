"""
Environments with other versions of the libraries, one for each file in `environments/`: `NAME.txt` lists what it has.

Made with uv below ~/.cache/loadspan-loaders (or $LOADERS_CACHE), a folder for each content of the file; an old one is removed.
The first line of a file may name a Python: `# python 3.10`, and the modules of `cases` that it is for: `# python 3.11, cases quantized`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = HERE / "environments"
CACHE = Path(os.environ.get("LOADERS_CACHE") or Path.home() / ".cache" / "loadspan-loaders")
CORE = "core"
_LONGEST = 3000  # seconds: some gigabytes


class CannotBeMade(Exception):  # noqa: N818 - it says what is the matter
    """An environment could not be made here, and why."""


def others() -> list[str]:
    """Names of the environments that have a file."""
    return sorted(file.stem for file in FILES.glob("*.txt"))


def known() -> list[str]:
    """Names of all environments; `core` is the one that this runs in."""
    return [CORE, *others()]


def python_of(text: str) -> str:
    """Version of Python that a file asks for: `3.10`; by default this one's."""
    return _said(text, "python") or f"{sys.version_info[0]}.{sys.version_info[1]}"


def cases_of(name: str) -> list[str]:
    """Modules of `cases` that the environment *name* is for; none: all."""
    return [] if name == CORE else _said((FILES / f"{name}.txt").read_text(), "cases").split()


def _said(text: str, word: str) -> str:
    """What the first line of a file says after *word*."""
    head = text.partition("\n")[0]
    said = [part.split(maxsplit=1) for part in head.removeprefix("#").split(",")] if head.startswith("#") else []
    return next((part[1] for part in said if len(part) > 1 and part[0] == word), "")


def place(name: str) -> Path:
    """Folder of the environment *name* with its present content."""
    text = (FILES / f"{name}.txt").read_text()
    return CACHE / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def is_made(name: str) -> bool:
    """Whether *name* is there."""
    return name == CORE or (place(name) / "made").exists()


def here() -> dict[str, str]:
    """Variables with which an environment runs the loadspan of this checkout: another one may have made it."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def make(name: str) -> str:
    """
    The Python of the environment *name*, made if it is not there.

    Raises:
        CannotBeMade: uv, its Python or its packages are not to be had.
    """
    if name == CORE:
        return sys.executable
    folder = place(name)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_made(name):
            for old in CACHE.glob(f"{name}-*"):
                shutil.rmtree(old)
            _install(name, folder)
    return str(folder / "bin" / "python")


def _install(name: str, folder: Path) -> None:
    file = FILES / f"{name}.txt"
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        raise CannotBeMade("there is no uv; pip install uv")
    _run(uv, "venv", "-q", "--python", _python(python_of(file.read_text())), str(folder))
    _run(uv, "pip", "install", "-q", "--python", str(folder / "bin" / "python"), "-r", str(file), "-e", f"{ROOT}[cli]")
    (folder / "made").touch()


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LONGEST)
    except subprocess.TimeoutExpired:
        raise CannotBeMade(f"{' '.join(command[1:3])} did not end in {_LONGEST} s") from None
    if done.returncode:
        said = " ".join(line.strip() for line in done.stderr.strip().splitlines()[-3:])
        raise CannotBeMade(f"{' '.join(command[1:3])}: {said}")


def _python(version: str) -> str:
    """A Python of that version that runs; else the version, for uv to find or to download."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    found = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for python in filter(None, found):
        done = subprocess.run([python, "-c", ""], capture_output=True, check=False)  # one of pyenv's stands for none that is chosen
        if done.returncode == 0:
            return str(python)
    return version
