"""The critical path of a trace as the code of Jaeger's own user interface works it out, run by Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backends import build
from backends.programs import binary

if TYPE_CHECKING:
    from collections.abc import Mapping

DRIVER = Path(__file__).with_name("critical_path.mjs")


def critical_path(drawn: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Sections `(span id, start, end)` in microseconds of a trace as `Jaeger.as_drawn` has it, the last one first."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    pages = binary(build.JAEGER).parent / "ui"
    done = subprocess.run([node, DRIVER, pages], input=json.dumps(drawn), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # where it fails it says so and goes on without a path
    return [(str(each["spanId"]), int(each["section_start"]), int(each["section_end"])) for each in json.loads(done.stdout)]


def seconds_of_spans(drawn: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the critical path in each span, by the span's name; several of a name are added."""
    names = {span["spanID"]: str(span["operationName"]) for span in drawn["spans"]}
    seconds: defaultdict[str, float] = defaultdict(float)
    for span, start, end in critical_path(drawn):
        seconds[names[span]] += (end - start) / 1e6
    return dict(seconds)
