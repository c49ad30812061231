"""Opens and closes loads, finds the one a call belongs to, and shows what was recorded."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument import attributes, counted, implicit, late, telemetry
from loadspan.instrument.failure import Failure
from loadspan.instrument.frames import OpenLoad, OpenStage, current
from loadspan.instrument.metrics import Metrics
from loadspan.instrument.tallies import Found, Tallies
from loadspan.instrument.waiting import Waiting
from loadspan.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.facts import counters

_READ_SHORT = 5_000_000_000  # nanoseconds for which a load that has only read is held back: it may be one of many
_CERTAIN = 0.9  # share of the ticks of a gap that must have seen a constructor or an import before the gap is called `initialize`


def _at_once(load: OpenLoad, end: int) -> bool:
    """Whether a load that ended at *end* is described at once: inside another it is only where the milliseconds of it are nothing."""
    return load.parent is None or end - load.start > late.LONG


class Loads(Tallies):
    """The open loads of this process."""

    def __init__(self) -> None:
        self.active = False
        """Whether host functions are patched; wrappers that outlive their installation pass calls through."""
        self.settings = Settings()
        self.telemetry = telemetry.Telemetry()
        self.metrics = Metrics()
        self.lock = threading.RLock()
        self.loads: list[OpenLoad] = []
        """Open loads, oldest first."""
        self.stages: list[OpenStage] = []
        """Open coarse stages."""
        self.ended = implicit.Ended()
        self.repetitions = implicit.Repetitions()
        self.closed = 0  # loads shown so far
        self.on_open: Callable[[], None] = lambda: None
        """Called when a load was opened; starts the sampler."""
        self.on_close: Callable[[], None] = lambda: None
        """Called when a coarse stage or a load inside another has ended; puts it on disk."""
        self.recorded = False  # whether this process has opened a load
        self.waiting = Waiting()

    def recording(self) -> bool:
        """Whether anybody records, spans or metrics."""
        return telemetry.allowed() and (self.telemetry.enabled() or self.metrics.enabled())

    def open_load(self, described: dict[str, Any], *, name: str | None) -> OpenLoad | None:
        """Open an explicit load as the innermost frame of this context. None if nobody records."""
        begun = time.perf_counter_ns()
        frame = self.frame()
        if frame.load.muted if frame is not None else not self.recording():
            return None
        late.prepare()  # before it begins: the first time it takes some 20 ms
        if frame is None or not frame.load.explicit:
            self._close_quiet(implicit.origin())
        load = self._new_load(explicit=True, parent=frame, start=time.perf_counter_ns())
        load.attributes.update(described)
        load.known_as(name)
        self._start_root(load, telemetry.here(), above=frame.handle if frame is not None else None)
        self._register(load)
        load.token = current.set(load)
        # Only now: what opening it took us is not the host's.
        load.begin_counting()
        load.restart(time.perf_counter_ns())
        load.muted = not (load.handle.recording() or self.metrics.enabled())
        if not load.muted:
            load.context_token = load.handle.attach()
        if frame is not None:
            self.spent(frame.load, frame.above, begun)
        return load

    def _new_load(self, *, explicit: bool, parent: OpenLoad | OpenStage | None, start: int) -> OpenLoad:
        anchor = parent.load.anchor if parent is not None else time.time_ns() - time.perf_counter_ns()
        load = OpenLoad(start, anchor, explicit=explicit, parent=parent)
        load.surroundings = late.surroundings(outermost=parent is None)
        load.begin_counting()
        load.threads = {thread.ident for thread in threading.enumerate() if thread.ident is not None}
        return load

    def _register(self, load: OpenLoad) -> None:
        with self.lock:
            self.loads.append(load)
        if load.parent is None:
            safely(self.metrics.opened, load.measured, load.surroundings.before.storage_read)
        self.recorded = True
        self.on_open()

    def _start_root(self, load: OpenLoad, context: Any, link: Any = None, above: telemetry.SpanHandle | None = None) -> None:
        # Given at the start, since samplers decide by what is there then.
        known = {name: load.attributes[name] for name in (names.MODEL_NAME, names.LOADER, names.IMPLICIT) if name in load.attributes}
        if above is not None and not telemetry.current_span_id():
            context = above.context()  # the host's context did not come along into this thread, ours did
        load.handle = self.telemetry.root(load.epoch(load.start), known, context, link)

    def close_load(self, load: OpenLoad, error: BaseException | None = None, end: int | None = None) -> None:
        """Close an explicit load in the context in which it was opened; it ended at *end*, by default now."""
        end = time.perf_counter_ns() if end is None else end
        self.leave_context(load)
        outer = load.parent.stage if load.parent is not None else None
        if outer is not None and outer.thread == load.thread:
            outer.nested += end - load.start
        self._finish(load, end, self.failure(load, error))
        if load.parent is not None:
            self.spent(load.parent.load, load.parent.above, end)

    def failure(self, frame: OpenLoad | OpenStage, error: BaseException | None) -> Failure | None:
        """What is kept of the exception that leaves *frame*: one object for all the frames it passes through."""
        if error is None:
            return None
        failure = frame.failure if frame.failure is not None and frame.failure.is_of(error) else self.kept(error, frame)
        if frame.parent is not None:
            frame.parent.failure = failure
        return failure

    def kept(self, error: BaseException, frame: OpenLoad | OpenStage) -> Failure:
        """What is kept of an exception that arose in *frame*."""
        return Failure(error, None if self.settings.full_paths else (*frame.paths, *frame.load.paths))

    def leave_context(self, frame: OpenLoad | OpenStage) -> None:
        """Make the frame above *frame* the innermost one again."""
        if frame.context_token is not None:
            telemetry.detach(frame.context_token)
            frame.context_token = None
        if frame.token is not None:
            try:
                current.reset(frame.token)
            except ValueError:  # closed in another context than it was opened in
                current.set(frame.parent)
            frame.token = None

    def _finish(self, load: OpenLoad, end: int, error: Failure | None) -> None:
        with self.lock:
            if load.closed:
                return
            load.closed = True
            if load in self.loads:
                self.loads.remove(load)
        try:
            self._conclude(load, end, error)
        finally:
            load.let_go()
            safely(self.metrics.closed, load.measured)
        if _at_once(load, end):
            telemetry.write()
        else:
            self.on_close()

    def _conclude(self, load: OpenLoad, end: int, error: Failure | None) -> None:
        """Show a load that was closed, if it is worth it."""
        facts, at_end = counted.of_load(load)
        with load.lock:
            self.contend(load)
            self.collect(load)
            if load.explicit:
                self.settle_gap(load, end)
            end = max(end, load.partition.last)
            self.flush_tallies(load, load)  # while the partition knows what was whose
            load.partition.finish(end)
            for read in load.later:
                safely(read, load)
            if load.muted:
                return
            failed = error if error is not None or load.explicit else load.failed
            if not load.explicit and ((load.held is not None and not (load.held and self.worth(load))) or self._fold(load, end)):
                return  # too small, or of calls that turned out to be nothing
            load.surroundings.close(end)
            self._release(load)
            with self.lock:
                self.ended.remember(load, load.handle.span_context())
                self.closed += 1
            self.waiting.add(partial(self._show_load, load, end, facts, at_end, failed))
            if _at_once(load, end):
                self.waiting.deliver()

    # Showing

    def worth(self, load: OpenLoad) -> bool:
        """Whether an implicit load is big or long enough to be shown, or failed."""
        return implicit.worth(load, self.settings)

    def _waits(self, load: OpenLoad) -> bool:
        """Whether an implicit load has only read so far, for a moment or like those before it: then it may be folded when it ends."""
        stage = None if load.failed is not None else implicit.only(load)
        return stage is not None and (load.last_end - load.start < _READ_SHORT or self.repetitions.expected(stage))

    def _fold(self, load: OpenLoad, end: int) -> bool:
        """Count a load that ends with those before it, if all have only read; whether it need not be shown."""
        stage = None if load.failed is not None else implicit.only(load)
        if stage is None:
            return False
        with self.lock:
            folded = self.repetitions.again(stage, None) and load.held is not None
            if folded:
                self.repetitions.add_load(load, end, stage)
        self.on_open()
        return folded

    def _release(self, load: OpenLoad) -> None:
        """Show an implicit load that was held back until it was worth it."""
        held, load.held = load.held, None
        for make in held or ():
            self.waiting.add(make)

    def _show_load(
        self, load: OpenLoad, end: int, facts: counters.IoFacts | None, at_end: counters.Counters | None, failed: Failure | None
    ) -> None:
        """Make the span of a load that ended at *end*. Of one inside another it may be a while later: that time would be the other's."""
        found = attributes.of_load(load, end, facts) | {names.THREAD_NAME: load.thread_name}
        seconds = (end - load.start) / 1e9
        found |= safely(load.surroundings.attributes, end, seconds, attributes.load_size(load.totals) or 0, at_end) or {}
        found |= safely(late.findings, found, load.handle.start, load.epoch(end)) or {}
        self._end_span(load.handle, load.epoch(end), found, failed)
        if load.parent is None:  # it has all that was in it
            told = found | ({} if failed is None else {names.ERROR_TYPE: failed.type})
            self.metrics.ended(told, load.measured, seconds, load.handle.context())

    def _end_span(self, handle: telemetry.SpanHandle, end: int, found: dict[str, Any], error: Failure | None) -> None:
        # An exception passes through every open frame; it is written down once, where it arose.
        record = error is not None and not error.recorded
        handle.end(end, found, error, record=record)
        if error is not None:
            error.recorded = True

    def show(self, load: OpenLoad, handle: telemetry.SpanHandle, end: int, found: Found, error: Failure | None) -> None:
        """
        Have a stage's span made, or keep it until its implicit load is worth showing. The load's lock is held.

        It is made by the sampler, or when the load ends: a quarter of a millisecond after each stage would be the load's.
        """
        if load.held is not None and self.worth(load) and not self._waits(load):
            self._release(load)
        shown = partial(self._show_stage_of, load, handle, end, found, error)
        if load.held is not None:
            load.held.append(shown)
        elif not load.muted:
            self.waiting.add(shown)

    def _show_stage_of(self, load: OpenLoad, handle: telemetry.SpanHandle, end: int, found: Found, error: Failure | None) -> None:
        described = found if isinstance(found, dict) else found()
        if load.name:
            described.setdefault(names.MODEL_NAME, load.name)
        self._end_span(handle, end, described, error)
        load.outermost.measured.add(described, (end - handle.start) / 1e9, None if error is None else error.type)

    # Implicit loads

    def open_implicit(self, question: implicit.Question, start: int, library: str | None = None) -> OpenLoad:
        """Open the load of a stage that no open load claims."""
        load = self._new_load(explicit=False, parent=None, start=start)
        load.origin, load.starter = question.origin, question.starter
        load.held = []
        load.fresh = True
        load.attributes[names.IMPLICIT] = True
        if library is not None:
            load.attributes[names.LOADER] = library
        self._start_root(load, telemetry.here(), self.ended.link(question.module))
        self._register(load)
        return load

    def implicit_loads(self) -> list[OpenLoad]:
        """Open implicit loads, oldest first."""
        return [load for load in self.loads if not load.explicit]

    def _close_quiet(self, where: tuple[int, int, int]) -> None:
        """Close the implicit loads of one thread and task that wait: something else begins there."""
        with self.lock:
            quiet = [load for load in self.implicit_loads() if load.origin[:2] == where[:2] and not load.busy]
        for load in quiet:
            self._finish(load, load.last_end, None)

    def close_finished(self) -> None:
        """Close the implicit loads whose time is up, and tell of repetitions that rest. Called by the sampler."""
        now = time.perf_counter_ns()
        with self.lock:
            repeating = self.repetitions.expected(names.READ)
            finished = [load for load in self.implicit_loads() if implicit.finished(load, self.settings, now, repeating=repeating)]
            told = self.repetitions.take(now)
        for load in finished:
            self._finish(load, load.last_end, None)
        self._tell(told)

    def close_all(self) -> None:
        """Close every implicit load and tell of every repetition: the process is about to end."""
        with self.lock:
            left = self.implicit_loads()
        for load in left:
            self._finish(load, time.perf_counter_ns() if load.busy else load.last_end, None)
        with self.lock:
            told = self.repetitions.take()  # afterwards: some of those that were open are repetitions themselves
        self._tell(told)
        self.metrics.deliver()

    def _tell(self, told: list[tuple[str, implicit.Series]]) -> None:
        """Show repetitions as one load that stands for all of them."""
        for stage, series in told:
            if series.size < self.settings.min_size and series.busy < implicit.SHORT:
                continue
            load = OpenLoad(series.first, time.time_ns() - time.perf_counter_ns(), explicit=False, parent=None)
            load.totals[stage] = series.size
            load.partition.add(stage, series.busy)
            load.partition.other = max(0, series.end - series.first - series.busy)
            load.attributes |= {names.IMPLICIT: True, names.FOLDED: series.count, names.BUSY_TIME: series.busy / 1e9} | series.described
            self._start_root(load, telemetry.no_parent())
            found = attributes.of_load(load, series.end, None)
            load.handle.end(load.epoch(series.end), found, None)
            load.measured.add({names.STAGE: stage, names.SIZE: series.size}, series.busy / 1e9, None)
            self.metrics.ended(found, load.measured, series.busy / 1e9, load.handle.context())

    # Finding the frame of a call

    def frame(self) -> OpenLoad | OpenStage | None:
        """The innermost open frame of this context, or the load that this thread works for."""
        frame = current.get()
        while frame is not None and (frame.closed or frame.load.closed):
            frame = frame.load.parent if frame.load.closed else frame.parent
        if frame is None and self.loads and implicit.caller.starter is None:
            roots = [load for load in self.loads if load.explicit and load.parent is None]
            # A thread that was born during the one open load, and of which nobody knows who started it, works for that load.
            if len(roots) == 1 and threading.get_ident() not in roots[0].threads:
                return roots[0]
        return frame

    def settle_gap(self, load: OpenLoad, now: int) -> None:
        """A gap between stages ends: it was `initialize` if modules were being constructed or imported in it. The load's lock is held."""
        ticks, load.gap = load.gap, []
        if load.partition.shares:
            return
        # Two ticks at least: a gap is given a name as a whole or not at all.
        if len(ticks) < 2 or sum(initializing for initializing, _ in ticks) < _CERTAIN * len(ticks):  # noqa: PLR2004 - as said above
            for _, frame in ticks:
                load.frames[frame] = load.frames.get(frame, 0) + 1
            return
        begun = load.last_end
        load.partition.advance(now)
        load.partition.move(names.INITIALIZE, now - begun)
        load.spans += 1
        handle = load.handle.child(names.INITIALIZE, load.epoch(begun))
        handle.occupy(load.epoch(now))
        self.show(load, handle, load.epoch(now), {names.STAGE: names.INITIALIZE, names.THREAD_NAME: load.thread_name}, None)
