"""A process may fork at any moment: what is imported late is not left half imported, and no lock is left locked, in the child."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

MODULES = (
    "loadspan.facts.pagecache",  # of every first load
    "loadspan.instrument.surroundings",
    "ctypes",
)

SLOW_IMPORT = """
import importlib.abc, os, signal, sys, threading, time
import loadspan

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1] and os.getpid() == parent:
            importing.set()
            time.sleep(0.5)

def load():
    with loadspan.load("model"):
        with open("big", "rb") as file:
            file.read()

with open("big", "wb") as file:
    file.write(bytes(4 << 20))
parent, importing = os.getpid(), threading.Event()
sys.modules.pop(sys.argv[1], None)
sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=load)
thread.start()
assert importing.wait(10)
if not (child := os.fork()):
    signal.alarm(10)
    load()
    sys.exit(3)
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

MANY = """
import os, random, signal, sys, threading, time
import loadspan

def load():
    with loadspan.load("model"):
        with open("big", "rb") as file:
            file.read()

with open("big", "wb") as file:
    file.write(bytes(2 << 20))
failed = 0
for seed in range(int(sys.argv[1])):
    if not (first := os.fork()):  # a process that has loaded nothing yet
        signal.alarm(20)
        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(random.Random(seed).random() * 0.04)
        if not (child := os.fork()):
            signal.alarm(10)
            load()
            os._exit(0)
        for thread in threads:
            thread.join()
        os._exit(1 if os.waitpid(child, 0)[1] else 0)
    failed += os.waitpid(first, 0)[1] != 0
print(failed)
"""


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "loadspan", "run", "--quiet", "-o", "run", "--", sys.executable, "program.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize("module", MODULES)
def test_a_fork_waits_until_what_another_thread_imports_is_there(tmp_path: Path, module: str) -> None:
    done = run(tmp_path, SLOW_IMPORT, module)
    assert done.returncode == 3, done.stderr


def test_many_forks_while_threads_load_for_the_first_time(tmp_path: Path) -> None:
    done = run(tmp_path, MANY, os.environ.get("LOADSPAN_TEST_FORKS", "60"))
    assert done.stdout.split() == ["0"], done.stderr
