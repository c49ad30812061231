"""Processes that are started for a load belong to it, however multiprocessing starts them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loadspan import names
from loadspan.model import Load
from loadspan.report.tracefile import read

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import multiprocessing, sys
import loadspan

def load(name):
    with loadspan.load(name):
        pass

def start(*names):
    context = multiprocessing.get_context(sys.argv[1])
    processes = [context.Process(target=load, args=(name,)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(names)

if __name__ == "__main__":
    start("alone")
    with loadspan.load("first"):
        start("first of two", "second of two")
    with loadspan.load("second"):
        start("of another")
    start("alone again")
"""


def model(load: Load) -> str:
    return str(load.attributes[names.MODEL_NAME])


def below(load: Load) -> list[str]:
    return sorted(model(child) for child in load.children if isinstance(child, Load))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_that_is_started_in_a_load_loads_for_it(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launcher = [sys.executable, "-m", "loadspan", "run", "-o", tmp_path / "run", "--"]
    done = subprocess.run([*launcher, sys.executable, program, method], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    loads = read(tmp_path / "run").loads
    assert {model(load): below(load) for load in loads} == {
        "alone": [],
        "first": ["first of two", "second of two"],
        "second": ["of another"],
        "alone again": [],
    }
    assert len({load.trace_id for load in loads}) == 4
