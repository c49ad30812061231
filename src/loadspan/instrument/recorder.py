"""
Fine calls, and with them the whole recorder: loads, coarse stages and fine calls of a process.

A frame (load or stage) is found through a context variable, so it follows threads that were given their context, asyncio tasks, and
generators stepped by hand. Every method may fail; callers reach them through the guard.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from loadspan.facts import counters
from loadspan.instrument import implicit
from loadspan.instrument.frames import OpenLoad, OpenStage, current
from loadspan.instrument.loads import SPAN_LIMIT
from loadspan.instrument.stages import Stages
from loadspan.instrument.tally import Tally, usage

if TYPE_CHECKING:
    import resource

    from loadspan.instrument.patching import Args, Kwargs, Target

SEGMENT = 5_000_000_000
"""Nanoseconds after which a running tally reports a segment; doubled with every 64 spans of the load."""

_SEGMENTS = 64
_SOON = 10_000_000  # nanoseconds within which a call from the same place on the same file needs no further proof
_SAMPLE = 16  # results by which an implicit load recognizes its own tensors
_DEEP = 1 << 18  # bytes of a chunk from which two more readings of 2 us are under a percent of the call


class FineCall:
    """One fine call while it runs."""

    __slots__ = ("begun", "outer", "scheduled", "stage", "tally", "usage")

    def __init__(self, stage: str, tally: Tally | None, outer: OpenStage | None) -> None:
        self.stage = stage
        self.tally = tally
        self.outer = outer
        self.begun = 0
        self.usage: resource.struct_rusage | None = None
        self.scheduled: int | None = None


class _Local(threading.local):
    def __init__(self) -> None:
        self.running: list[FineCall] = []
        self.last: OpenLoad | None = None


class Recorder(Stages):
    """Everything that is being recorded in this process."""

    def __init__(self) -> None:
        super().__init__()
        self._local = _Local()

    def begin_fine(
        self, stage: str, row: Target | None = None, args: Args = (), kwargs: Kwargs | None = None, *, chunk: int = 0, path: str | None = None
    ) -> FineCall | None:
        """
        Begin a fine call; None if it is not to be recorded.

        Args:
            stage: Stage name.
            row: Target of the call, for its `alone` and `facts`.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.
            chunk: Bytes asked for, where that is known beforehand.
            path: File the call is about, where that is known.
        """
        running = self._local.running
        for call in running:
            if call.stage == stage:
                return None  # the outermost of nested calls counts
        frame = current.get()
        if frame is None or frame.load.closed:
            frame = self.frame() or self._place_fine(stage, row, args, kwargs or {}, path)
            if frame is None:
                return None
        if frame.load.muted:
            return None
        if stage in frame.stages:
            call = FineCall(stage, None, self.same(frame, stage))
            running.append(call)
            return call
        tally = self._tally_of(frame, stage, row, args, kwargs, path)
        call = FineCall(stage, tally, None)
        parent = running[-1].tally if running else None
        running.append(call)
        if chunk >= _DEEP:
            call.scheduled = counters.scheduled()
        call.usage = usage()
        call.begun = now = time.perf_counter_ns()
        load = frame.load
        with load.lock:
            tally.begin(now)
            self.enter(load, tally, parent or frame.stage, now)
        return call

    def _tally_of(
        self, frame: OpenLoad | OpenStage, stage: str, row: Target | None, args: Args, kwargs: Kwargs | None, path: str | None
    ) -> Tally:
        tally = frame.tallies.get(stage)
        thread = threading.get_ident()
        if tally is not None and thread in tally.threads and (path is None or path in tally.paths):
            return tally
        with frame.load.lock:
            tally = self.tally(frame, stage)
            tally.threads[thread] = threading.current_thread().name
            if path is not None:
                tally.paths[path] = None
            if row is not None and row.facts is not None:
                tally.describe(row.facts(args, kwargs or {}))
            return tally

    def _place_fine(self, stage: str, row: Target | None, args: Args, kwargs: Kwargs, path: str | None) -> OpenLoad | None:
        """The implicit load of a fine call, opened if the call is worth one."""
        worth = row is None or row.alone is None or row.alone(args, kwargs)
        if not worth and not self.loads:
            return None
        where = implicit.origin()
        now = time.perf_counter_ns()
        last = self._local.last
        if last is not None and not last.closed and last.origin == where and now - last.last_end < _SOON and (not path or path in last.paths):
            return last
        if not self.telemetry.enabled():
            return None
        question = implicit.Question(stage, paths=(path,) if path else (), origin=where)
        with self.lock:
            load = implicit.match(self.implicit_loads(), question, self.settings, now)
            if load is None:
                if not worth:
                    return None
                load = self.open_implicit(question, now)
            load.last_end = max(load.last_end, now)
            if path:
                load.paths[path] = None
        self._local.last = load
        return load

    def end_fine(
        self, call: FineCall, size: int | None, error: BaseException | None = None, result: Any = None, *, deferred: bool = False
    ) -> int:
        """
        End a fine call; returns the nanoseconds it took if its name is worth knowing, else 0.

        An implicit load remembers *result* by weak reference, to recognize it later.
        """
        now = time.perf_counter_ns()
        running = self._local.running
        if call in running:
            running.remove(call)
        tally = call.tally
        if tally is None:
            if call.outer is not None:
                with call.outer.load.lock:
                    call.outer.count_inner(size if error is None else None)
                    call.outer.deferred = call.outer.deferred or deferred
            return 0
        after = usage() if call.usage is not None else None
        load = tally.load
        with load.lock:
            self.leave(load, tally, tally.name, now)
            if load.closed:
                return 0
            took = now - call.begun
            outer = tally.parent
            if outer is not None and not running and outer.thread == threading.get_ident():
                outer.nested += took
            tally.end(call.begun, now, size if error is None else None)
            if after is not None and call.usage is not None:
                tally.charge(call.usage, after)
            if call.scheduled is not None:
                tally.block(took, call.scheduled, counters.scheduled())
            if deferred:
                tally.deferred = True
            self._account(load, tally, size, error)
            if tally.count <= _SAMPLE and not load.explicit and error is None:
                load.learn((result,))
                implicit.consumed(load, tally.name, (), (result,))
            slow = took if tally.slow(took) else 0
            if now - tally.first > SEGMENT << (load.spans // _SEGMENTS) and load.spans < SPAN_LIMIT:
                load.spans += 1
                self.emit(load, tally)
            return slow

    def _account(self, load: OpenLoad, tally: Tally, size: int | None, error: BaseException | None) -> None:
        if error is not None:
            tally.error = load.failed = error
            return
        load.failed = None
        if size:
            self.moved(load, tally.name, size, tally.parent)

    def name_slow(self, call: FineCall, took: int, size: int | None, label: str) -> None:
        """Give a slow call its name."""
        if call.tally is not None:
            with call.tally.load.lock:
                call.tally.note(took, size, label)

    def abandon(self) -> None:
        """Forget everything: this is a forked child, and the loads are its parent's."""
        for load in self.loads:
            load.closed = True
        self.lock = threading.RLock()
        self.loads, self.stages = [], []
        self.repetitions = implicit.Repetitions()
        self._local = _Local()
