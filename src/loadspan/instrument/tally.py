"""How fine calls are counted: count, bytes, busy time, extent, concurrency, the slowest five. One tally, whatever the number of calls."""

from __future__ import annotations

import copy
import heapq
import threading
from typing import TYPE_CHECKING, Any

from loadspan.instrument.destination import merge

if TYPE_CHECKING:
    from loadspan.facts.counters import IoFacts
    from loadspan.instrument.bursts import Burst
    from loadspan.instrument.destination import Destination
    from loadspan.instrument.failure import Failure
    from loadspan.instrument.frames import OpenLoad, OpenStage
    from loadspan.instrument.partition import Node
    from loadspan.instrument.patching import Target

SLOWEST = 5
"""Calls that are remembered by name."""


class Tally:
    """Fine calls of one stage under one parent. Guarded by the lock of its load."""

    __slots__ = (
        "active",
        "apart",
        "attributes",
        "begun",
        "blocked",
        "bursts",
        "busy",
        "concurrency",
        "count",
        "deferred",
        "described",
        "destinations",
        "entered",
        "error",
        "exclusive",
        "first",
        "joint",
        "last",
        "load",
        "major",
        "measured",
        "met",
        "minor",
        "name",
        "nodes",
        "on_cpu",
        "parent",
        "paths",
        "quick",
        "rated",
        "row",
        "size",
        "sized",
        "slowest",
        "storage_read",
        "threads",
        "unseen",
        "usage",
        "waiting",
        "waits",
    )

    def __init__(self, name: str, load: OpenLoad, parent: OpenStage | None, apart: str = "") -> None:
        self.name = name
        self.apart = apart
        """Attribute that gets its seconds, of calls that are not the stage's work proper."""
        self.row: Target | None = None
        """Target of the call described last."""
        self.load = load
        self.parent = parent
        self.attributes: dict[str, Any] = {}
        self.described = False
        self.nodes: list[Node] = []
        self.paths: dict[str, None] = {}
        self.threads: dict[int, str] = {}
        self.active = 0
        self.begun = 0
        """When the quick call that runs now began."""
        self.entered = False
        """Whether the partition was told of the quick call that runs now."""
        self.usage: Any = None
        """Counters of its thread then."""
        self.quick = 0
        """Nanoseconds in quick calls that the partition was not told of yet."""
        self.deferred = False
        self.waits = False
        """Whether bytes came outside of its calls, too: by the seconds of these they are no throughput."""
        self.exclusive = 0
        """Nanoseconds that its nodes which are settled had for themselves, less those that spans have told of."""
        self.bursts: tuple[Burst, ...] = ()
        """Calls that are counted by others and collected from time to time."""
        self.reset()

    def reset(self) -> None:
        """Begin anew, for the next segment; calls that run now are counted when they end."""
        self.count = 0
        self.size = 0
        self.sized = False
        self.busy = 0
        self.first = self.last = 0
        self.concurrency = self.active
        self.slowest: list[tuple[int, int, int | None, str]] = []
        self.rated = True
        self.joint = 0
        """Nanoseconds in calls that were counted in bursts: nobody saw how many ran at once, nor their minor faults."""
        self.unseen = 0
        """Nanoseconds in calls of which nobody saw what they waited for."""
        self.error: Failure | None = None
        self.destinations: dict[tuple[str, int | None], Destination] = {}
        """Devices that its calls brought bytes to."""
        self.met: list[str] = []
        """Files that the load had not read before."""
        self.measured = False
        self.storage_read = self.major = self.minor = 0
        self.blocked: float | None = None
        """Seconds in which the calling threads slept; None until one call was looked at."""
        self.on_cpu = self.waiting = 0.0
        """Of the same calls, the seconds on a CPU and those waiting for one."""

    def segment(self) -> Tally:
        """What it has counted so far, to be told of later: the tally itself begins anew."""
        told = copy.copy(self)
        told.paths, told.threads = dict(self.paths), dict(self.threads)
        self.reset()
        return told

    def add(self, begun: int, now: int, size: int | None) -> None:
        """Count a coarse call from *begun* to *now*; fine calls are counted by the recorder itself."""
        self.count += 1
        self.busy += now - begun
        self.last = now
        if not self.first or begun < self.first:
            self.first = begun
        if size is not None:
            self.size += size
            self.sized = True

    def knows(self, row: Target | None, path: str | None) -> bool:
        """Whether a call of this target, about this file, in this thread is like one that was described."""
        return self.row is row and threading.get_ident() in self.threads and (path is None or path in self.paths)

    def owned(self) -> int:
        """Nanoseconds that the partition of its load has given to its calls, less those that `own_time` has told of."""
        return self.exclusive + (self.nodes[0].exclusive if self.nodes else 0)

    def own_time(self) -> int:
        """The same, and from now on they are told."""
        given = self.owned()
        self.exclusive -= given
        return given

    def so_far(self) -> int:
        """Bytes, those of bursts that go on included."""
        return self.size + sum(burst.ahead for burst in self.bursts)

    def collect(self) -> None:
        """Count what bursts have counted so far. The load's lock is held."""
        for burst in self.bursts:
            burst.tell()

    def interrupt(self) -> None:
        """Have the next call announced: what it is counted in is over."""
        for burst in self.bursts:
            burst.interrupt()

    def slow(self, took: int) -> bool:
        """Whether a call that took so long is among the slowest so far."""
        return len(self.slowest) < SLOWEST or took > self.slowest[0][0]

    def note(self, took: int, size: int | None, label: str) -> None:
        """Remember a slow call by name."""
        entry = (took, self.count, size, label)
        if len(self.slowest) < SLOWEST:
            heapq.heappush(self.slowest, entry)
        else:
            heapq.heappushpop(self.slowest, entry)

    def charge_facts(self, facts: IoFacts) -> None:
        """Add what was counted for a coarse call that is tallied."""
        if facts.storage_read is not None:
            self.measured = True
            self.storage_read += facts.storage_read
            self.major += facts.fault_major or 0
            self.minor += facts.fault_minor or 0
        if facts.blocked_time is not None:
            self.blocked = (self.blocked or 0.0) + facts.blocked_time
            self.on_cpu += facts.cpu_time or 0.0
            self.waiting += facts.run_queue_time or 0.0

    def block(self, spent: tuple[int, int, int] | None) -> None:
        """Add how the thread of a call, or of several, spent its nanoseconds: asleep, on a CPU, waiting for one."""
        if spent is not None:
            blocked, on_cpu, waiting = spent
            self.blocked = (self.blocked or 0.0) + blocked / 1e9
            self.on_cpu += on_cpu / 1e9
            self.waiting += waiting / 1e9

    def take(self, other: Tally) -> None:
        """Add the calls of *other*, whose parent got no span of its own."""
        other.collect()
        if not other.count:
            return
        self.exclusive += other.own_time()
        self.first = min(self.first or other.first, other.first)
        self.last = max(self.last, other.last)
        self.concurrency = max(self.concurrency, other.concurrency)
        self.sized = self.sized or other.sized
        self.deferred = self.deferred or other.deferred
        self.waits = self.waits or other.waits
        self.rated = self.rated and other.rated
        self.measured = self.measured or other.measured
        self.error = self.error or other.error
        for name in ("count", "size", "busy", "joint", "unseen", "storage_read", "major", "minor"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.blocked is not None:
            self.blocked = (self.blocked or 0.0) + other.blocked
            self.on_cpu += other.on_cpu
            self.waiting += other.waiting
        self.slowest = heapq.nlargest(SLOWEST, [*self.slowest, *other.slowest])
        heapq.heapify(self.slowest)
        self.paths.update(other.paths)
        self.met += other.met
        for destination in other.destinations.values():
            merge(self.destinations, destination)
        self.threads.update(other.threads)
        self.describe(other.attributes)

    def describe(self, attributes: dict[str, Any]) -> None:
        """Keep of *attributes* what all calls have in common."""
        if not self.described:
            self.described = True
            self.attributes = dict(attributes)
        else:
            self.attributes = {key: value for key, value in self.attributes.items() if attributes.get(key) == value}
