"""
Fine calls, and with them the whole recorder: loads, coarse stages and fine calls of a process.

A frame (load or stage) is found through a context variable, so it follows threads that were given their context, asyncio tasks, and
generators stepped by hand. Every method may fail; callers reach them through the guard.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from loadspan.facts import counters
from loadspan.facts.counters import usage
from loadspan.instrument import implicit
from loadspan.instrument.bursts import Burst
from loadspan.instrument.described import reference
from loadspan.instrument.frames import OpenLoad, OpenStage, current
from loadspan.instrument.patching import library
from loadspan.instrument.quick import DEEP, RECOGNIZED, REST, FineCall, Local, Quick
from loadspan.instrument.tallies import SPAN_LIMIT
from loadspan.instrument.tally import Tally
from loadspan.instrument.waiting import Waiting

if TYPE_CHECKING:
    from loadspan.instrument.patching import Args, Kwargs, Target

_SOON = 10_000_000  # nanoseconds within which a call from the same place on the same file needs no further proof


class Recorder(Quick):
    """Everything that is being recorded in this process."""

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
        tally = self.begin_quick(stage, row, chunk, path)
        if tally is not None:
            return tally
        begun = time.perf_counter_ns()
        running = self.local.running
        if running and any(call.stage == stage for call in running):
            return None  # the outermost of nested calls counts
        frame = current.get()
        if frame is None or frame.closed or frame.load.closed:
            frame = self.frame() or self._place_fine(stage, row, args, kwargs or {}, path)
        if frame is None or frame.load.muted:
            return None
        if stage in frame.stages:
            call = FineCall(stage, None, self.same(frame, stage))
            if row is not None:
                self._describe_in_stage(call, row, args, kwargs or {})
            running.append(call)
            return call
        inside = frame.load.inside if frame.load.solo == threading.get_ident() else None
        if inside is not None and inside.name == stage:
            return None  # as above
        tally = frame.tallies.get(stage if row is None else row.apart or stage)
        if tally is None or not tally.knows(row, path):
            tally = self._describe(frame, stage, row, args, kwargs or {}, path)
        return self._enter_fine(frame, tally, inside or (running[-1].tally if running else None), chunk, begun)

    def _enter_fine(self, frame: OpenLoad | OpenStage, tally: Tally, around: Tally | None, chunk: int, begun: int) -> FineCall:
        """Begin a call of *tally*, inside a fine call of the tally *around* or in none."""
        call, load = FineCall(tally.name, tally, None), frame.load
        nodes = tally.nodes
        if around is not None:
            with load.lock:
                # Time is taken from that call, not from the frame around both.
                nodes = call.nodes = self.nodes(tally.name, frame, around)
        self.local.running.append(call)
        call.usage = usage()
        if chunk >= DEEP:
            call.scheduled = counters.scheduled(call.usage)
        call.begun = now = time.perf_counter_ns()
        with load.lock:
            if load.fresh:
                load.restart(now)
                nodes[:] = self.nodes(tally.name, frame)
            if tally.count and not tally.active and now - tally.last > REST and load.spans < SPAN_LIMIT:
                load.spans += 1
                self.emit(load, tally)
            tally.first = tally.first or now
            tally.active += 1
            tally.concurrency = max(tally.concurrency, tally.active)
            self.enter(load, nodes, now, begun)
        return call

    def _describe(self, frame: OpenLoad | OpenStage, stage: str, row: Target | None, args: Args, kwargs: Kwargs, path: str | None) -> Tally:
        """The tally of a call of another target than the one before, or from a thread or about a file that it has not seen."""
        with frame.load.lock:
            tally = self.tally(frame, stage, row.apart if row is not None else "")
            tally.row = row
            tally.threads[threading.get_ident()] = threading.current_thread().name
            if path is not None:
                tally.paths[path] = None
                tally.met += frame.load.surroundings.meet((path,))
            if row is not None:
                if row.facts is not None:
                    tally.describe(row.facts(args, kwargs))
                tally.waits = tally.waits or row.waits
                if row.deferred is not None and row.deferred(args, kwargs):
                    tally.deferred = True
                there = row.destination(args, kwargs) if row.destination is not None else None
                if there is not None:
                    # One for both: who looks at the link while these calls run finds it on the load.
                    there = frame.load.destinations.setdefault(there.key, there)
                    tally.destinations[there.key] = there
            return tally

    def _place_fine(self, stage: str, row: Target | None, args: Args, kwargs: Kwargs, path: str | None) -> OpenLoad | None:
        """The implicit load of a fine call, opened if the call is worth one."""
        worth = row is None or row.alone is None or row.alone(args, kwargs)
        last = self.local.last
        near = worth or row is None or row.joins is None or row.joins(args, kwargs)
        if not (worth or self.loads) or not (near or self._continues(row, args, kwargs)):
            return None
        if row is not None and row.joins is not None and args and type(args[0]).__weakrefoffset__:  # AESGCM of cryptography has none
            self.local.subject = reference(args[0])
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
        if not near or not self.recording():
            return None
        buffer = row.buffer(args, kwargs) if row is not None and row.buffer is not None else None
        question = implicit.Question(stage, things=() if buffer is None else (buffer,), paths=(path,) if path else (), origin=where)
        with self.lock:
            load = implicit.match(self.implicit_loads(), question, self.settings, now)
            if load is None:
                if not worth:
                    return None
                load = self.open_implicit(question, now, None if row is None else library(row))
            load.kept = now
            if path:
                load.paths[path] = None
        self.local.last = load
        return load

    def _continues(self, row: Target | None, args: Args, kwargs: Kwargs) -> bool:
        """Whether a call works on the object of the recorded call before it in this thread, or on the bytes that one returned."""
        local = self.local
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
            return self.end_quick(call, size, error, result)
        now = time.perf_counter_ns()
        after = usage() if call.usage is not None else None
        running = self.local.running
        with suppress(ValueError):
            running.remove(call)
        tally = call.tally
        if tally is None:
            self._count_in_stage(call, size if error is None else None, now, deferred=deferred)
            return 0
        load = tally.load
        with load.lock:
            self.leave(load, call.nodes or tally.nodes, now)
            if call.nodes is not None:
                tally.exclusive += call.nodes[0].exclusive
                self.settle(load, call.nodes, tally.name)
            if load.closed:
                return 0
            whole = now - call.begun
            took = whole - call.nested
            if running:
                running[-1].nested += whole
            outer = tally.parent
            if outer is not None and not running and outer.thread == threading.get_ident():
                outer.nested += whole
            tally.active -= 1
            if after is not None:
                self.charge(tally, call.usage, after)
            if call.scheduled is not None:
                tally.block(counters.spent(whole, call.scheduled, after))
            else:
                tally.unseen += took
            if deferred:
                tally.deferred = True
            slow = self.counted(tally, took, now, size, error, result)
            self.outlived(tally)
        self.spent(load, [node.parent for node in call.nodes or tally.nodes], now)
        return slow

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
                if not self.local.running and outer.thread == threading.get_ident():
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
        running = self.local.running
        announced = call if isinstance(call, FineCall) else None
        tally = announced.tally if announced is not None else call if isinstance(call, Tally) else None
        each = bool(running) or (announced is not None and (tally is None or announced.nodes is not None or tally.load.closed))
        if each:
            return None
        burst = old if old is not None and old.follows(tally) else Burst(self, tally, running)
        burst.renew(took, size)
        return burst

    def known_by_now(self, call: FineCall | Tally) -> bool:
        """Whether so many results of calls like *call* were seen that an implicit load knows its own, and one thread alone makes them."""
        tally = call if isinstance(call, Tally) else call.tally
        return tally is not None and tally.count > RECOGNIZED and bool(tally.load.solo)

    def name_slow(self, call: FineCall | Tally | Burst, took: int, size: int | None, label: str) -> None:
        """Give a slow call its name."""
        tally = call if isinstance(call, Tally) else call.tally
        if tally is not None:
            with tally.load.lock:
                tally.note(took, size, label)

    def abandon(self) -> None:
        """Forget everything: this is a forked child, and the loads are its parent's."""
        parents = [load.measured for load in self.loads]
        for load in self.loads:
            load.closed = True
        self.lock = threading.RLock()
        self.loads, self.stages = [], []
        self.repetitions = implicit.Repetitions()
        self.local = Local()
        self.recorded, self.closed = False, 0
        self.waiting = Waiting()
        self.metrics.abandon(parents)
