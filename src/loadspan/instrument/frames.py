"""
What is open: loads and the coarse stages in them, each a frame of a chain that follows the host's context.

Plain mutable records. The recorder opens and closes them, targets fill them in, `attributes` turns them into span attributes.
"""

from __future__ import annotations

import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.facts import counters
from loadspan.guard import safely
from loadspan.instrument.described import Described, lasting, reference
from loadspan.instrument.metrics import Measured
from loadspan.instrument.partition import Node, Partition
from loadspan.instrument.stack import imports

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterable, Sequence

    from loadspan.instrument.caching import Asked, Reading
    from loadspan.instrument.destination import Destination
    from loadspan.instrument.failure import Failure
    from loadspan.instrument.surroundings import Surroundings
    from loadspan.instrument.tally import Tally
    from loadspan.instrument.telemetry import SpanHandle

_KNOWN = 4096  # objects by which a load is recognized: the last ones, in well under a megabyte

current: ContextVar[OpenLoad | OpenStage | None] = ContextVar("loadspan_frame", default=None)
"""The innermost open frame of this context."""


class OpenStage(Described):
    """A coarse stage that is open."""

    __slots__ = (
        "after",
        "alone",
        "arriving",
        "asked",
        "before",
        "before_process",
        "brought",
        "cancelled",
        "closed",
        "context_token",
        "declared",
        "deferred",
        "destination",
        "exclusive",
        "finished",
        "folded",
        "handle",
        "inner_attributes",
        "inner_count",
        "inner_size",
        "library",
        "load",
        "met",
        "name",
        "nested",
        "nodes",
        "opens",
        "parent",
        "rated",
        "stages",
        "start",
        "step",
        "tallied",
        "thread",
        "thread_name",
        "token",
    )

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.load: OpenLoad = _NOWHERE
        self.parent: OpenLoad | OpenStage | None = None
        self.start = 0
        self.stages: frozenset[str] = frozenset()
        self.folded = False
        self.library: str | None = None
        """Library whose function this is."""
        self.opens = True
        """Whether it may open an implicit load."""
        self.rated = True
        """Whether size / time is a throughput; not where nothing moved."""
        self.brought = 0
        """Bytes deserialized inside this call."""
        self.met: list[str] = []
        """Files of its that the load had not read before."""
        self.destination: Destination | None = None
        """Device to which it brings bytes, where that is not the host."""
        self.asked: list[tuple[OpenLoad, Reading]] = []
        """Of a cache stage: the loads that it is in, and how far they had come."""
        self.arriving: Callable[[], int | None] | None = None
        """Tells the bytes that have come so far, where they come while it runs; asked a last time when it ends."""
        self.declared = 0
        """Bytes that it was said to move when it began: they have not moved yet."""
        self.nodes: list[Node] = []
        self.deferred = False
        self.tallied = False
        """Whether its load had no span left for it."""
        self.step = False
        """Whether it is one step of a generator: one of many, however long it takes."""
        self.cancelled = self.closed = False
        """Closed: threads that were started in it may go on, and are in what is around it."""
        self.alone = True
        self.inner_attributes: dict[str, Any] | None = None
        """What calls of the same stage in it have in common."""
        self.inner_size: int | None = None
        self.inner_count = 0
        self.exclusive = 0
        """Nanoseconds that the partition of its load gave to it alone."""
        self.nested = 0
        """Nanoseconds of other stages inside this call, in its own thread."""
        self.thread = threading.get_ident()
        self.thread_name = threading.current_thread().name
        self.before: counters.Counters | None = None
        self.before_process: counters.Counters | None = None
        self.finished: counters.IoFacts | None = None
        self.handle: SpanHandle | None = None
        self.token: Any = None
        self.context_token: Any = None

    @property
    def stage(self) -> OpenStage | None:
        """The stage that this frame is."""
        return self

    @property
    def above(self) -> Sequence[Node | None]:
        """Nodes that what is called here has above it, in its load and in each load around that."""
        return self.nodes

    @property
    def size_known(self) -> int | None:
        """Bytes that this call told of, else those of calls of the same stage in it; of a merge also those that were deserialized in it."""
        if self.size is not None:
            return self.size
        if self.arriving is not None:
            return safely(self.arriving)
        if self.inner_size is None and self.name == names.MERGE_LORA and self.brought:
            return self.brought
        return self.inner_size

    @property
    def handle_used(self) -> bool:
        """Whether its span exists because somebody looked at it."""
        return self.handle is not None and self.handle.started

    def count_inner(self, size: int | None) -> None:
        """Count a call of the same stage inside this one. The load's lock is held."""
        self.inner_count += 1
        if size is not None:
            self.inner_size = (self.inner_size or 0) + size

    def describe_inner(self, attributes: dict[str, Any]) -> None:
        """Keep of *attributes* what all calls of the same stage inside this one have in common. The load's lock is held."""
        known = self.inner_attributes
        self.inner_attributes = attributes if known is None else {key: known[key] for key in known if attributes.get(key) == known[key]}

    def contains(self, other: OpenStage) -> bool:
        """Whether *other* is work of this call."""
        frame = other.parent
        while isinstance(frame, OpenStage):
            if frame is self:
                return True
            frame = frame.parent
        return False


class OpenLoad(Described):
    """A load that is open, explicit or implicit."""

    __slots__ = (
        "__weakref__",
        "after",
        "anchor",
        "asked",
        "before",
        "closed",
        "context_token",
        "destinations",
        "done",
        "explicit",
        "failed",
        "folded",
        "frames",
        "fresh",
        "gap",
        "handle",
        "held",
        "imports",
        "inside",
        "kept",
        "last_end",
        "later",
        "lazy",
        "lock",
        "measured",
        "muted",
        "name",
        "origin",
        "parent",
        "partition",
        "pending_tensors",
        "raw_pending",
        "solo",
        "spans",
        "stages",
        "start",
        "starter",
        "subjects",
        "surroundings",
        "thread",
        "thread_name",
        "threads",
        "token",
        "totals",
    )

    def __init__(  # noqa: PLR0915 - a record of many fields, none of which is computed
        self, start: int, anchor: int, *, explicit: bool, parent: OpenLoad | OpenStage | None
    ) -> None:
        super().__init__()
        self.name: str | None = None
        self.explicit = explicit
        self.parent = parent
        self.start = start
        self.anchor = anchor
        """Nanoseconds since the epoch at zero of the monotonic clock: taken once, so a clock step in a load moves nothing."""
        self.stages: frozenset[str] = frozenset()
        self.lock = threading.RLock()
        self.partition = Partition(start)
        self.asked: Asked | None = None
        """What caches had for it, if any was asked."""
        self.measured = Measured()
        self.totals: dict[str, int] = {}
        """Bytes per stage name."""
        self.lazy: dict[str, int] = {}
        """Of these, the bytes of calls that only announced them."""
        self.spans = 1
        self.folded = 0
        self.closed = False
        self.failed: Failure | None = None
        """What is kept of the exception of the last stage, if it failed."""
        self.last_end = start
        self.fresh = False
        """True for an implicit load that no call has entered yet."""
        self.thread = threading.get_ident()
        self.solo = self.thread
        """The one thread that has called anything in this load, 0 once a second has: while there is one, its fine calls can be quick."""
        self.inside: Tally | None = None
        """Tally of the quick call that runs now."""
        self.kept = start
        """When a call last found that it belongs here: its time is not up before the call has entered it."""
        self.thread_name = threading.current_thread().name
        self.threads: set[int] = set()
        self.muted = False
        """True where the span was sampled out: nothing below it is recorded."""
        self.before: counters.Counters
        self.surroundings: Surroundings
        self.destinations: dict[tuple[str, int | None], Destination] = {}
        """Devices that bytes were brought to, by type and index."""
        self.handle: SpanHandle
        self.held: list[Any] | None = None
        """Finished spans of an implicit load that is too small to be shown so far."""
        self.token: Any = None
        self.context_token: Any = None
        self.origin: tuple[Any, ...] = ()
        self.starter: int | None = None
        self.raw_pending = False
        self.pending_tensors: list[dict[int, weakref.ref[Any]]] = []
        """For each call that brought some a sample of them, by identity."""
        self.after: counters.Counters | None = None
        """The process's counters when a stage last ended."""
        self.subjects: dict[int, weakref.ref[Any] | int] = {}
        self.done: set[tuple[str, int]] = set()
        """Stages and modules (by id) that consumers have run on."""
        self.gap: list[tuple[bool, str]] = []
        """For each tick of the present gap: was a module being constructed or imported, and the frame that ran."""
        self.imports = imports(sys._getframe())  # noqa: SLF001 - as fast as it can be had
        """Imports under way in its thread when it was opened: in a program that loads while it is imported."""
        self.later: list[Callable[[OpenLoad], None]] = []
        """Readings that were not ready when their stage ended, tried again when the load does."""
        self.frames: dict[str, int] = {}
        """Ticks per frame that ran in no stage."""

    @property
    def load(self) -> OpenLoad:
        """The load that this frame is in: itself. No attribute, which would keep it until the next garbage collection."""
        return self

    @property
    def stage(self) -> OpenStage | None:
        """The stage that this frame is: none."""
        return None

    @property
    def above(self) -> Sequence[Node | None]:
        """Nodes that what is called here has above it, in this load (none) and in each load around it."""
        return (None, *self.parent.above) if self.parent is not None else (None,)

    def known_as(self, name: str | None) -> None:
        """Give the model its name, as the program or the loader calls it."""
        self.name = name
        if name:
            self.attributes[names.MODEL_NAME] = self.attributes[names.REQUEST_MODEL] = name

    @property
    def outermost(self) -> OpenLoad:
        """The load that this one is part of: itself, if it is in none."""
        load = self
        while load.parent is not None:
            load = load.parent.load
        return load

    def sizes(self) -> dict[str, int]:
        """Bytes per stage name so far, running tallies included."""
        found = dict(self.totals)
        for tally in list(self.tallies.values()):
            if size := tally.so_far():
                found[tally.name] = found.get(tally.name, 0) + size
        return found

    def progress(self, stages: Iterable[OpenStage]) -> int:
        """Bytes of the stage that has moved most so far, what runs in *stages*, the open ones, included."""
        stages = tuple(stages)
        frames: tuple[OpenLoad | OpenStage, ...] = (self, *stages)
        with self.lock:
            found = dict(self.totals)
            for frame in frames:
                for tally in list(frame.tallies.values()):
                    found[tally.name] = found.get(tally.name, 0) + tally.so_far()
            for stage in stages:
                found[stage.name] = found.get(stage.name, 0) + (stage.size_known or 0)
        return max((size for name, size in found.items() if name in names.SOURCE_STAGES), default=0) or max(found.values(), default=0)

    @property
    def busy(self) -> bool:
        """Whether a call of this load runs now."""
        return bool(self.partition.shares) or self.inside is not None

    def begin_counting(self) -> None:
        """Read the counters that it is compared with when it ends."""
        self.before = counters.of_thread(self.thread)
        self.surroundings.before = counters.of_process()

    def restart(self, start: int) -> None:
        """Begin at *start*: opening took us some time, which is not the load's."""
        self.fresh = False
        self.start = self.last_end = self.kept = start
        self.partition = Partition(start)
        self.handle.restart(self.epoch(start))

    def epoch(self, at: int) -> int:
        """Nanoseconds since the epoch of the monotonic time *at*."""
        return self.anchor + at

    def pending(self) -> bool:
        """Whether bytes were brought that nothing has consumed and that still exist."""
        if self.raw_pending:
            return True
        self.pending_tensors = [brought for brought in self.pending_tensors if any(ref() is not None for ref in brought.values())]
        return bool(self.pending_tensors)

    def knows(self, thing: Any) -> bool:
        """Whether *thing* was made or worked on by a stage of this load. Nothing is kept alive for it."""
        known = self.subjects.get(id(thing))
        if isinstance(known, int):
            return isinstance(thing, bytes) and len(thing) == known
        there = known() if known is not None else None
        return there is not None and there is lasting(thing)

    def learn(self, things: Iterable[Any]) -> None:
        """Recognize *things* later: by weak reference, bytes by identity and size."""
        for thing in things:
            known = len(thing) if isinstance(thing, bytes) else reference(thing)
            if known is not None:
                self.subjects.pop(id(thing), None)
                self.subjects[id(thing)] = known
        while len(self.subjects) > _KNOWN:
            del self.subjects[next(iter(self.subjects))]


_NOWHERE = OpenLoad(0, 0, explicit=False, parent=None)
_NOWHERE.closed = True
