"""
What a cache that missed cost a load, against one that hits.

A hit spares what brings or makes the bytes that the cache holds, so that is counted: exclusive seconds from the lookup that missed to
the filling of the cache. Where a segment is made before the bytes are there, they are brought into it afterwards; where nothing is
seen to be filled, what follows counts up to the next hit or the end of the load. What comes after the filling, a hit needs as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadspan import names

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

FOLDER = "/dev/shm/"  # noqa: S108 - where Linux has what `shm_open` opens

_RAW = (names.DOWNLOAD, names.READ, names.DECRYPT)
_BRING = (*_RAW, names.DESERIALIZE, names.COMPILE)
SPARED = (*_BRING, names.CACHE)
"""Stages that bring or make what a cache holds, and the filling itself."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How far a load has come: nanoseconds and bytes by stage."""

    spent: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, load: OpenLoad) -> Reading:
        """As it is now. The load's lock is held, its tallies are collected."""
        return cls(load.partition.totals, load.sizes())

    def brought(self, before: Reading, stages: tuple[str, ...]) -> int:
        """Most bytes that one of *stages* has brought since *before*."""
        return max(self.sizes.get(stage, 0) - before.sizes.get(stage, 0) for stage in stages)


_START = Reading()


class Asked:
    """The caches that one load has asked."""

    __slots__ = ("_cost", "_filled", "_hit", "_over", "_since")

    def __init__(self) -> None:
        self._hit: bool | None = None
        self._cost = 0
        self._over = _START
        """Where the last miss was over."""
        self._since: Reading | None = None
        """Where a miss began that is not over yet."""
        self._filled = 0
        """Bytes of a segment that was made to be filled afterwards."""

    def note(self, stage: OpenStage, before: Reading, after: Reading) -> None:
        """A `cache` stage has ended well; the load had come to *before* when it began."""
        hit, size = stage.attributes.get(names.CACHE_HIT), stage.size_known
        if hit is True:
            self._close(before)
            self._hit = self._hit is not False
            return
        if hit is False:
            self._hit = False
        elif not size or self._since is None:
            return  # put in, but nobody was seen to miss it
        if self._filled:
            self._close(before)
        inside = any(before.spent.get(one) != after.spent.get(one) for one in _BRING)
        if self._since is None:
            self._since = before if inside else self._begun(size, before, after)
        # A header may have been read before a segment was made, to know the size.
        if inside or (size and 2 * after.brought(self._since, _BRING) >= size):
            self._close(after)
        else:
            self._filled = size or 0

    def _begun(self, size: int | None, before: Reading, after: Reading) -> Reading:
        """Where a miss begins that a `cache` stage tells of in which nothing was brought."""
        if not size:
            return after  # to look costs a hit as much
        # Nobody was seen to look. Where as many bytes were brought before (but for a compression), they are what is put in.
        brought = before.brought(self._over, _BRING)
        return self._over if size <= 2 * brought <= 4 * size else before

    def _close(self, now: Reading) -> None:
        """What a miss made necessary is over."""
        since, filled = self._since, self._filled
        self._since, self._filled, self._over = None, 0, now
        if since is None:
            return
        # Raw bytes went into the segment: a hit has to deserialize them, too.
        raw = filled and 2 * now.brought(since, _RAW) >= filled
        spared = set(SPARED) - ({names.DESERIALIZE} if raw else set())
        self._cost += sum(now.spent.get(stage, 0) - since.spent.get(stage, 0) for stage in spared)

    def attributes(self, load: OpenLoad) -> dict[str, Any]:
        """What is told of it on the load, which has ended."""
        self._close(Reading.of(load))
        if self._hit is None:
            return {}
        return {names.CACHE_HIT: self._hit} | ({names.CACHE_MISS_TIME: self._cost / 1e9} if not self._hit and self._cost > 0 else {})
