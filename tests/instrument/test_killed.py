"""A process that is killed deep inside: the state file names everything that was open, so that the trace can be made whole."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from loadspan.model import Load
from loadspan.report import rebuilt
from loadspan.report.tracefile import read

if TYPE_CHECKING:
    from pathlib import Path

    from loadspan.model import Span

NESTED = """
import loadspan, os, signal, sys, time

def wait(seconds=0.5):
    time.sleep(seconds)

with loadspan.load("pipeline"):
    with loadspan.stage("initialize"):
        with loadspan.load("unet"):
            with loadspan.stage("deserialize"):
                with loadspan.stage("convert"):
                    wait(0.05)
                with loadspan.stage("decrypt"):
                    wait()
                    os.kill(os.getpid(), signal.SIGKILL)
"""

PLAIN = """
import loadspan, os, signal, time
with loadspan.load("pipeline"):
    with loadspan.load("unet"):
        with loadspan.stage("decrypt"):
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
"""


def run(folder: Path, program: str, code: int = 137) -> str:
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "loadspan", "run", "-o", "run", "--", sys.executable, "program.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr


def outline(span: Span) -> Any:
    name = f"{span.name}{'' if span.end else '...'}"
    return {name: [outline(child) for child in span.children]} if span.children else name


def unfinished(load: Load) -> list[Load]:
    return [span for span in load.walk() if isinstance(span, Load) and span.end is None]


def test_stages_and_loads_around_the_innermost_are_known(tmp_path: Path) -> None:
    shown = run(tmp_path, NESTED)
    (load,) = read(tmp_path / "run").loads
    assert outline(load) == {
        "load model...": [{"initialize...": [{"load model...": [{"deserialize...": ["convert", "decrypt..."]}]}]}],
    }
    (said,) = set(re.findall(r"died in [\w ]+ after", shown))
    assert said == "died in decrypt after"
    assert "never ended" not in shown


def test_what_view_sends_is_one_whole_tree(tmp_path: Path) -> None:
    run(tmp_path, NESTED)
    (top,) = read(tmp_path / "run").loads
    written = {span.span_id: span.parent_id for span in top.walk() if span.end is not None}
    made = {span["spanId"]: span for load in unfinished(top) for span in rebuilt.spans_of(load, set(written))}
    assert [span["name"] for span in made.values()] == ["load model", "initialize", "load model", "deserialize", "decrypt"]
    parents = {span["spanId"]: span.get("parentSpanId") for span in made.values()} | written
    assert [each for each, parent in parents.items() if parent not in parents] == [top.span_id]
    assert all("killed in decrypt" in span["status"]["message"] for span in made.values())


def test_the_outer_of_two_loads_says_where_it_died(tmp_path: Path) -> None:
    shown = run(tmp_path, PLAIN)
    (load,) = read(tmp_path / "run").loads
    assert outline(load) == {"load model...": [{"load model...": ["decrypt..."]}]}
    assert "load model  pipeline  died in decrypt after" in shown


@pytest.mark.parametrize("moment", [0.15, 0.3, 0.6, 1.0])
def test_killed_at_any_moment_every_span_is_below_the_load(tmp_path: Path, moment: float) -> None:
    program = (
        NESTED.replace("wait(0.05)", "wait(0.02)")
        .replace("                    wait()\n", "")
        .replace("                    os.kill(os.getpid(), signal.SIGKILL)\n", "                    wait(0.03)\n")
    )
    (tmp_path / "program.py").write_text(f"while True:\n{''.join('    ' + line + chr(10) for line in program.splitlines())}")
    command = [sys.executable, "-m", "loadspan", "run", "--quiet", "-o", "run", "--", sys.executable, "program.py"]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        until = time.monotonic() + 60
        while not (found := list((tmp_path / "run").glob("trace-*.jsonl"))) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(moment)
        os.kill(int(found[0].stem.removeprefix("trace-")), signal.SIGKILL)
        process.wait(60)
    loads = read(tmp_path / "run").loads
    assert len(loads) > 1
    # The state is written five times a second: of loads that were younger nothing need be known but what had ended in them.
    young = [load for load in loads if load.attributes.get("loadspan.model.name") != "pipeline"]
    assert len(young) < 2
    *before, last = [load for load in loads if load not in young]
    assert all(load.end is not None for load in before)
    if last.end is None:
        written = {span.span_id for span in last.walk() if span.end is not None}
        made = [span for each in unfinished(last) for span in rebuilt.spans_of(each, written)]
        known = {*written, *(span["spanId"] for span in made)}
        assert all(span.parent_id in known for span in last.walk() if span.end is not None)
