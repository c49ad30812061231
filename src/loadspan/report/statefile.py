"""State files: what a process had open a moment ago. They serve the progress display, and the last words of a killed process."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_CURVE = names.CURVE_TIME.rpartition(".")[0]
_LONGEST_CURVE = 10_000
STATE_GLOB = "state-*.json"
_LARGEST_FILE = 16 << 20  # a state of a few loads is some kB; anything larger is something else
_LARGEST_NUMBER = 1 << 63
_FRESH = 2_000_000_000  # a process with an open load writes five times a second, unless something holds the interpreter lock


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStage:
    """A stage that was open when the state was written."""

    name: str
    start: int
    size: int | None
    file_size: int | None
    file: str | None
    span_id: str | None = None
    """Where its span had been made."""
    above: int | None = None
    """The stage that it runs in, as its place among the load's `outer`; None directly in the load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningLoad:
    """A load that was open when the state was written, with its open stages."""

    trace_id: str
    span_id: str
    parent_id: str | None
    model: str | None
    loader: str | None
    implicit: bool
    start: int
    size: int | None
    stages: tuple[RunningStage, ...]
    """The innermost."""
    outer: tuple[RunningStage, ...] = ()
    """Those around them, or around a load that is open in this one, outer ones first."""
    curve: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """The throughput curve so far: the attributes that it would be on the root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One state file. Times in nanoseconds since the epoch."""

    pid: int
    parent_pid: int | None
    command: str | None
    updated: int
    ended: bool
    closed: int
    loads: tuple[RunningLoad, ...]

    def alive(self, now: int, *, here: bool = False) -> bool:
        """
        Whether it still ran at *now*: this machine runs a process of this number that old, or it said so within two seconds.

        Args:
            now: nanoseconds since the epoch.
            here: it is a process of this machine, so only the machine is asked.
        """
        return not self.ended and ((not here and now - self.updated < _FRESH) or _runs_since(self.pid, self.updated, now))


def _runs_since(pid: int, before: int, now: int) -> bool:
    """Whether process *pid* of this machine was started *before*: a later one has only inherited the number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        # The name may hold spaces and brackets, so count from its closing one: state is the first field, the start time the twentieth.
        fields = stat.rpartition(")")[2].split()
        state, started = fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return False
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    return state not in "ZX" and now - age * 1e9 < before


def read_all(folder: Path) -> list[Process]:
    """Every readable state of a run folder, by pid."""
    found = (read(path) for path in folder.glob(STATE_GLOB))
    return sorted((process for process in found if process), key=lambda process: process.pid)


def read(path: Path) -> Process | None:
    """One state file, or None where it is missing, torn or something else."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_LARGEST_FILE))
    except (OSError, ValueError, RecursionError):
        return None
    pid, updated = (_number(document.get(key)) for key in ("pid", "updated")) if isinstance(document, dict) else (None, None)
    if not pid or updated is None:  # pid 0 would address our own process group
        return None
    return Process(
        pid=pid,
        parent_pid=_number(document.get("parent_pid")),
        command=_text(document.get("command")),
        updated=updated,
        ended=document.get("ended") is True,
        closed=_number(document.get("closed")) or 0,
        loads=tuple(_loads(document.get("loads"), document.get("curves"))),
    )


def _loads(items: Any, curves: Any) -> Iterator[RunningLoad]:
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        trace_id, span_id, start = _text(item.get("trace_id")), _text(item.get("span_id")), _number(item.get("start"))
        if trace_id and span_id and start:
            yield RunningLoad(
                trace_id=trace_id,
                span_id=span_id,
                parent_id=_text(item.get("parent_id")) or None,
                model=_text(item.get("model")),
                loader=_text(item.get("loader")),
                implicit=item.get("implicit") is True,
                start=start,
                size=_number(item.get("size")),
                stages=tuple(_stages(item.get("stages"))),
                outer=tuple(_stages(item.get("outer"))),
                curve=_curve(curves.get(span_id) if isinstance(curves, dict) else None),
            )


def _curve(item: Any) -> dict[str, tuple[float, ...]]:
    """Lists of numbers, all of one length; nothing else is a curve."""
    lists = [(name, values) for name, values in item.items() if isinstance(values, list)] if isinstance(item, dict) else []
    found = {name: tuple(value for value in values if _is_real(value)) for name, values in lists if name.startswith(_CURVE)}
    length = len(found.get(names.CURVE_TIME, ()))
    return {name: values for name, values in found.items() if len(values) == length} if 0 < length <= _LONGEST_CURVE else {}


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < _LARGEST_NUMBER


def _stages(items: Any) -> Iterator[RunningStage]:
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        name, start = _text(item.get("name")), _number(item.get("start"))
        if name and start:
            yield RunningStage(
                name=name,
                start=start,
                size=_number(item.get("size")),
                file_size=_number(item.get("file_size")),
                file=_text(item.get("file")),
                span_id=_text(item.get("span_id")) or None,
                above=_number(item.get("above")),
            )


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_NUMBER else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
