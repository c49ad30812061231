"""
Mounts that a test makes, in a mount namespace of a child process: nobody else sees them, and they end with the child.

As a program: `mounted.py COMMANDS USER PATH...` prints what each path is stored on, as JSON, after it has run the shell COMMANDS.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


def child(code: str, *arguments: str) -> str:
    """What *code* prints in a mount namespace of its own, with *arguments*."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("mounting needs root and unshare")
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{Path(__file__).parent}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return done.stdout


def facts(commands: str, *paths: str, user: int = 0, statx: bool = True) -> list[dict[str, Any]]:
    """What *paths* are stored on, once the shell *commands* have made the mounts; skips where they cannot be made."""
    code = "import sys, mounted; mounted.tell(*sys.argv[1:])"
    return [json.loads(line) for line in child(code, commands, str(user), str(int(statx)), *paths).splitlines()]


def shell(commands: str) -> None:
    """Run *commands*; the test is skipped where one fails: what it lacks is on standard error."""
    done = subprocess.run(["/bin/sh", "-ec", commands], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"{commands.strip().splitlines()[0]}: {' '.join(done.stderr.split()) or done.returncode}\n")
        sys.exit(77)


def tell(commands: str, user: str, statx: str, *paths: str) -> None:
    """Print what *paths* are stored on, one line each."""
    from loadspan.facts import mounts, storage

    shell(commands)
    if int(user):
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))
    if not int(statx):
        mounts._statx = None  # noqa: SLF001 - as on a C library without it
    for path in paths:
        found = storage.of_file(path)
        assert found == storage.of_file(path)
        print(json.dumps(asdict(found) if found is not None else None))  # noqa: T201 - for the parent
