"""Coarse stages: one span each, unless they are short, repeated or inside the same stage."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.facts import counters
from loadspan.instrument import attributes, caching, implicit
from loadspan.instrument.described import sample
from loadspan.instrument.destination import merge
from loadspan.instrument.frames import OpenLoad, OpenStage, current
from loadspan.instrument.loads import Loads
from loadspan.instrument.tallies import SPAN_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.instrument.failure import Failure

_REPEATABLE = frozenset({names.LOAD_STATE_DICT, names.TO_DEVICE, names.CONVERT})

_APART = 100_000_000  # nanoseconds between two short calls after which they are shown apart

_DONE = 4096  # calls on modules that an implicit load remembers, to know a repetition of one

SHORT = 1_000_000
"""Nanoseconds under which a coarse call is tallied."""


class Stages(Loads):
    """The open coarse stages of this process."""

    def open_stage(self, name: str, describe: Callable[[OpenStage], Any] | None = None) -> OpenStage | None:
        """
        Open a coarse stage as the innermost frame of this context. None if nobody records.

        *describe* fills in what is known beforehand; it is asked before the stage is placed, since an implicit load is found by it.
        """
        begun = time.perf_counter_ns()
        frame = self.frame()
        if frame.load.muted if frame is not None else not self.recording():
            return None
        stage = OpenStage(name)
        if describe is not None:
            describe(stage)
        if stage.cancelled:
            return None
        stage.start = time.perf_counter_ns()
        if frame is None:
            frame = self._place(stage)
            if frame is None and not stage.folded:
                return None
        if frame is None:
            pass  # counted as one of a series when it ends
        elif name in frame.stages:
            stage.parent = frame  # counted when it ends; the outermost has the time
        else:
            self._enter(stage, frame, begun)
        return stage

    def _place(self, stage: OpenStage) -> OpenLoad | None:
        """The implicit load of a stage, opened if need be; None if the call is a repetition to be folded or may not open one."""
        question = implicit.Question(stage.name, stage.module, stage.things, stage.paths)
        with self.lock:
            load = implicit.match(self.implicit_loads(), question, self.settings, stage.start)
            bare = stage.module is not None and stage.name in _REPEATABLE and (load is None or question.repeats(load))
            if load is None and not stage.opens:
                return None
            if bare and self.repetitions.again(stage.name, stage.module):
                stage.folded = True
                return None
            if load is None or bare:
                load = self.open_implicit(question, stage.start, stage.library)
            load.kept = stage.start
            load.paths.update(stage.paths)  # now: other threads may begin with other shards before this one is read
            return load

    def _enter(self, stage: OpenStage, frame: OpenLoad | OpenStage, begun: int) -> None:
        load = stage.load = frame.load
        stage.parent = frame
        stage.stages = frame.stages | {stage.name}
        outer = frame.stage
        above = load.handle if outer is None or outer.handle is None or outer.tallied else outer.handle
        stage.handle = above.child(stage.name, load.epoch(stage.start))
        with load.lock:
            if load.spans >= SPAN_LIMIT:
                stage.tallied = True
                load.folded += 1
            else:
                load.spans += 1
        stage.token = current.set(stage)
        if load.explicit and not stage.tallied:
            # Others' spans belong under this one. Not under an implicit load, which the host's trace knows nothing of.
            stage.context_token = stage.handle.attach()
        if stage.name == names.CACHE:
            stage.asked = self._come_so_far(stage.parent)
        stage.met = load.surroundings.meet(stage.paths)
        stage.declared = stage.size or 0
        self._others(stage)
        stage.before = counters.of_thread(stage.thread)
        stage.before_process = counters.of_process()
        with load.lock:
            # Only now: what all this took us is not the host's.
            stage.start = time.perf_counter_ns()
            if load.fresh:
                load.restart(stage.start)
            stage.handle.restart(load.epoch(stage.start))
            stage.nodes = self.nodes(stage.name, frame)
            self.enter(load, stage.nodes, stage.start, begun)

    def _others(self, stage: OpenStage) -> None:
        """Note stages of other work that run at the same time: then the process's counters are nobody's alone."""
        with self.lock:
            for other in self.stages:
                if other.thread != stage.thread and not other.contains(stage):
                    other.alone = stage.alone = False
            self.stages.append(stage)

    def close_stage(self, stage: OpenStage, error: BaseException | None = None, end: int | None = None) -> None:
        """Close a coarse stage that ended at *end*, by default now; its description is complete."""
        if stage.arriving is not None:
            stage.size, stage.arriving = stage.size_known, None
        end = time.perf_counter_ns() if end is None else end
        try:
            self._close(stage, error, end)
        finally:
            stage.let_go()
            stage.asked = []
        self.on_close()
        self.spent(stage.load, [node.parent for node in stage.nodes], end)

    def _close(self, stage: OpenStage, error: BaseException | None, end: int) -> None:
        if stage.folded:
            with self.lock:
                self.repetitions.add(stage.name, stage.module, stage.start, end, None if error is not None else stage.size)
            self.on_open()
            return
        if stage.handle is None:
            self._count_inner(stage, error)
            return
        self.leave_context(stage)
        self._count(stage, end)
        load = stage.load
        if stage.handle.name != stage.name:
            stage.handle.rename(stage.name)  # what it was is known only now
        with load.lock:
            stage.closed = True
            for tally in stage.tallies.values():
                tally.interrupt()
            self.collect(stage)
            self.leave(load, stage.nodes, end)
            stage.exclusive = stage.nodes[0].exclusive if stage.nodes else 0
            self.settle(load, stage.nodes, None if stage.cancelled else stage.name)
        outer = stage.parent.stage if stage.parent is not None else None
        if outer is not None and outer.thread == stage.thread:
            outer.nested += end - stage.start
        with load.lock:
            if load.closed:
                return
            if stage.cancelled:
                self._without_span(load, stage)
                return
            failure = self.failure(stage, error)
            self._learn(load, stage, failure, end)
            self._show_stage(load, stage, failure, end)
        if stage.asked and error is None:
            self._note_answer(stage)

    def _come_so_far(self, frame: OpenLoad | OpenStage | None) -> list[tuple[OpenLoad, caching.Reading]]:
        """The loads that *frame* is in, and how far each has come."""
        found = []
        while frame is not None:
            load = frame.load
            with load.lock:
                self.collect(frame)
                load.partition.advance(time.perf_counter_ns())
                if frame is load:
                    found.append((load, caching.Reading.of(load)))
            frame = frame.parent
        return found

    def _note_answer(self, stage: OpenStage) -> None:
        """Tell the loads of a cache stage what it found, and how far they have come."""
        before = [reading for _, reading in stage.asked]
        for (load, now), then in zip(self._come_so_far(stage.parent), before, strict=True):
            with load.lock:
                load.asked = load.asked or caching.Asked()
                load.asked.note(stage, then, now)

    def _show_stage(self, load: OpenLoad, stage: OpenStage, error: Failure | None, end: int) -> None:
        short = error is None and (stage.step or end - stage.start < SHORT)
        if stage.tallied or (short and not stage.handle_used):
            self._tally_stage(load, stage, error, end)
            return
        self.flush_tallies(load, stage)
        size = stage.size_known
        if size and error is None:
            self.moved(load, stage.name, size, stage.parent, lazy=stage.deferred)
        if stage.handle is not None:
            self._make_room(load, stage)
            stage.handle.occupy(load.epoch(end))
            full_paths = self.settings.full_paths
            self.show(load, stage.handle, load.epoch(end), lambda: attributes.of_stage(stage, end, full_paths=full_paths), error)

    def _make_room(self, load: OpenLoad, stage: OpenStage) -> None:
        """Show what was tallied beside a stage that gets a span before it began: one bar over both would hide what ran when."""
        for tally in (stage.parent or load).tallies.values():
            self.collect_one(tally)
            before = tally.count and not tally.active and tally.last <= stage.start
            if before and load.spans < SPAN_LIMIT // 2 and tally.owned() > SHORT:
                load.spans += 1
                self.emit(load, tally)

    def _count(self, stage: OpenStage, end: int) -> None:
        """Read the counters of a stage that ended at *end*."""
        if stage.destination is not None:
            size, busy = stage.size_known, end - stage.start - stage.nested
            stage.destination.end(end, size / (busy / 1e9) if size and busy > 0 and not stage.deferred else 0.0)
        with self.lock, suppress(ValueError):
            self.stages.remove(stage)
        if stage.before is None or stage.before_process is None:
            return
        own = counters.difference(stage.before, counters.of_thread(threading.get_ident()))
        after = stage.load.after = counters.of_process()
        if not stage.load.explicit:  # which may end with it
            stage.load.surroundings.look_at_disks()
        if stage.alone:
            whole = counters.difference(stage.before_process, after)
            stage.finished = counters.with_blocked(whole, own)
        else:
            stage.finished = own

    def _learn(self, load: OpenLoad, stage: OpenStage, error: Failure | None, end: int) -> None:
        """Take over from a stage what its load has to know. The load's lock is held."""
        load.failed = error
        load.paths.update(stage.paths)
        if not load.explicit and stage.library is not None:
            # It may have begun with reads of Python itself, or of the files' library: the one that knows adapters is the loader.
            if stage.name == names.MERGE_LORA:
                load.attributes[names.LOADER] = stage.library
            load.attributes.setdefault(names.LOADER, stage.library)
        if not load.explicit:  # nothing is ever looked for in an explicit one
            load.learn((*sample(stage.things), *sample(stage.outputs)))
        if stage.module is not None:
            load.learn((stage.module,))
            if not load.explicit and len(load.done) < _DONE:
                load.done.add((stage.name, id(stage.module)))
            with self.lock:
                self.repetitions.ended(stage.name, stage.module, end - stage.start)
        if error is None:
            implicit.consumed(load, stage.name, stage.things, stage.outputs)
        there = stage.destination
        if there is not None and error is None:
            merge(load.destinations, there)

    def _count_inner(self, stage: OpenStage, error: BaseException | None) -> None:
        """A stage inside the same stage is counted there, not spanned."""
        outer = self.same(stage.parent, stage.name)
        if outer is None or stage.cancelled:
            return
        with outer.load.lock:
            outer.count_inner(stage.size_known if error is None else None)
            outer.paths.update(stage.paths)
            if not outer.load.explicit:  # in which nothing is looked for: one tensor after the other goes, as the host means it to
                outer.outputs.extend(sample(stage.outputs))
            outer.deferred = outer.deferred or stage.deferred
            for key, value in stage.attributes.items():
                outer.attributes.setdefault(key, value)

    def same(self, frame: OpenLoad | OpenStage | None, name: str) -> OpenStage | None:
        """The open stage *name* that *frame* is or is in."""
        while isinstance(frame, OpenStage):
            if frame.name == name:
                return frame
            frame = frame.parent
        return None

    def _tally_stage(self, load: OpenLoad, stage: OpenStage, error: Failure | None, end: int) -> None:
        """Tally a stage that is not worth a span, and what was tallied in it. The load's lock is held."""
        parent = self._without_span(load, stage)
        tally = self.tally(parent, stage.name)
        answer = tally.attributes.get(names.CACHE_HIT) != stage.attributes.get(names.CACHE_HIT)
        apart = tally.count and not tally.active and (answer or stage.start - tally.last > _APART)
        if apart and not stage.step and load.spans < SPAN_LIMIT // 2:
            load.spans += 1
            self.emit(load, tally)  # a bar over both would cover what ran between them
            tally.described = tally.described and not answer
        tally.add(stage.start, end, stage.size_known if error is None else None)
        tally.exclusive += stage.exclusive
        tally.describe(stage.attributes)
        if stage.destination is not None:
            merge(tally.destinations, stage.destination)
        tally.met += stage.met
        tally.paths.update(stage.paths)
        tally.threads[stage.thread] = stage.thread_name
        tally.deferred = tally.deferred or stage.deferred
        tally.rated = tally.rated and stage.rated
        tally.error = tally.error or error
        if stage.finished is not None:
            tally.charge_facts(stage.finished)

    def _without_span(self, load: OpenLoad, stage: OpenStage) -> OpenLoad | OpenStage:
        """Give back the spans reserved for a stage that gets none; returns the parent, which takes over what was tallied in it."""
        load.spans -= len(stage.tallies) + (not stage.tallied)
        parent = load if stage.tallied or stage.parent is None else stage.parent
        for inner in stage.tallies.values():
            if inner.count:
                self.tally(parent, inner.name, inner.apart).take(inner)
            if not inner.active:
                self.settle(load, inner.nodes, inner.name)
        return parent
