"""
The state file: what this process is loading now, for progress bars, and for those who come after it was killed.

`state-<pid>.json` beside the trace file, written anew about five times a second while a load is open.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument import attributes, late
from loadspan.instrument.tally import Tally

if TYPE_CHECKING:
    from pathlib import Path

    from loadspan.instrument.frames import OpenLoad, OpenStage
    from loadspan.instrument.recorder import Recorder

folder: Path | None = None
"""Where the embedded exporter writes; None while there is none."""

_started = time.time_ns()
_SECOND = 1_000_000_000


class _Written:
    idle = False
    """The last file said that nothing is loading: it need not be written again."""
    length = 0
    """Bytes of the longest text so far."""


@lru_cache(maxsize=1)
def _path(folder: Path, pid: int) -> str:
    return str(folder / names.STATE_FILE.format(pid=pid))


def write(recorder: Recorder, *, ended: bool) -> None:
    """Write the state file, if there is a folder and anything new to say. A folder that cannot be written is nobody's problem here."""
    if folder is None:
        return
    # One that is too small to be shown so far is not named: it may turn out to be none.
    loads = [load for load in list(recorder.loads) if not load.muted and (load.held is None or recorder.worth(load))]
    if not loads and not ended and _Written.idle:
        return
    _Written.idle = not loads
    curves = ", ".join(f'"{load.handle.span_context().span_id:016x}": {load.surroundings.curve.as_json()}' for load in loads)
    text = f'{json.dumps(_state(recorder, loads, ended=ended))[:-1]}, "curves": {{{curves}}}}}'.encode()
    # Written over, not replaced: a rename costs twenty times as much. Blanks cover what is left of a longer text before,
    # and one call writes it all, so who reads sees a whole text or, hardly ever, one to be read again.
    length = max(len(text), _Written.length)
    path = _path(folder, os.getpid())
    try:
        anew = 0 if _Written.length else os.O_TRUNC  # what an earlier process of this number left there
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | anew, 0o600)
        try:
            os.pwrite(descriptor, text.ljust(length), 0)
        finally:
            os.close(descriptor)
    except OSError:
        return
    _Written.length = length


def _state(recorder: Recorder, loads: list[OpenLoad], *, ended: bool) -> dict[str, Any]:
    return {
        "version": 1,
        "pid": os.getpid(),
        "parent_pid": os.getppid(),
        "command": " ".join(sys.orig_argv),
        "started": _started,
        "updated": time.time_ns(),
        "ended": ended,
        "closed": recorder.closed,
        "loads": [_load(recorder, load) for load in loads],
    }


def _load(recorder: Recorder, load: OpenLoad) -> dict[str, Any]:
    context = load.handle.span_context()
    parent = load.handle.parent_id()
    with load.lock:
        return {
            "trace_id": f"{context.trace_id:032x}",
            "span_id": f"{context.span_id:016x}",
            "parent_id": f"{parent:016x}" if parent else None,
            "model": load.name,
            "loader": load.attributes.get(names.LOADER),
            "implicit": not load.explicit,
            "start": load.epoch(load.start),
            "size": attributes.load_size(load.sizes()) or 0,
            **_open(recorder, load),
        }


def _open(recorder: Recorder, load: OpenLoad) -> dict[str, Any]:
    """
    The innermost things that run in *load*, and the stages around them or around a load that is open in it (`outer`).

    Where nothing runs, the tally that ran last, since its calls come and go between two readings.
    """
    stages = [stage for stage in list(recorder.stages) if stage.load is load]
    frames: list[OpenLoad | OpenStage] = [load, *stages]
    tallies = [tally for frame in frames for tally in list(frame.tallies.values())]
    running = [tally for tally in tallies if tally.active or load.inside is tally]
    below = [other.parent for other in list(recorder.loads) if other.parent is not None]
    around = {id(frame) for frame in (*(stage.parent for stage in stages), *(tally.parent for tally in running), *below)}
    outer = [stage for stage in stages if id(stage) in around]
    inner: list[OpenStage | Tally] = [*(stage for stage in stages if id(stage) not in around), *running]
    if not inner and not any(frame.load is load for frame in below):
        recent = [tally for tally in tallies if time.perf_counter_ns() - tally.last < _SECOND]
        inner = [max(recent, key=lambda tally: tally.last)] if recent else []
    return {"stages": [_stage(load, stage, outer) for stage in inner], "outer": [_stage(load, stage, outer) for stage in outer]}


def _stage(load: OpenLoad, stage: OpenStage | Tally, outer: list[OpenStage]) -> dict[str, Any]:
    start, known = (stage.first, stage.so_far()) if isinstance(stage, Tally) else (stage.start, stage.size_known)
    paths = list(stage.paths)
    sizes = [late.file_size(path) for path in paths]
    # Its span may not have been made yet, and is not made for this; what is written of the spans below it names it.
    handle = None if isinstance(stage, Tally) else stage.handle
    return {
        "span_id": f"{handle.span_context().span_id:016x}" if handle is not None and handle.started else None,
        "above": next((place for place, other in enumerate(outer) if other is stage.parent), None),
        "name": stage.name,
        "start": load.epoch(start),
        "size": known or None,
        "file_size": sum(size or 0 for size in sizes) if sizes and None not in sizes else None,
        "file": os.path.basename(paths[0]) if paths else None,  # noqa: PTH119 - plain text
    }
