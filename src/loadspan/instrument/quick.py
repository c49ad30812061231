"""
Fine calls that cost next to nothing: while one thread is the only one that calls anything in a load, and nothing runs inside the call.

Such a call takes no lock and enters nothing: its time, until its tally is collected, is that of what is around it, and is claimed then.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from loadspan.facts.counters import BLOCK, usage
from loadspan.instrument import implicit
from loadspan.instrument.frames import OpenLoad, OpenStage, current
from loadspan.instrument.stages import Stages
from loadspan.instrument.tallies import SPAN_LIMIT

if TYPE_CHECKING:
    import weakref

    from loadspan.facts.counters import Scheduled
    from loadspan.instrument.failure import Failure
    from loadspan.instrument.partition import Node
    from loadspan.instrument.patching import Target
    from loadspan.instrument.tally import Tally

SEGMENT = 5_000_000_000
"""Nanoseconds after which a running tally reports a segment; doubled with every 64 spans of the load."""

REST = 1_000_000_000
"""Nanoseconds without a call after which a tally is shown, and what comes then is another."""

DEEP = 1 << 18
"""Bytes of a chunk from which two more readings of 2 us are under a percent of the call."""

_SEGMENTS = 64
RECOGNIZED = 16
"""Results by which an implicit load recognizes its own tensors."""


class FineCall:
    """One fine call while it runs."""

    __slots__ = ("apart", "begun", "nested", "nodes", "outer", "scheduled", "stage", "tally", "usage")

    def __init__(self, stage: str, tally: Tally | None, outer: OpenStage | None) -> None:
        self.stage = stage
        self.tally = tally
        self.outer = outer
        self.apart = ""
        self.begun = 0
        self.nested = 0
        """Nanoseconds of fine calls of other stages inside it."""
        self.nodes: list[Node] | None = None
        """Its own nodes, where it runs inside a fine call of another stage."""
        self.usage: Any = None
        self.scheduled: Scheduled | None = None


class Local(threading.local):
    """What a thread remembers of its fine calls."""

    def __init__(self) -> None:
        self.running: list[FineCall] = []
        self.last: OpenLoad | None = None
        self.subject: weakref.ref[Any] | None = None
        """Object (`args[0]`) of the last call whose target says when it joins."""
        self.made = 0
        """Identity of what the last call in an implicit load returned."""


class Quick(Stages):
    """Quick fine calls, and what all fine calls are counted by."""

    def __init__(self) -> None:
        super().__init__()
        self.local = Local()

    def begin_quick(self, stage: str, row: Target | None, chunk: int, path: str | None) -> Tally | None:
        """
        Begin a quick call: one of a known target and file, in a load that has one thread. None if it is not.

        It enters nothing and takes no lock: its time, until it is collected, is that of what is around it.
        """
        frame = current.get()
        if frame is None:
            frame = self.local.last
            if frame is None or path is None:
                return None
        load = frame.load
        tally = frame.tallies.get(stage)
        if (
            tally is None
            or load.solo != threading.get_ident()
            or load.inside is not None
            or load.gap
            or tally.row is not row
            or chunk >= DEEP
            or (path is not None and path not in tally.paths)
            or self.local.running
            or load.closed
        ):
            return None
        tally.usage = usage()
        tally.begun = time.perf_counter_ns()
        if tally.begun - tally.last > REST and tally.count:
            return None
        load.inside = tally
        if load.solo:
            return tally
        load.inside = None  # a second thread came in between
        self._leave_entered(load, tally, tally.begun)
        return None

    def _leave_entered(self, load: OpenLoad, tally: Tally, now: int) -> None:
        """A second thread came in while a quick call ran; if it saw the call, it has entered it."""
        with load.lock:
            if tally.entered:
                tally.entered = False
                self.leave(load, tally.nodes, now)

    def end_quick(self, tally: Tally, size: int | None, error: BaseException | None, result: Any) -> int:
        """End a quick call."""
        now = time.perf_counter_ns()
        after = usage()
        load, begun = tally.load, tally.begun
        load.last_end = now
        load.inside = None
        took = now - begun
        if load.solo or not tally.entered:
            tally.quick += took
        else:
            self._leave_entered(load, tally, now)
        if load.closed:
            return 0
        if not tally.first:
            tally.first = begun
        if not tally.concurrency:
            tally.concurrency = 1
        outer_stage = tally.parent
        if outer_stage is not None and outer_stage.thread == threading.get_ident():
            outer_stage.nested += took
        tally.unseen += took
        if after is not None:
            self.charge(tally, tally.usage, after)
        return self.counted(tally, took, now, size, error, result)

    def charge(self, tally: Tally, before: Any, after: Any) -> None:
        """Add what the kernel counted for the calling thread during one call."""
        tally.measured = True
        tally.storage_read += (after.ru_inblock - before.ru_inblock) * BLOCK
        tally.major += after.ru_majflt - before.ru_majflt
        tally.minor += after.ru_minflt - before.ru_minflt

    def counted(self, tally: Tally, took: int, now: int, size: int | None, error: BaseException | None, result: Any) -> int:
        """Count a call that ended."""
        load = tally.load
        tally.count += 1
        tally.busy += took
        tally.last = now
        load.failed = None
        if error is not None:
            load.failed = tally.error = self.failed(tally, error)
        else:
            if size is not None:
                tally.size += size
                tally.sized = True
            if not load.explicit and not tally.apart:
                self.local.made = id(result)
                if tally.count <= RECOGNIZED:
                    load.learn((result,))
                    implicit.consumed(load, tally.name, (), (result,))
        slow = took if tally.slow(took) else 0
        if now - tally.first > SEGMENT and now - tally.first > SEGMENT << (load.spans // _SEGMENTS) and load.spans < SPAN_LIMIT:
            with load.lock:
                load.spans += 1
                self.emit(load, tally)
        return slow

    def failed(self, tally: Tally, error: BaseException) -> Failure:
        """What is kept of the exception of a fine call, for the frame it was made in too."""
        frame = tally.parent or tally.load
        if frame.failure is None or not frame.failure.is_of(error):
            frame.failure = self.kept(error, frame)
        return frame.failure
