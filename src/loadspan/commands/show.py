"""`loadspan show`: the waterfalls of a run."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.errors import UserError
from loadspan.model import Load
from loadspan.report import ranks, terminal, timeline, tracefile
from loadspan.report.text import clean

if TYPE_CHECKING:
    from loadspan.model import Span
    from loadspan.report.tracefile import Recording

RUNS = Path("loadspan-runs")
"""Where `loadspan run` puts its folders, below the current folder."""


_WIDTH = 100  # of a file or pipe


class Show:
    """
    Draw the loads of a recorded run as waterfalls.

    A bar shows when a stage ran; nested stages are indented; `other` is the time in no stage. What was not measured is left out.
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of `show`."""
        parser.add_argument(
            "run", nargs="?", metavar="DIR|FILE", help=f"run folder or trace-PID.jsonl (default: the newest folder below ./{RUNS})"
        )
        parser.add_argument("--width", type=int, metavar="N", help="columns to draw in (default: the terminal's, 100 where there is none)")
        parser.add_argument(
            "--color",
            action=argparse.BooleanOptionalAction,
            help="colors, or none with --no-color (default: colors on a terminal, unless NO_COLOR is set)",
        )
        parser.add_argument("--json", action="store_true", help="print the loads as JSON instead, times in nanoseconds since 1970")

    def run(self, arguments: argparse.Namespace) -> int:
        """Print the waterfalls, or the loads as JSON."""
        path = Path(arguments.run) if arguments.run else newest_run()
        recording = tracefile.read(path)
        for warning in recording.warnings:
            print(clean(f"loadspan show: {warning}"), file=sys.stderr)
        if not recording.loads:
            raise UserError(f"{path}: no load in it. Record a program that loads a model: loadspan run -- python serve.py")
        if arguments.json:
            print(json.dumps([_as_json(load) for load in recording.loads], indent=2))
            return 0
        for block in waterfalls(recording, look(sys.stdout, width=arguments.width, color=arguments.color)):
            print(*block, sep="\n", end="\n\n")
        if of_ranks := ranks.lines(recording.loads, look(sys.stdout, width=arguments.width, color=arguments.color)):
            print(*of_ranks, sep="\n", end="\n\n")
        if len(recording.loads) > 1:
            print(f"{len(recording.loads)} loads. ", end="")
        print(f"As data, with every attribute: loadspan show {shlex.quote(clean(str(path)))} --json")
        return 0


def waterfalls(recording: Recording, look: terminal.Look) -> list[list[str]]:
    """The lines of each load of *recording*."""
    now = time.time_ns()
    several = len({load.pid for load in recording.loads}) > 1
    drawn = (timeline.waterfall(load, running=recording.running(load, now), show_pid=several) for load in recording.loads)
    return [terminal.lines(waterfall, look) for waterfall in drawn]


def look(stream: Any, *, width: int | None = None, color: bool | None = None) -> terminal.Look:
    """How to draw on *stream*, where the user did not say."""
    is_terminal = stream.isatty()
    if width is None:
        # Not stdout's size where we draw on stderr: one of them may be a pipe.
        columns = os.get_terminal_size(stream.fileno()).columns if is_terminal else 0
        chosen = os.environ.get("COLUMNS", "")
        width = int(chosen) if chosen.isdecimal() and len(chosen) < 5 else columns or _WIDTH  # noqa: PLR2004 - wider is a mistake
    if color is None:
        color = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return terminal.Look(width=width, color=color, blocks=_can_draw_blocks(stream))


def _can_draw_blocks(stream: Any) -> bool:
    try:
        "█▌▐·…".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def newest_run() -> Path:
    """
    The run folder that was written to last.

    Raises:
        UserError: there is none below the current folder.
    """
    folders = [path for path in RUNS.iterdir() if path.is_dir()] if RUNS.is_dir() else []
    if not folders:
        raise UserError(f"no run below ./{RUNS}. Record one: loadspan run -- python serve.py")
    return max(folders, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _as_json(span: Span) -> dict[str, Any]:
    """One span and all below it; the tree is never deeper than the reader lets it be."""
    found: dict[str, Any] = {"name": span.name, "span_id": span.span_id, "parent_id": span.parent_id}
    if isinstance(span, Load):
        found |= {"trace_id": span.trace_id, "pid": span.pid, "model": span.text(names.MODEL_NAME)}
        found["open_stages"] = [{"name": stage.name, "size": stage.size, "file_size": stage.file_size} for stage in span.open_stages]
    found |= {"start": span.start, "end": span.end, "duration": span.duration, "error": span.error}
    found["attributes"] = dict(span.attributes)
    found["children"] = [_as_json(child) for child in span.children]
    return {key: value for key, value in found.items() if value is not None and (value != [] or key == "children")}
