"""What a call of torch's did to the tensors of a module: seen before and after it."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.targets import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable

_Seen = tuple[Any, Any, int]
"""Device, type and bytes of a tensor."""

_SEEN = attrgetter("device", "dtype", "nbytes")
META = "meta"
_MANY = 64  # kinds of tensors, of each of which the first is looked for
_BIG = 1 << 20  # bytes from which a tensor is asked where its pages are


@dataclass(slots=True)
class Change:
    """What a call did to the tensors of a module."""

    copies: dict[int, int] = field(default_factory=dict)
    """How many tensors of each size went to another device: a model has few sizes, however many tensors."""
    cast: int = 0
    """Bytes of those that were cast where they are."""
    made: int = 0
    """Tensors that were given memory."""
    device: Any = None
    """Where the first that moved is now."""
    dtype: Any = None
    """What the first that was cast is now."""

    def count(self, old: _Seen, new: _Seen, number: int) -> None:
        """Count so many tensors that were *old* and are *new*."""
        device, dtype, size = new
        if device == old[0]:
            if dtype != old[1] and device.type != META:
                self.cast += number * size
                self.dtype = self.dtype or dtype
        elif device.type == META:
            pass
        elif old[0].type == META:
            self.made += number
        else:
            self.copies[size] = self.copies.get(size, 0) + number
            self.device = self.device or device

    def of_copies(self) -> dict[str, Any]:
        """Number and size of the copies."""
        ordered, count = sorted(self.copies), sum(self.copies.values())
        passed = accumulate(self.copies[size] for size in ordered)
        return {
            names.COPY_COUNT: count,
            names.COPY_SIZE_MIN: ordered[0],
            names.COPY_SIZE_MEDIAN: next(size for size, below in zip(ordered, passed, strict=True) if 2 * below > count),
            names.COPY_SIZE_MAX: ordered[-1],
        }

    @property
    def moved(self) -> int:
        """Bytes that went to another device."""
        return sum(size * count for size, count in self.copies.items())


class Survey:
    """
    Devices, types and sizes of a module's parameters and buffers, in the order of a walk.

    Each tensor is touched once before and, if it must be, once after: it lies where nothing else was read, and that costs more than what is
    done with it. A number a tensor is kept: 20 000 objects of ours would set off a garbage collection that costs more than all the rest.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        found = self._walk()
        self._plain = all(tensors.PLAIN[kind] for kind in set(map(type, found)))
        self._before, self._kinds = self._look(found)

    def _walk(self) -> list[Any]:
        # The public iterators take ten times as long.
        holders = [holder for child in self._module.modules() for holder in (child._parameters, child._buffers)]  # noqa: SLF001 - as said
        return [tensor for holder in holders for tensor in holder.values() if tensor is not None]

    def __bool__(self) -> bool:
        return bool(self._before)

    def pinned(self) -> bool | None:
        """Whether the first tensor in host memory is page-locked; None where asking would set up a device."""
        if not sys.modules["torch"].cuda.is_initialized():
            return None
        found = next((tensor for tensor in self._walk() if tensor.device.type == "cpu"), None)
        return bool(tensors.plain(found)[0].is_pinned()) if found is not None else None

    def host_node(self) -> int | None:
        """NUMA node that holds the pages of the first big tensor in host memory; None where they are on several, or it is not known."""
        from loadspan.facts import numa  # with the first move, as everything that reads the machine

        found = next((tensor for tensor in self._walk() if tensor.device.type == "cpu" and tensors.size(tensor) >= _BIG), None)
        pages = numa.node_of_pages((first := tensors.plain(found)[0]).data_ptr(), tensors.size(first)) if found is not None else None
        return next(iter(pages)) if pages is not None and len(pages) == 1 else None

    def source(self) -> Any:
        """Device of the first tensor that is not meta."""
        return next((device for device, _, _ in self._kinds if device.type != META), None)

    def _look(self, found: list[Any]) -> tuple[array[int], list[_Seen]]:
        try:
            return _numbered(map(_SEEN if self._plain else _seen, found))
        except (RuntimeError, ValueError):  # one of them has no size of its own: it is sparse
            return _numbered(map(_seen, found))

    def _alike(self) -> bool:
        """Whether every module and tensor lets torch do what it does: what becomes of one then becomes of all of its kind."""
        kinds: set[Any] = set(map(type, self._module.modules()))
        apply = sys.modules["torch"].nn.Module._apply  # noqa: SLF001 - what it does is what this is about
        return self._plain and len(self._kinds) <= _MANY and all(kind._apply is apply for kind in kinds)  # noqa: SLF001 - as above

    def compare(self, *, alike: bool) -> Change:
        """What happened to the tensors since; *alike* if torch itself did it to the end, to all tensors of a device and type the same."""
        found = self._walk()
        if alike and len(found) == len(self._before) and self._alike():
            after, seen = self._before, [_seen(found[self._before.index(number)]) for number in range(len(self._kinds))]
        else:
            after, seen = self._look(found)
        numbers = Counter(zip(self._before, after, strict=False))
        for place in _again(array("Q", map(id, found))):  # weights that are tied are moved once
            if place < len(self._before):
                numbers[self._before[place], after[place]] -= 1
        change = Change()
        for (old, new), number in numbers.items():
            if number:
                change.count(self._kinds[old], seen[new], number)
        return change


def _seen(tensor: Any) -> _Seen:
    """What `_SEEN` gets, of any tensor."""
    return tensor.device, tensor.dtype, tensors.size(tensor)


def _numbered(found: Iterable[_Seen]) -> tuple[array[int], list[_Seen]]:
    """A number for each of *found*, and what the numbers stand for: there are few different ones."""
    numbers: dict[_Seen, int] = {}
    return array("I", [numbers.setdefault(seen, len(numbers)) for seen in found]), list(numbers)


def _again(identities: array[int]) -> list[int]:
    """Places at which an identity was met before: weights that are tied."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and identities:  # it makes no array of nothing
        found = numpy.frombuffer(identities, numpy.uint64)
        order = numpy.argsort(found, kind="stable")
        ordered = found[order]
        return order[1:][ordered[1:] == ordered[:-1]].tolist()  # type: ignore[no-any-return] # numpy is not imported here
    met, again = set[int](), []
    for place, identity in enumerate(identities):
        if identity in met:
            again.append(place)
        met.add(identity)
    return again
