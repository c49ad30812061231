"""
Which load a stage belongs to when nobody declared one, and when such a load ends.

A load that nobody declared begins with its first stage. It ends by meaning, not only by silence:

- *Pending*: bytes were brought (read, decrypted, deserialized) and nothing has consumed them; tensors that no longer exist are not pending.
  A quiet load with pending bytes waits for `pending_timeout`, one without for `idle_timeout`.
- A stage joins a load when it works on the same module, tensors, buffer or file, or when the load is pending and thread, task and current
  span are the same. Otherwise it opens a load of its own.
- The same consumer on the same module again, with nothing new brought in between, is a repetition (a training loop) and no load at all.
- A load that has only read, or only asked caches, may as well be a program going through its data. It takes no file that comes after a
  pause or after a minute, and no read at all after ten; those that follow each other within a minute are repetitions, too.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument import telemetry
from loadspan.instrument.described import reference, sample

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterable, Sequence

    from loadspan.instrument.continuing import Register
    from loadspan.instrument.frames import OpenLoad
    from loadspan.settings import Settings

_SHARD = re.compile(r"\d+")
_REMEMBERED = 64
_SERIES = 1024
_BROUGHT = 256  # files, or tensors that came one by one
_NANOSECONDS = 1_000_000_000
REPEAT_WINDOW = 60 * _NANOSECONDS
_REPEATS_SHOWN = 2
_OTHER_READS = 60 * _NANOSECONDS
_READS = 600 * _NANOSECONDS
SHORT = 10_000_000
"""Nanoseconds under which a load that moved little is dropped."""
_ALONE = (names.READ, names.DOWNLOAD, names.CACHE)
"""Stages that may as well be a program going through its data, where there are no others."""


class _Caller(threading.local):
    by: int | tuple[int, int] | None = None
    """Thread that started this one, or submitted the job it runs; with the asyncio task, if it was one that did."""

    @property
    def starter(self) -> int | None:
        """That thread."""
        return self.by[0] if isinstance(self.by, tuple) else self.by

    @property
    def task(self) -> tuple[int, int] | None:
        """That thread and its task, if it was one."""
        return self.by if isinstance(self.by, tuple) else None


caller = _Caller()


def task() -> int:
    """Identity of the running asyncio task, 0 where there is none."""
    asyncio = sys.modules.get("asyncio")
    loop = getattr(asyncio, "_get_running_loop", None)  # the public twin raises where no loop runs; absent while it is being imported
    return 0 if asyncio is None or loop is None or loop() is None else id(asyncio.current_task())


def origin() -> tuple[int, int, int]:
    """Who is calling: thread, asyncio task and current span. What a task runs in a thread (`asyncio.to_thread`) is called by the task."""
    thread_and_task = caller.task or (threading.get_ident(), task())
    return *thread_and_task, telemetry.current_span_id()


def same_checkpoint(path: str, other: str) -> bool:
    """Whether two files are one file or shards of one checkpoint: names that differ in numbers only, in one folder."""
    if path == other:
        return True
    left, right = _SHARD.findall(path), _SHARD.findall(other)
    # Zero-padded numbers are how shards are counted; adapter-1 and adapter-2 are two models.
    padded = any(len(number) > 1 and number.startswith("0") for number in left + right)
    return padded and _SHARD.sub("#", path) == _SHARD.sub("#", other)


@dataclass(slots=True)
class Question:
    """What is known of a stage when it begins."""

    stage: str
    module: Any = None
    things: Sequence[Any] = ()
    """Tensors, buffers, file objects it works on."""
    paths: Iterable[str] = ()
    origin: tuple[int, int, int] = field(default_factory=origin)
    starter: int | None = field(default_factory=lambda: caller.starter)

    def reads_for(self, load: OpenLoad) -> bool:
        """
        Whether a stage reads a file of *load* for it: the file or a shard beside it.

        In another thread only if that works for the load: it was started by the loading one, or is one of a pool that reads the shards.
        Two requests that load the same file at once are two loads.
        """
        known = tuple(load.paths)
        if load.origin[:2] == self.origin[:2] or self.starter in (None, load.origin[0]):
            return any(same_checkpoint(path, other) for path in self.paths for other in known)
        return self.starter == load.starter and any(
            same_checkpoint(path, other) and path not in known for path in self.paths for other in known
        )

    def repeats(self, load: OpenLoad) -> bool:
        """Whether *load* has had this very consumer on this very module and waits for nothing more."""
        return (self.stage, id(self.module)) in load.done and not load.pending()


def match(loads: Sequence[OpenLoad], question: Question, settings: Settings, now: int) -> OpenLoad | None:
    """The open implicit load that a stage belongs to; the newest of several, the best evidence first."""
    newest = [load for load in loads[::-1] if question.stage not in _ALONE or not _has_read(load, question, settings, now)]
    tests: tuple[Callable[[OpenLoad], bool], ...] = (
        lambda load: any(load.knows(thing) for thing in question.things),
        question.reads_for,
        lambda load: load.origin == question.origin and _goes_on(load, question.stage, settings, now),
        lambda load: question.module is not None and load.knows(question.module),
    )
    return next((load for test in tests for load in newest if test(load)), None)


def only(load: OpenLoad) -> str | None:
    """Stage of a load that consists of nothing but reads so far, or of nothing but caches that were asked."""
    stages = load.sizes().keys() | load.partition.totals.keys()
    return next((stage for stage in _ALONE if stages == {stage}), None)


def worth(load: OpenLoad, settings: Settings) -> bool:
    """Whether an implicit load is big or long enough to be shown, or failed. To attach memory and use none of it is no load."""
    if only(load) == names.CACHE:
        return False
    return load.failed is not None or sum(load.sizes().values()) >= settings.min_size or load.last_end - load.start >= SHORT


def _has_read(load: OpenLoad, question: Question, settings: Settings, now: int) -> bool:
    """Whether a load that has only read is to be left alone by a further read."""
    if only(load) is None:
        return False
    known = tuple(load.paths)
    if not question.paths or any(path in known for path in question.paths):
        return now - load.start > _READS
    paused = now - load.last_end > settings.idle_timeout * _NANOSECONDS
    sharded = any(same_checkpoint(path, other) for path in question.paths for other in known)
    return now - load.start > _OTHER_READS or (paused and not sharded)


def _goes_on(load: OpenLoad, stage: str, settings: Settings, now: int) -> bool:
    """Whether a stage of unknown subject, called where *load* was called, is its next step."""
    if not load.pending():
        # Consumers in a row with nothing brought before them, for example `.to()` on one component after the other.
        bare = stage not in names.SOURCE_STAGES and not names.SOURCE_STAGES & load.sizes().keys()
        return load.busy or bare
    if stage in names.SOURCE_STAGES and not load.raw_pending:
        # New bytes while tensors wait: the next file of this load if it follows soon, another load if it comes after a pause.
        return now - load.last_end <= settings.idle_timeout * _NANOSECONDS
    return True


def finished(load: OpenLoad, settings: Settings, now: int, *, repeating: bool = False) -> bool:
    """Whether an implicit load that is quiet has been so for long enough; *repeating* if others before it have only read."""
    if load.busy:
        return False
    waits = load.pending() and not (repeating and only(load))
    wait = settings.pending_timeout if waits else settings.idle_timeout
    return now - max(load.last_end, load.kept) >= wait * _NANOSECONDS


def consumed(load: OpenLoad, stage: str, things: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Note what a stage that ended well left pending."""
    if stage in (names.READ, names.DECRYPT, names.DOWNLOAD) or (stage == names.CACHE and outputs):
        load.raw_pending = True
    elif stage == names.DESERIALIZE:
        load.raw_pending = False
        brought = {id(output): ref for output in sample(outputs) if (ref := reference(output)) is not None}
        load.pending_tensors = [*load.pending_tensors, brought][-_BROUGHT:]
    elif stage in (names.LOAD_STATE_DICT, names.MERGE_LORA, names.TO_DEVICE):
        load.raw_pending = False
        waiting = {key for brought in load.pending_tensors for key, ref in brought.items() if ref() is not None}
        used = waiting.intersection(map(id, things))
        # What was brought together is consumed together. Nothing recognized: it was renamed or copied, and all is taken for consumed.
        left = [brought for brought in load.pending_tensors if used.isdisjoint(brought)]
        load.pending_tensors = left if used and stage == names.LOAD_STATE_DICT else []


class Ended:
    """Modules of loads that ended, so that a later `.to()` can be linked to the load that filled the module."""

    def __init__(self) -> None:
        self._modules: OrderedDict[int, tuple[weakref.ref[Any], Any]] = OrderedDict()

    def remember(self, load: OpenLoad, span_context: Any) -> None:
        """Remember what *load* worked on."""
        for key, ref in list(load.subjects.items()):
            if not isinstance(ref, int) and hasattr(type(ref()), "load_state_dict"):  # of the type: an object may make its attributes up
                self._modules[key] = (ref, span_context)
                self._modules.move_to_end(key)
        while len(self._modules) > _REMEMBERED:
            self._modules.popitem(last=False)

    def link(self, module: Any) -> Any:
        """Span context of the load that filled *module*, None where there was none."""
        ref, context = self._modules.get(id(module), (None, None))
        return context if ref is not None and ref() is module else None


@dataclass(slots=True)
class Series:
    """Calls of one consumer on one module that were folded."""

    module: weakref.ref[Any] | None
    shown: int = 0
    took: int = 0
    last: int = 0
    count: int = 0
    first: int = 0
    end: int = 0
    busy: int = 0
    size: int = 0
    described: dict[str, Any] = field(default_factory=dict)
    """Attributes of the load that stands for them."""


class Repetitions:
    """
    Consumers that run again and again on one module with nothing new brought in between. Guarded by the recorder's lock.

    Loads that have only read are a series of their own, of no module.
    """

    def __init__(self) -> None:
        self._series: OrderedDict[tuple[str, int], Series] = OrderedDict()
        self.continuing: Register | None = None

    def __bool__(self) -> bool:
        return any(series.count for series in self._series.values()) or bool(self.continuing)

    def again(self, stage: str, module: Any) -> bool:
        """Whether a call of *stage* on *module* is a repetition to be folded rather than shown."""
        now = time.perf_counter_ns()
        key = (stage, id(module))
        series = self._series.get(key)
        if series is None or (module is not None and (series.module is None or series.module() is not module)):
            series = self._series[key] = Series(reference(module))
        # A call of a second or more is worth its own load each time, for example a model moved off and on a device.
        soon = now - series.last < REPEAT_WINDOW and series.took < _NANOSECONDS
        series.shown = series.shown + 1 if soon else 1
        series.last = now
        self._series.move_to_end(key)
        while len(self._series) > _SERIES:
            self._series.popitem(last=False)
        return series.shown > _REPEATS_SHOWN

    def expected(self, stage: str) -> bool:
        """Whether the next load that has only read would be a repetition."""
        series = self._series.get((stage, id(None)))
        return series is not None and series.shown >= _REPEATS_SHOWN and time.perf_counter_ns() - series.last < REPEAT_WINDOW

    def ended(self, stage: str, module: Any, took: int) -> None:
        """Note how long a call took that was shown as a load."""
        series = self._series.get((stage, id(module)))
        if series is not None:
            series.took = took

    def add(self, stage: str, module: Any, start: int, end: int, size: int | None) -> None:
        """Count a folded call."""
        series = self._series.get((stage, id(module)))
        if series is None:
            return
        if not series.count:
            series.first = start
        series.count += 1
        series.last = series.end = end
        series.took = end - start if module is not None else 0
        series.busy += end - start
        series.size += size or 0

    def add_load(self, load: OpenLoad, end: int, stage: str) -> None:
        """Count a folded load of nothing but *stage*."""
        self.add(stage, None, load.start, end, load.sizes().get(stage))
        series = self._series[stage, id(None)]
        series.busy -= end - load.start - load.partition.totals.get(stage, 0)

    def take(self, now: int | None = None) -> list[tuple[str, Series]]:
        """Series to be told of: those that rest, or all where *now* is None. Each is told once."""
        told = []
        for key, series in list(self._series.items()):
            resting = now is None or now - series.last > REPEAT_WINDOW // 2 or series.end - series.first > REPEAT_WINDOW
            if series.count and resting:
                told.append((key[0], series))
                self._series[key] = Series(series.module, series.shown, series.took, series.last)
            elif not series.count and (now is None or now - series.last > REPEAT_WINDOW):
                del self._series[key]
        return [*told, *(() if self.continuing is None else self.continuing.take(now))]
