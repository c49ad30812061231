"""How far the loads that run now have come, stage by stage, for metrics that grow meanwhile."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadspan.facts.counters import Counters
    from loadspan.instrument.frames import OpenLoad, OpenStage
    from loadspan.instrument.recorder import Recorder


def grow(recorder: Recorder, loads: Sequence[OpenLoad], counted: Counters) -> None:
    """
    Tell the metrics how far *loads* have come; the process's counters were *counted*, after all of them began.

    One that is too small to be shown so far is not told of: it may turn out to be none. What it has moved is told when it ends.
    """
    for load in loads:
        measured = load.measured
        if load.parent is not None or load.held is not None or measured.counted is None:
            continue
        moved = _moved(recorder, [other for other in loads if other.outermost is load])
        if load.closed:
            continue  # since then: it is counted as a whole
        if moved is not None:
            recorder.metrics.grown(measured, moved)
        if (load.explicit or load.busy) and counted.at >= load.start and counted.storage_read is not None:
            recorder.metrics.delivered(measured, counted.storage_read)


def _moved(recorder: Recorder, loads: Sequence[OpenLoad]) -> dict[str, int] | None:
    """Bytes that each stage has moved so far in a load and those inside it, *loads*; None where one of them is being changed right now."""
    with ExitStack() as held:
        for load in loads:
            # All at once: what an inner load has tallied is added to the outer one under the lock of the inner one. Nobody is waited for.
            if not load.lock.acquire(blocking=False):
                return None
            held.callback(load.lock.release)
        stages = [stage for stage in list(recorder.stages) if stage.load in loads]  # after the locks: one that is not here is in the totals
        found = {name: size - loads[0].outermost.lazy.get(name, 0) for name, size in loads[0].outermost.totals.items()}
        _add(found, loads)
        _add(found, stages)
        for stage in stages:
            if not stage.deferred:
                found[stage.name] = found.get(stage.name, 0) + max(0, (stage.size_known or 0) - stage.declared)
    return found


def _add(found: dict[str, int], frames: Iterable[OpenLoad | OpenStage]) -> None:
    """Add what was tallied in *frames*."""
    for frame in frames:
        for tally in list(frame.tallies.values()):
            if not tally.deferred:
                found[tally.name] = found.get(tally.name, 0) + tally.so_far()
