"""
Which parts of the files are read by which probe, so that what is measured is storage and not the page cache.

Probes that go through the page cache read parts of which no page is in it, each probe others than the one before: a cache of the storage
itself, in a server or under a virtual machine, would answer a second time. What a probe brought into the page cache is dropped again
afterwards; what was there before belongs to somebody and stays.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadspan.facts import pagecache, resident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from loadspan.facts.storage import StorageFacts
    from loadspan.probes.files import OpenFile

ALIGNMENT = max(4096, mmap.PAGESIZE)
SEGMENT = 8 << 20
_AROUND = 64 << 20  # bytes that the kernel may have read before and after what was asked for
_EXTENTS = 10_000
_LOOKING = 3.0  # seconds
_TRIES, _PAUSE = 10, 0.02


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Consecutive bytes of one file, by its place in the list of files."""

    file: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.offset + self.length


class Parts:
    """The parts of *files*, given out."""

    def __init__(self, files: Sequence[OpenFile], storage: StorageFacts | None) -> None:
        self._files = files
        self._counters = [_counter(file, storage) for file in files]
        self.known = all(self._counters)
        """Whether the kernel tells which pages are in the page cache."""
        self._absent: list[Part] = []
        self._present: list[Part] = []
        self._look()
        self._places = defaultdict(list)
        for part in self._absent:
            self._places[part.file, part.offset // SEGMENT].append(part)
        self._left: tuple[deque[Part], deque[Part]] = (deque(), deque())
        self._refill()

    def _look(self) -> None:
        end = time.monotonic() + _LOOKING
        for number, file in enumerate(self._files):
            for part in _segments(number, file):
                (self._present if self._resident(part) else self._absent).append(part)
                if time.monotonic() > end:
                    return  # the rest is left alone

    def _resident(self, part: Part) -> int:
        counter, file = self._counters[part.file], self._files[part.file]
        if counter is None:
            return 0
        try:
            return counter(file.buffered, file.size, [(part.offset, part.length)])[0].cached
        except OSError:  # it answered a moment ago
            self.known = False
            return 0

    def _refill(self) -> None:
        self._left = deque(self._present), deque(self._absent)

    @property
    def size(self) -> int:
        """Bytes that can be given out, holes left out."""
        return sum(part.length for part in (*self._present, *self._absent))

    @property
    def absent(self) -> int:
        """Bytes of the parts that have no page in the page cache; where the kernel does not tell, all."""
        return sum(part.length for part in self._absent)

    def take(self, size: int, *, cached: bool) -> tuple[list[Part], bool]:
        """
        Parts of *size* bytes together, in order, and whether another probe had some of them before.

        For a probe that goes through the page cache (*cached*), parts that are not in it; for others, those first that are.
        """
        size = min(size, self.absent if cached else self.size)
        again = sum(part.length for pool in self._pools(cached=cached) for part in pool) < size
        if again:
            self._refill()
        taken = list(_taken(self._pools(cached=cached), size, from_end=not cached))
        if cached and self.known:
            self.drop(taken)
            taken = [part for part in taken if self._resident(part) == 0]
        return list(_merged(taken)), again

    def _pools(self, *, cached: bool) -> list[deque[Part]]:
        present, absent = self._left
        return [absent] if cached else [present, absent]

    def drop(self, parts: Iterable[Part]) -> None:
        """Take *parts* out of the page cache, and what was read around them: as far as nothing of it had been there before."""
        if self.known:
            near = {
                (part.file, place)
                for part in parts
                for place in range((part.offset - _AROUND) // SEGMENT, (part.end + _AROUND) // SEGMENT + 1)
            }
            self._drop([part for key in sorted(near & self._places.keys()) for part in self._places[key]])

    def _drop(self, parts: Iterable[Part]) -> None:
        for _ in range(_TRIES):
            for part in parts:
                os.posix_fadvise(self._files[part.file].buffered, part.offset, part.length, os.POSIX_FADV_DONTNEED)
            parts = [part for part in parts if self._resident(part)]
            if not parts:
                return
            time.sleep(_PAUSE)  # pages that are still being read ahead cannot be dropped


def _counter(file: OpenFile, storage: StorageFacts | None) -> Callable[..., list[resident.Window]] | None:
    """The call that tells the truth about *file*; None where there is none."""
    facts = pagecache.of_descriptor(file.buffered, storage)
    if facts is None:
        return None
    return resident.cachestat if facts.method == "cachestat" else resident.mincore


def _taken(pools: Sequence[deque[Part]], size: int, *, from_end: bool) -> Iterator[Part]:
    # What goes past the page cache takes from the end, and leaves the beginning to what does not.
    for pool in pools:
        while pool and size > 0:
            part = pool.pop() if from_end else pool.popleft()
            length = min(part.length, size // ALIGNMENT * ALIGNMENT)
            if not length:
                return
            if from_end:
                yield Part(part.file, part.end - length, length)
                rest = Part(part.file, part.offset, part.length - length)
            else:
                yield Part(part.file, part.offset, length)
                rest = Part(part.file, part.offset + length, part.length - length)
            if rest.length:
                (pool.append if from_end else pool.appendleft)(rest)
            size -= length


def _merged(parts: Iterable[Part]) -> Iterator[Part]:
    """*parts* in order, those that touch as one."""
    last: Part | None = None
    for part in sorted(parts):
        if last is not None and (last.file, last.end) == (part.file, part.offset):
            last = Part(last.file, last.offset, last.length + part.length)
            continue
        if last is not None:
            yield last
        last = part
    if last is not None:
        yield last


def _segments(number: int, file: OpenFile) -> Iterator[Part]:
    """The parts of *file* that have data, cut at whole segments and to what O_DIRECT can read."""
    for start, end in _data(file):
        first, last = -(-start // ALIGNMENT) * ALIGNMENT, end // ALIGNMENT * ALIGNMENT
        while first < last:
            cut = min(last, (first // SEGMENT + 1) * SEGMENT)
            yield Part(number, first, cut - first)
            first = cut


def _data(file: OpenFile) -> Iterator[tuple[int, int]]:
    """Where *file* has data: a hole costs no storage anything."""
    end = 0
    for _ in range(_EXTENTS):
        try:
            start = os.lseek(file.buffered, end, os.SEEK_DATA)
            end = os.lseek(file.buffered, start, os.SEEK_HOLE)
        except OSError:  # ENXIO: there is no more
            return
        if end <= start:
            return
        yield start, min(end, file.size)
