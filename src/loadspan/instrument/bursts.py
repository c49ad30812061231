"""
Calls so short and so many that announcing each would cost more than the call: they are counted where they are made, and told together.

A burst follows a fine call that was announced and fast. It goes on in the same thread and frame while the calls follow closely and stay
fast, for ten milliseconds at most: then one call is announced again. Bytes, calls and busy time are exact. What storage delivered is read
off the thread's counters from one call to the next, the pauses between them included, which are too short for other work on a disk.
"""

from __future__ import annotations

from threading import get_ident
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from loadspan.facts import counters
from loadspan.facts.counters import BLOCK, usage
from loadspan.instrument.frames import current

if TYPE_CHECKING:
    from loadspan.instrument.recorder import Recorder
    from loadspan.instrument.tally import Tally

_GOES_ON = 10_000_000  # nanoseconds
_PAUSE = 200_000  # nanoseconds: after a longer pause an announced call costs 2 % at most
_QUICK = 5_000  # nanoseconds above a copy in memory in which no kernel starts to read from a device
_SLOW = 100_000  # nanoseconds from which announcing a call costs a few percent of it
_MEMORY = 4  # bytes per nanosecond from which a read was a copy in memory
_COPY = 3  # of a size to the nanoseconds of such a copy at 8 bytes each, by shift


class _Nobody:
    closed = False
    inside = None


class Burst:
    """Calls of one object, of which one at a time runs in a thread. Their thread alone counts; who tells holds the load's lock."""

    __slots__ = (
        "_blocked",
        "_busy",
        "_count",
        "_frame",
        "_joined",
        "_last",
        "_load",
        "_major",
        "_recorder",
        "_running",
        "_scheduled",
        "_seen",
        "_since",
        "_size",
        "_storage_read",
        "_tally",
        "_thread",
        "_told",
        "_until",
        "_usage",
        "_waiting",
        "begun",
    )

    def __init__(self, recorder: Recorder, tally: Tally | None, running: list[Any]) -> None:
        self._recorder = recorder
        self._tally = tally
        """None where nothing is recorded: then the calls are just let through for as long."""
        self._load: Any = tally.load if tally is not None else _Nobody
        self._frame = current.get()
        self._thread = get_ident()
        self._running = running
        self._until = self._last = 0
        self.begun = 0
        """When the call that runs now began."""
        self._joined = False
        """Whether the tally collects from this burst."""
        self._usage: Any = None
        self._count = self._size = self._busy = self._storage_read = self._major = 0
        self._scheduled: counters.Scheduled | None = None
        self._since = (0, 0)
        """When the calls since the last announced one began, and how busy all had been by then."""
        self._seen = self._blocked = self._waiting = 0
        """Nanoseconds in calls of which it is known what their thread did; and of these, asleep and waiting for a CPU."""
        self._told = (0,) * 8

    def goes_on(self, now: int) -> bool:
        """Whether a call that begins now need not be announced."""
        return (
            now < self._until
            and now - self._last < _PAUSE
            and current.get() is self._frame
            and not self._running
            and get_ident() == self._thread
            and self._load.inside is None
            and not self._load.closed
        )

    def count(self, begun: int, size: int) -> int:
        """Count a call that was not announced; returns the nanoseconds it took."""
        self._last = now = perf_counter_ns()
        took = now - begun
        self._count += 1
        self._size += size
        self._busy += took
        if took > _QUICK + (size >> _COPY) and self._tally is not None:
            used = usage()
            if used is not None:
                self._storage_read += (used.ru_inblock - self._usage.ru_inblock) * BLOCK
                self._major += used.ru_majflt - self._usage.ru_majflt
                self._usage = used
            if took > _SLOW and size < took * _MEMORY:
                self._until = 0
                self._look(now, used)
        return took

    def end(self, size: int | None) -> int:
        """Count the call that has begun; returns the nanoseconds it took if its name is worth knowing, else 0."""
        took, tally = self.count(self.begun, size or 0), self._tally
        return took if tally is not None and tally.slow(took) else 0

    def fail(self, error: BaseException) -> None:
        """A call that was not announced has failed: it is one that begins and fails now."""
        self._until, tally = 0, self._tally
        if tally is not None:
            call = self._recorder.begin_fine(tally.name, tally.row, (), None, 0, next(reversed(tally.paths), None))
            if call is not None:
                self._recorder.end_fine(call, None, error)

    def _look(self, now: int, used: Any) -> None:
        """A call was slow: see whether the thread slept since the last announced one. It did nothing but these calls."""
        since, busy = self._since
        spent = counters.spent(now - since, self._scheduled, used) if self._scheduled is not None else None
        if spent is not None:
            self._seen += self._busy - busy
            self._blocked += min(spent[0], self._busy - busy)
            self._waiting += spent[2]

    def interrupt(self) -> None:
        """Have the next call announced."""
        self._until = 0

    def follows(self, tally: Tally | None) -> bool:
        """Whether calls that follow one of *tally* are calls of this burst."""
        return tally is self._tally and get_ident() == self._thread and current.get() is self._frame

    def renew(self, took: int, size: int) -> None:
        """An announced call has ended: go on for a while, if it was fast."""
        if took <= _SLOW or size >= took * _MEMORY:
            if self._tally is not None:
                self._usage = usage()
                if not self._joined:
                    self._join(self._tally)
                self._scheduled = counters.scheduled(self._usage)
            self._last = perf_counter_ns()
            self._since = self._last, self._busy
            self._until = self._last + _GOES_ON
        else:
            self._until = 0

    def _join(self, tally: Tally) -> None:
        """Be collected from, and let go of bursts that are over: nobody tells when a file is closed."""
        now = perf_counter_ns()
        with tally.load.lock:
            tally.collect()
            for burst in tally.bursts:
                burst._joined = now < burst._until  # noqa: SLF001 - of this class
            tally.bursts = (*(burst for burst in tally.bursts if burst._joined), self)  # noqa: SLF001 - as above
            self._joined = True

    @property
    def tally(self) -> Tally | None:
        """What the calls are told to."""
        return self._tally

    @property
    def ahead(self) -> int:
        """Bytes that the tally does not know of yet."""
        return int(self._size - self._told[1])

    def tell(self) -> None:
        """Add to the tally what was counted since the last time. The load's lock is held."""
        tally, last = self._tally, self._last
        now = (self._count, self._size, self._busy, self._storage_read, self._major, self._seen, self._blocked, self._waiting)
        count, size, busy, storage_read, major, seen, blocked, waiting = (new - old for new, old in zip(now, self._told, strict=True))
        if tally is None or not count:
            return
        self._told = now
        tally.count += count
        tally.size += size
        tally.sized = True
        tally.busy += busy
        tally.joint += busy
        tally.unseen += busy - seen
        if seen:
            tally.block((blocked, max(0, seen - blocked - waiting), waiting))
        tally.first = tally.first or last - busy
        tally.last = max(tally.last, last)
        tally.storage_read += storage_read
        tally.major += major
        outer = tally.parent
        if outer is not None and outer.thread == self._thread:
            outer.nested += busy
        self._recorder.claim(tally.load, tally.nodes, busy, last)
