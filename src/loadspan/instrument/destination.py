"""The device that a stage brings bytes to, and what only its thread can tell of it. What lies between is in `topology`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from loadspan.guard import safely

if TYPE_CHECKING:
    from loadspan.facts.links import Link

_affinity = getattr(os, "sched_getaffinity", None)  # not on every system
_HOST = ("cpu", "meta", "disk")


class Destination:
    """Of one stage, or of a load: then of all its stages that brought bytes to one device."""

    __slots__ = ("achieved", "best", "cpus", "ended", "index", "kind", "rate", "readings")

    def __init__(self, kind: str, index: int | None) -> None:
        self.kind = kind
        """As torch calls it."""
        self.index = index
        self.best: tuple[Link, ...] = ()
        """The links of the way at the moment at which its narrowest was fastest."""
        self.rate = 0.0
        """Bytes per second that its narrowest could carry then."""
        self.readings = 0
        """Of the links, taken while bytes moved."""
        self.achieved = 0.0
        """Bytes per second that went there, 0 where that was not measured."""
        self.cpus = frozenset(_affinity(0)) if _affinity is not None else None
        """Those that the calling thread, which makes this, may run on."""
        self.ended = 0

    @property
    def key(self) -> tuple[str, int | None]:
        """The device, as torch tells devices apart."""
        return self.kind, self.index

    def copy(self) -> Destination:
        """The same, to count other stages in."""
        made = object.__new__(Destination)
        for name in self.__slots__:
            setattr(made, name, getattr(self, name))
        return made

    def take(self, other: Destination) -> None:
        """Count another stage to the same device."""
        if other.rate > self.rate:
            self.best, self.rate = other.best, other.rate
        if self.cpus != other.cpus:
            self.cpus = None
        self.readings += other.readings
        self.ended = max(self.ended, other.ended)
        self.achieved = max(self.achieved, other.achieved)

    def end(self, end: int, achieved: float) -> None:
        """Note that the stage ended at *end*, and the bytes per second it *achieved*, 0 where that was not measured."""
        self.ended, self.achieved = end, achieved


def merge(known: dict[tuple[str, int | None], Destination], new: Destination) -> None:
    """Count a stage's destination among those *known* of its load."""
    same = known.get(new.key)
    if same is None:
        known[new.key] = new.copy()
    else:
        same.take(new)


def named(device: Any) -> Destination | None:
    """The destination that a host's argument names (`"cuda:1"`, a `torch.device`); None for the host's memory, and for what names none."""
    kind: Any
    index: Any
    if isinstance(device, str):
        kind, _, number = device.partition(":")
        index = int(number) if number.isdecimal() else None
    else:
        kind, index = getattr(device, "type", None), getattr(device, "index", None)
    if not isinstance(kind, str) or not kind.isidentifier() or kind in _HOST or callable(index):
        return None
    return Destination(kind, index)


def settled(there: Destination | None) -> Destination | None:
    """*there*, with the index of the calling thread's current device where it was named without: the sampler's thread has another one."""
    if there is not None and there.index is None:
        there.index = safely(_current, there.kind)
    return there


def _current(kind: str) -> int | None:
    """Index of the current device of *kind* in this thread; None where torch has not set it up: asking would."""
    # Out of its dictionary: torch imports some of its attributes when they are asked for.
    backend = getattr(sys.modules.get("torch"), "__dict__", {}).get(kind)
    ready, current = getattr(backend, "is_initialized", None), getattr(backend, "current_device", None)
    return current() if ready is not None and current is not None and ready() else None


def arrived(expected: Destination | None, device: Any) -> Destination | None:
    """The destination of a call whose tensors turned out to be on *device*, a `torch.device`: the *expected* one, if it is that."""
    found = named(device)
    if found is None or expected is None or expected.kind != found.kind or expected.index not in (None, found.index):
        return found
    expected.index = found.index
    return expected
