"""
What the machine does while a load is open: the files' pages in the cache before they are read, disks, memory, the kernel's own waiting.

`meet` is called by the loading threads, once for each file of a load; all else by the sampler, ten times a second, and when the load ends.
"""

from __future__ import annotations

import threading
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.facts import blocks, counters, files, memory, numa, pagecache
from loadspan.facts.kept import Kept
from loadspan.guard import safely
from loadspan.instrument.curve import Curve, Point

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.facts.pagecache import CacheFacts

_FILES = 512  # of a load are looked at in the page cache: more are many small ones, and each costs up to a millisecond
_DISKS = 4  # of a load are read ten times a second
_THREADS = 16  # of a load are asked where in the kernel they sleep
_PLACES = 64  # kernel functions told apart
_SHOWN = 5
_LONG = 1.0  # seconds from which the milliseconds of a second look at the files are nothing
_FRESH = 100_000_000  # nanoseconds: an older reading is that of a load which ended then, and its disks have gone on since
_LOOKED_AGAIN = 8  # files, the biggest
_RUNNING = b"0"  # what `wchan` says of a thread that does not sleep


@lru_cache(maxsize=1)
def prepare() -> None:
    """Find and open what every load reads: it takes a millisecond, which need not be one of the first load's."""
    memory.read()
    _nodes()


@lru_cache(maxsize=1)
def _nodes() -> dict[int, frozenset[int]]:
    return numa.nodes()


_wchan: dict[int, Kept] = {}
"""Where each thread sleeps, kept open: of sixteen threads it would cost the sampler as much as all the rest."""


def _asleep(thread: int) -> bytes:
    """The kernel function in which *thread* sleeps, `0` where it does not, empty where the kernel does not tell."""
    kept = _wchan.get(thread)
    if kept is None or not kept.alive:
        while len(_wchan) >= _THREADS:
            del _wchan[next(iter(_wchan))]
        kept = _wchan[thread] = Kept(f"/proc/self/task/{thread}/wchan")
    place = kept.read()
    if not place:
        _wchan.pop(thread, None)  # it has ended, and its number may come again
    return place


class _Disk:
    """A block device that files of the load are on."""

    def __init__(self, name: str, number: str) -> None:
        self.name = name
        self._device = blocks.BlockDevice(number)
        self._before = self._device.read()
        self._last, self.at = b"", 0

    def look(self) -> None:
        """Read its counters anew."""
        text = self._device.text()
        if text:
            self._last, self.at = text, time.perf_counter_ns()

    def delivered(self) -> int | None:
        """Bytes since the load met it."""
        return _since(blocks.parse_size(self._last), self._before.size if self._before is not None else None)

    def use(self) -> blocks.BlockUse | None:
        """What it did since the load met it."""
        return blocks.difference(self._before, blocks.parse_stat(self._last, self.at))


def _since(now: int | None, before: int | None) -> int | None:
    # Less than before: a child was waited for while they were read, or another disk has got the number.
    return None if now is None or before is None or now < before else now - before


class Surroundings:
    """Of one load."""

    def __init__(self, *, outermost: bool) -> None:
        self.before: counters.Counters
        """The process's counters when the load began."""
        self.curve = Curve()
        self.curve.add(Point(0.0, 0, 0, 0))
        self.cost = 0
        """CPU nanoseconds of the sampler."""
        self._files: dict[str, tuple[CacheFacts | None, int]] = {}
        """Of each file what was in the page cache before its first read (None where that cannot be known), and its size."""
        self._disks: dict[str, _Disk] = {}
        self._lock = threading.RLock()  # a signal handler may come here while its own thread is in here
        self._where: dict[bytes, int] = {}
        self._asked = 0
        self._cpus = numa.affinity()
        self._memory = memory.read() if outermost else None  # of a load inside it the outer one tells: reading it takes half a millisecond
        self._memory_last: memory.Memory | None = None
        self._at_once = False  # whether it was closed when it ended
        self._storage_read: int | None = None
        self._size = 0
        self.stood = 0
        """When the machine was last looked at for an end of the load."""

    def meet(self, paths: Iterable[str]) -> list[str]:
        """Look at files before they are read; returns those that the load had not met."""
        met = []
        for path in paths:
            if path not in self._files and len(self._files) < _FILES:
                self._files[path] = None, 0  # first: another thread that comes for it need not do the same
                met.append(path)
                safely(self._meet, path)
        return met

    def _meet(self, path: str) -> None:
        facts = files.meet(path).storage
        found = pagecache.residency(path, facts)
        if found is not None:
            self._files[path] = found, found.size
        if facts is None or facts.number is None or facts.device is None or facts.number in self._disks:
            return
        with self._lock:
            if facts.number not in self._disks and len(self._disks) < _DISKS:
                self._disks[facts.number] = _Disk(facts.device.rpartition("/")[2], facts.number)

    def residency(self, paths: Iterable[str] | None = None) -> float | None:
        """Share of these files, by default of all, that was in the page cache before; None where it is not known of each."""
        total = cached = 0.0
        for path in self._files if paths is None else paths:
            facts, size = self._files.get(path, (None, 0))
            if facts is None:
                return None
            total += size
            cached += facts.fraction * size
        return round(cached / total, 4) if total else None

    def look(self, counted: counters.Counters, at: float, size: int) -> None:
        """
        Take a point of the curve.

        Args:
            counted: The process's counters now.
            at: Seconds since the load began.
            size: Bytes that have entered the load.
        """
        self.look_at_disks()
        self._point(counted, at, size)

    def look_at_disks(self, since: int | None = None) -> None:
        """Read the disks' counters, where that was not done *since*."""
        for disk in list(self._disks.values()):
            if since is None or disk.at < since:
                disk.look()

    def _point(self, counted: counters.Counters, at: float, size: int) -> None:
        self._storage_read = _since(counted.storage_read, self.before.storage_read)
        delivered = {disk.name: found for disk in list(self._disks.values()) if (found := disk.delivered()) is not None}
        # A stage that has just closed may not be counted yet, and one that failed never is.
        self._size = max(self._size, size)
        self.curve.add(Point(at, self._size, _since(counted.read, self.before.read), self._storage_read, delivered))

    def stand(self, end: int) -> None:
        """Read what is compared with the beginning: the load ended at *end*, or may have, and what comes after is not its own."""
        self.stood = time.perf_counter_ns()
        if self._memory is not None:
            self._memory_last = memory.read()
        self.look_at_disks(end)

    def close(self, end: int) -> None:
        """The load ended at *end*: read what has to be read at once, unless it was a while ago and others have had the machine since."""
        self._at_once = time.perf_counter_ns() - end < _FRESH
        if self._at_once and self.stood < end:
            self.stand(end)

    def ask(self, threads: Iterable[int]) -> None:
        """Ask the kernel where *threads* (of the kernel's numbering) sleep."""
        for number, thread in enumerate(threads):
            if number == _THREADS:
                return
            place = _asleep(thread)
            if not place:
                continue
            self._asked += 1
            if place != _RUNNING and (place in self._where or len(self._where) < _PLACES):
                self._where[place] = self._where.get(place, 0) + 1

    # When the load ends

    def attributes(self, end: int, seconds: float, size: int, counted: counters.Counters | None) -> dict[str, Any]:
        """
        What was seen during a load, as attributes of its root.

        Args:
            end: When it ended.
            seconds: How long it took.
            size: Bytes that entered it.
            counted: The process's counters at its end, where they were read.
        """
        if counted is not None:
            self._point(counted, seconds, size)
        # Nor is what the machine did for longer than the load took, after it.
        latest = end + round(seconds * 1e9)
        facts, of_memory = self._of_memory(latest)
        look_again = facts.hits or (self._at_once and (seconds > _LONG or facts.refaulted))
        found: dict[str, Any] = {
            **self.curve.attributes(),
            **self._of_disks(latest),
            **of_memory,
            names.CACHE_RESIDENCY: self.residency(),
            names.CACHE_EVICTED: self._evicted(facts.refaulted or 0) if look_again else None,
            names.THREAD_NUMA_NODE: numa.node_of_affinity(self._cpus, _nodes()),
        }
        if self._where:
            most = sorted(self._where.items(), key=lambda item: -item[1])[:_SHOWN]
            found[names.BLOCKED_WHERE] = tuple(
                f"{place.decode('ascii', 'replace')} {100 * count / self._asked:.0f} %" for place, count in most
            )
        if self.cost:
            found[names.SAMPLER_TIME] = self.cost / 1e9
        return {name: value for name, value in found.items() if value is not None}

    def _of_memory(self, latest: int) -> tuple[memory.MemoryFacts, dict[str, Any]]:
        """What happened to the memory until *latest*, and that as attributes."""
        before = self._memory
        if before is None:
            return memory.MemoryFacts(), {}
        after = self._memory_last if self.stood <= latest else None
        if after is None:  # nobody has looked in time: no differences, but the limit is the same
            after = memory.Memory(before.at, limit=before.limit)
        facts = memory.difference(before, after)
        return facts, {
            names.MEMORY_LIMIT: facts.limit,
            names.MEMORY_USAGE: after.usage if facts.limit is not None else None,
            names.MEMORY_LIMIT_HITS: facts.hits if facts.limit is not None else None,
            names.MEMORY_REFAULT: facts.refaulted,
            names.MEMORY_REFAULT_SCOPE: facts.refaulted_scope if facts.refaulted is not None else None,
            names.MEMORY_PRESSURE_TIME: facts.memory_pressure,
            names.IO_PRESSURE_TIME: facts.io_pressure,
            names.PRESSURE_SCOPE: facts.pressure_scope,
            names.SWAP_IN: facts.swapped_in,
            names.SWAP_SCOPE: facts.swap_scope if facts.swapped_in is not None else None,
            names.SWAP_USAGE: after.swapped,
        }

    def _evicted(self, refaulted: int) -> float | None:
        """Share of the biggest files that the kernel reclaimed from the page cache meanwhile; None where it does not say."""
        looked = [(path, facts) for path, (facts, _) in self._files.items() if facts is not None]
        total = left = there = 0.0
        for path, before in sorted(looked, key=lambda item: -item[1].size)[:_LOOKED_AGAIN]:
            after = pagecache.residency(path)
            eviction = pagecache.evicted(before, after) if after is not None else None
            if after is None or eviction is None or eviction.reclaimed is None:
                return None
            total += before.size
            left += eviction.reclaimed * before.size
            there += after.fraction * before.size
        if not total:
            return None
        # What is larger than the memory for it looks the same before and after it is read again. That it had to be is what tells.
        again = min(self._storage_read or 0, refaulted) / sum(facts.size for _, facts in looked)
        return round(max(left / total, min(1.0, again) - there / total), 4)

    def _of_disks(self, latest: int) -> dict[str, Any]:
        """Of the disk that delivered most, of those that were read at *latest*."""
        used = [use for disk in self._disks.values() if disk.at <= latest and (use := disk.use()) is not None]
        if not used:
            return {}
        most = max(used, key=lambda use: use.size)
        found = {names.DISK_READ: most.size, names.DISK_UTILIZATION: most.utilization, names.DISK_QUEUE: most.queue}
        return found if most.wait is None else found | {names.DISK_LATENCY: most.wait}
