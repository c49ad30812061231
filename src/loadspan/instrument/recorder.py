"""
Fine calls, and with them the whole recorder: loads, coarse stages and fine calls of a process.

A frame (load or stage) is found through a context variable, so it follows threads that were given their context, asyncio tasks, and
generators stepped by hand. Every method may fail; callers reach them through the guard.
"""

from __future__ import annotations

import resource
import threading
import time
from typing import TYPE_CHECKING, Any

from loadspan.facts import counters
from loadspan.instrument import implicit
from loadspan.instrument.bursts import Burst
from loadspan.instrument.failure import Failure
from loadspan.instrument.frames import OpenLoad, OpenStage, current, reference
from loadspan.instrument.loads import SPAN_LIMIT
from loadspan.instrument.stages import Stages
from loadspan.instrument.tally import SLOWEST, Tally

if TYPE_CHECKING:
    import weakref

    from loadspan.instrument.partition import Node
    from loadspan.instrument.patching import Args, Kwargs, Target

SEGMENT = 5_000_000_000
"""Nanoseconds after which a running tally reports a segment; doubled with every 64 spans of the load."""

_SEGMENTS = 64
_THREAD = getattr(resource, "RUSAGE_THREAD", 0)
_getrusage = resource.getrusage if hasattr(resource, "RUSAGE_THREAD") else None  # per thread on Linux only
_SOON = 10_000_000  # nanoseconds within which a call from the same place on the same file needs no further proof
_BLOCK = 512  # getrusage counts input in blocks of 512 bytes, whatever the device
_SAMPLE = 16  # results by which an implicit load recognizes its own tensors
_DEEP = 1 << 18  # bytes of a chunk from which two more readings of 2 us are under a percent of the call


class FineCall:
    """One fine call while it runs."""

    __slots__ = ("apart", "begun", "nodes", "outer", "scheduled", "stage", "tally", "usage")

    def __init__(self, stage: str, tally: Tally | None, outer: OpenStage | None) -> None:
        self.stage = stage
        self.tally = tally
        self.outer = outer
        self.apart = ""
        self.begun = 0
        self.nodes: list[Node] | None = None
        """Its own nodes, where it runs inside a fine call of another stage."""
        self.usage: Any = None
        self.scheduled: int | None = None


class _Local(threading.local):
    def __init__(self) -> None:
        self.running: list[FineCall] = []
        self.last: OpenLoad | None = None
        self.subject: weakref.ref[Any] | None = None
        """Object (`args[0]`) of the last call whose target says when it joins."""
        self.made = 0
        """Identity of what the last call in an implicit load returned."""


class Recorder(Stages):
    """Everything that is being recorded in this process."""

    def __init__(self) -> None:
        super().__init__()
        self._local = _Local()

    def begin_fine(
        self,
        stage: str,
        row: Target | None = None,
        args: Args = (),
        kwargs: Kwargs | None = None,
        chunk: int = 0,
        path: str | None = None,
    ) -> FineCall | Tally | None:
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
        tally = self._quick(stage, row, chunk, path)
        if tally is not None:
            return tally
        running = self._local.running
        if running and any(call.stage == stage for call in running):
            return None  # the outermost of nested calls counts
        frame = current.get()
        if frame is None or frame.load.closed:
            frame = self.frame() or self._place_fine(stage, row, args, kwargs or {}, path)
            if frame is None:
                return None
        load = frame.load
        inside = load.inside if load.solo == threading.get_ident() else None
        if load.muted or (inside is not None and inside.name == stage):
            return None
        if stage in frame.stages:
            call = FineCall(stage, None, self.same(frame, stage))
            if row is not None:
                self._describe_in_stage(call, row, args, kwargs or {})
            running.append(call)
            return call
        tally = frame.tallies.get(stage if row is None else row.apart or stage)
        if (
            tally is None
            or tally.row is not row
            or threading.get_ident() not in tally.threads
            or (path is not None and path not in tally.paths)
        ):
            tally = self._describe(frame, stage, row, args, kwargs or {}, path)
        call = FineCall(stage, tally, None)
        nodes = tally.nodes
        around = inside or (running[-1].tally if running else None)
        if around is not None:
            with load.lock:
                # Inside a fine call of another stage: time is taken from that one, not from the frame around both.
                nodes = call.nodes = self.nodes(stage, frame, around)
        running.append(call)
        if chunk >= _DEEP:
            call.scheduled = counters.scheduled()
        if _getrusage is not None:
            call.usage = _getrusage(_THREAD)
        call.begun = now = time.perf_counter_ns()
        with load.lock:
            if load.fresh:
                load.restart(now)
                nodes[:] = self.nodes(stage, frame)
            # Spelled out where a method would read better: this runs for every tensor.
            if not tally.first:
                tally.first = now
            tally.active += 1
            if tally.active > tally.concurrency:
                tally.concurrency = tally.active
            self.enter(load, nodes, now)
        return call

    def _quick(self, stage: str, row: Target | None, chunk: int, path: str | None) -> Tally | None:
        """
        Begin a quick call: one of a known target and file, in a load that has one thread. None if it is not.

        It enters nothing and takes no lock: its time, until it is collected, is that of what is around it.
        """
        frame = current.get()
        if frame is None:
            frame = self._local.last
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
            or chunk >= _DEEP
            or (path is not None and path not in tally.paths)
            or self._local.running
            or load.closed
        ):
            return None
        if _getrusage is not None:
            tally.usage = _getrusage(_THREAD)
        tally.begun = time.perf_counter_ns()
        load.inside = tally
        if load.solo:
            return tally
        load.inside = None  # a second thread came in between
        with load.lock:
            for outer, node in self._levels(load, tally.nodes):
                if node.open:  # and has seen the call
                    outer.partition.leave(node, tally.begun)
        return None

    def _end_quick(self, tally: Tally, size: int | None, error: BaseException | None, result: Any) -> int:
        """End a quick call."""
        now = time.perf_counter_ns()
        usage = _getrusage(_THREAD) if _getrusage is not None else None
        load, begun = tally.load, tally.begun
        load.last_end = now
        load.inside = None
        took = now - begun
        if load.solo:
            tally.quick += took
        else:
            with load.lock:
                for outer, node in self._levels(load, tally.nodes):
                    if node.open:
                        outer.partition.leave(node, now)
        if load.closed:
            return 0
        if not tally.first:
            tally.first = begun
        if not tally.concurrency:
            tally.concurrency = 1
        outer_stage = tally.parent
        if outer_stage is not None and outer_stage.thread == threading.get_ident():
            outer_stage.nested += took
        if usage is not None:
            self._charge(tally, tally.usage, usage)
        return self._counted(tally, took, now, size, error, result)

    def _describe(self, frame: OpenLoad | OpenStage, stage: str, row: Target | None, args: Args, kwargs: Kwargs, path: str | None) -> Tally:
        """The tally of a call of another target than the one before, or from a thread or about a file that it has not seen."""
        with frame.load.lock:
            tally = self.tally(frame, stage, row.apart if row is not None else "")
            tally.row = row
            tally.threads[threading.get_ident()] = threading.current_thread().name
            if path is not None:
                tally.paths[path] = None
            if row is not None:
                if row.facts is not None:
                    tally.describe(row.facts(args, kwargs))
                if row.deferred is not None and row.deferred(args, kwargs):
                    tally.deferred = True
            return tally

    def _place_fine(self, stage: str, row: Target | None, args: Args, kwargs: Kwargs, path: str | None) -> OpenLoad | None:
        """The implicit load of a fine call, opened if the call is worth one."""
        worth = row is None or row.alone is None or row.alone(args, kwargs)
        last = self._local.last
        near = worth or row is None or row.joins is None or row.joins(args, kwargs)
        if not (worth or self.loads) or not (near or self._continues(row, args, kwargs)):
            return None
        if row is not None and row.joins is not None and args and type(args[0]).__weakrefoffset__:  # AESGCM of cryptography has none
            self._local.subject = reference(args[0])
        where = implicit.origin()
        now = time.perf_counter_ns()
        if (
            last is not None
            and not last.closed
            and last.origin == where
            and (not near or now - last.last_end < _SOON)
            and (not path or path in last.paths)
        ):
            return last
        if not near or not self.telemetry.enabled():
            return None
        buffer = row.buffer(args, kwargs) if row is not None and row.buffer is not None else None
        question = implicit.Question(stage, things=() if buffer is None else (buffer,), paths=(path,) if path else (), origin=where)
        with self.lock:
            load = implicit.match(self.implicit_loads(), question, self.settings, now)
            if load is None:
                if not worth:
                    return None
                load = self.open_implicit(question, now)
            load.kept = now
            if path:
                load.paths[path] = None
        self._local.last = load
        return load

    def _continues(self, row: Target | None, args: Args, kwargs: Kwargs) -> bool:
        """Whether a call works on the object of the recorded call before it in this thread, or on the bytes that one returned."""
        local = self._local
        if local.last is None or local.last.closed:
            return False
        if local.subject is not None and args and args[0] is local.subject():
            return True
        if row is None or row.buffer is None or time.perf_counter_ns() - local.last.last_end > _SOON:
            return False
        # Of a view, what it is a view of. Identity is proof enough for these milliseconds, and keeps nothing alive.
        buffer = row.buffer(args, kwargs)
        return buffer is not None and id(getattr(buffer, "obj", buffer)) == local.made

    def end_fine(
        self, call: FineCall | Tally, size: int | None, error: BaseException | None = None, result: Any = None, *, deferred: bool = False
    ) -> int:
        """
        End a fine call; returns the nanoseconds it took if its name is worth knowing, else 0.

        An implicit load remembers *result* by weak reference, to recognize it later.
        """
        if isinstance(call, Tally):
            return self._end_quick(call, size, error, result)
        now = time.perf_counter_ns()
        usage = _getrusage(_THREAD) if call.usage is not None and _getrusage is not None else None
        running = self._local.running
        if running and running[-1] is call:
            running.pop()
        elif call in running:
            running.remove(call)
        tally = call.tally
        if tally is None:
            self._count_in_stage(call, size if error is None else None, now, deferred=deferred)
            return 0
        load = tally.load
        with load.lock:
            self.leave(load, call.nodes or tally.nodes, now)
            if call.nodes is not None:
                self.settle(load, call.nodes, tally.name)
            if load.closed:
                return 0
            took = now - call.begun
            outer = tally.parent
            if outer is not None and not running and outer.thread == threading.get_ident():
                outer.nested += took
            tally.active -= 1
            if usage is not None:
                self._charge(tally, call.usage, usage)
            if call.scheduled is not None:
                tally.block(took, call.scheduled, counters.scheduled())
            if deferred:
                tally.deferred = True
            return self._counted(tally, took, now, size, error, result)

    def _charge(self, tally: Tally, before: Any, after: Any) -> None:
        """Add what the kernel counted for the calling thread during one call."""
        tally.measured = True
        tally.storage_read += (after.ru_inblock - before.ru_inblock) * _BLOCK
        tally.major += after.ru_majflt - before.ru_majflt
        tally.minor += after.ru_minflt - before.ru_minflt

    def _counted(self, tally: Tally, took: int, now: int, size: int | None, error: BaseException | None, result: Any) -> int:  # noqa: PLR0913, PLR0917 - a call's facts, once for every tensor
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
                self._local.made = id(result)
                if tally.count <= _SAMPLE:
                    load.learn((result,))
                    implicit.consumed(load, tally.name, (), (result,))
        slow = took if len(tally.slowest) < SLOWEST or took > tally.slowest[0][0] else 0
        if now - tally.first > SEGMENT and now - tally.first > SEGMENT << (load.spans // _SEGMENTS) and load.spans < SPAN_LIMIT:
            with load.lock:
                load.spans += 1
                self.emit(load, tally)
        return slow

    def failed(self, tally: Tally, error: BaseException) -> Failure:
        """What is kept of the exception of a fine call, for the frame it was made in too."""
        frame = tally.parent or tally.load
        frame.failure = Failure(error)
        return frame.failure

    def _describe_in_stage(self, call: FineCall, row: Target, args: Args, kwargs: Kwargs) -> None:
        """Tell a coarse stage of a fine call of the same name inside it."""
        if row.apart:
            call.apart = row.apart
            call.begun = time.perf_counter_ns()
        elif call.outer is not None and row.facts is not None:
            with call.outer.load.lock:
                call.outer.describe_inner(row.facts(args, kwargs))

    def _count_in_stage(self, call: FineCall, size: int | None, now: int, *, deferred: bool) -> None:
        """A fine call inside a coarse stage of the same name is counted there."""
        outer = call.outer
        if outer is None:
            return
        with outer.load.lock:
            if call.apart:
                took = now - call.begun
                outer.attributes[call.apart] = outer.attributes.get(call.apart, 0.0) + took / 1e9
                if not self._local.running and outer.thread == threading.get_ident():
                    outer.nested += took  # so that it does not lower the throughput
            else:
                outer.count_inner(size)
                outer.deferred = outer.deferred or deferred

    def follow(self, call: FineCall | Tally | None, took: int, size: int, old: Burst | None) -> Burst | None:
        """
        What counts the calls that follow an announced one; None where each has to be announced.

        Args:
            call: The call that ended, None where nobody records.
            took: Its nanoseconds.
            size: Its bytes.
            old: What counted the calls before it.
        """
        running = self._local.running
        announced = call if isinstance(call, FineCall) else None
        tally = announced.tally if announced is not None else call if isinstance(call, Tally) else None
        each = bool(running) or (announced is not None and (tally is None or announced.nodes is not None or tally.load.closed))
        if each:
            return None
        burst = old if old is not None and old.follows(tally) else Burst(self, tally, running)
        burst.renew(took, size)
        return burst

    def name_slow(self, call: FineCall | Tally, took: int, size: int | None, label: str) -> None:
        """Give a slow call its name."""
        tally = call if isinstance(call, Tally) else call.tally
        if tally is not None:
            with tally.load.lock:
                tally.note(took, size, label)

    def abandon(self) -> None:
        """Forget everything: this is a forked child, and the loads are its parent's."""
        for load in self.loads:
            load.closed = True
        self.lock = threading.RLock()
        self.loads, self.stages = [], []
        self.repetitions = implicit.Repetitions()
        self._local = _Local()
