"""
Work that comes with every forward of a model: weights that are offloaded are brought anew each time.

It is counted and told of as one load a minute at most, not as one load a forward. Who counts takes no lock: the counts only grow, and who
tells remembers what it has told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan.instrument.implicit import REPEAT_WINDOW, Series

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadspan.instrument.implicit import Repetitions


class Continuing:
    """What one model has brought, in one stage. Added to by one thread at a time."""

    __slots__ = ("_told", "busy", "count", "described", "end", "first", "listed", "size", "stage")

    def __init__(self, stage: str, described: dict[str, Any]) -> None:
        self.stage = stage
        self.described = described
        """Attributes of the loads that it is told as."""
        self.count = self.busy = self.size = 0
        self.first = self.end = 0
        """When the first call that was not told of began, and the last one ended."""
        self.listed = False
        self._told = (0, 0, 0)

    def add(self, count: int, begun: int, end: int, busy: int, size: int) -> None:
        """Count a call, or a part of one (*count* 0)."""
        if not self.first:
            self.first = begun
        self.busy += busy
        self.size += size
        self.end = end
        self.count += count

    @property
    def waiting(self) -> bool:
        """Whether there is something to tell."""
        return self.count > self._told[0]

    def take(self) -> Series:
        """What was counted since the last time."""
        now = (self.count, self.busy, self.size)
        count, busy, size = (new - old for new, old in zip(now, self._told, strict=True))
        first, self.first, self._told = self.first, 0, now
        return Series(None, first=first, end=self.end, count=count, busy=busy, size=size, described=self.described)


class Register:
    """All of them, asked by who tells of repetitions. Guarded by the recorder's lock, but for `add`."""

    def __init__(self) -> None:
        self._known: list[Continuing] = []

    def add(self, one: Continuing) -> None:
        """Tell of *one* from now on."""
        one.listed = True
        self._known.append(one)

    def __bool__(self) -> bool:
        return any(one.waiting for one in self._known)

    def take(self, now: int | None) -> Iterator[tuple[str, Series]]:
        """Those that rest or go on for long, or all where *now* is None; what has rested for long is forgotten."""
        for one in list(self._known):
            if one.waiting and (now is None or now - one.end > REPEAT_WINDOW // 2 or one.end - one.first > REPEAT_WINDOW):
                yield one.stage, one.take()
            elif not one.waiting and now is not None and now - one.end > REPEAT_WINDOW:
                one.listed = False
                self._known.remove(one)


def register(repetitions: Repetitions) -> Register:
    """The register that *repetitions* ask, made at first use."""
    if repetitions.continuing is None:
        repetitions.continuing = Register()
    return repetitions.continuing
