"""
The device that a stage brings bytes to: what it is, the thread's place beside it, and the link on the way as it was while bytes moved.

The loading thread only notes what it alone can know; the rest is read by the sampler.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.facts import device, links, numa, nvml, pci
from loadspan.facts.tree import HERE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.facts.device import DeviceFacts
    from loadspan.facts.links import Link
    from loadspan.facts.tree import Tree

_HOST = ("cpu", "meta", "disk")
_AFTER = 100_000_000  # nanoseconds for which a link stays as it was after the last byte
_ENOUGH = 3  # readings while bytes moved, a tenth of a second apart, before a link is said to be slow
_DEVICES = 64  # of a process are remembered
_ADDRESSES = 8  # devices of a load whose relations are told

tree: Tree = HERE
"""Where the topology is read; tests put a recorded machine here."""


class _Device:
    """A device of this process: its facts, the reader of its links, and which CPUs are near it."""

    def __init__(self, facts: DeviceFacts) -> None:
        self.facts = facts
        address = facts.pci_address
        self.links = links.LinkReader(tree, address) if address is not None else None
        # A machine that names no node for the device lists all CPUs as near.
        self.near = pci.local_cpus(tree, address) if address is not None and facts.numa_node is not None else None
        self.nodes = numa.nodes(tree)


_known: dict[tuple[str, int | None, int], _Device] = {}


def _device(kind: str, index: int | None) -> _Device:
    # By process: a child of a fork may have been given other devices.
    key = kind, index, os.getpid()
    found = _known.get(key)
    if found is None:
        found = _Device(device.of_torch(kind, index, tree))
        # One that is not set up yet tells less than it will.
        if index is not None and found.facts.final and len(_known) < _DEVICES:
            _known[key] = found
    return found


class Destination:
    """Of one stage, or of a load: then of all its stages that brought bytes to one device."""

    __slots__ = ("_achieved", "_best", "_cpus", "_ended", "_readings", "index", "kind")

    def __init__(self, kind: str, index: int | None) -> None:
        self.kind = kind
        """As torch calls it."""
        self.index = index
        self._best: tuple[Link, ...] = ()
        """The links of the way at the moment at which its narrowest was fastest."""
        self._readings = 0
        """Taken while bytes moved."""
        self._achieved = 0.0
        self._cpus: frozenset[int] | None = None
        self._ended = 0

    @property
    def key(self) -> tuple[str, int | None]:
        """The device, as torch tells devices apart."""
        return self.kind, self.index

    def copy(self) -> Destination:
        """The same, to count other stages in."""
        made = Destination(*self.key)
        made._best, made._readings = self._best, self._readings
        made._achieved, made._cpus, made._ended = self._achieved, self._cpus, self._ended
        return made

    def end(self, end: int, achieved: float) -> None:
        """
        Note the end of the stage. Called by its thread, whose CPUs nobody else can tell.

        Args:
            end: When it ended.
            achieved: Bytes per second that went there, 0 where that was not measured.
        """
        self._ended, self._achieved = end, achieved
        self._cpus = numa.affinity()

    def take(self, other: Destination) -> None:
        """Count another stage to the same device."""
        self._best = _better(self._best, other._best)
        self._readings += other._readings
        if self._cpus != other._cpus:
            self._cpus = None
        self._ended = max(self._ended, other._ended)
        self._achieved = max(self._achieved, other._achieved)

    def look(self) -> None:
        """Read the link, while bytes move or just after."""
        reader = _device(self.kind, self.index).links
        if reader is None or (self._ended and time.perf_counter_ns() - self._ended > _AFTER):
            return
        self._best = _better(self._best, reader.read())
        self._readings += not self._ended

    def attributes(self) -> dict[str, Any]:
        """What is known of the device and the way to it, after bytes went there."""
        self.look()
        known = _device(self.kind, self.index)
        facts = known.facts
        found = {
            names.DEVICE_TYPE: facts.type,
            names.DEVICE_INDEX: facts.index,
            names.DEVICE_NAME: facts.name,
            names.DEVICE_PCI_ADDRESS: facts.pci_address,
            names.DEVICE_NUMA_NODE: facts.numa_node,
            names.DEVICE_MEMORY: facts.memory,
            names.THREAD_NUMA_NODE: numa.node_of_affinity(self._cpus, known.nodes),
            names.NUMA_RELATION: numa.relation(self._cpus, known.near),
        } | self._of_link(known)
        return {name: value for name, value in found.items() if value is not None}

    def _of_link(self, known: _Device) -> dict[str, Any]:
        every = known.links.links if known.links is not None else ()
        best = links.narrowest(self._best)
        verdict = links.verdict(every, best, moved=True, achieved=self._achieved or None)
        degraded = verdict.degraded if verdict is not None else None
        if best is not None and ((verdict is not None and verdict.stale) or (degraded and self._readings < _ENOUGH)):
            # An idle link is slow, and takes its time to wake up: what was read may be no more than that.
            best = degraded = None
        elif degraded and _has_other_links(known.facts):
            degraded = None
        limit = best or links.narrowest(every, possible=True)
        if limit is None:
            return {}
        return {
            names.LINK_GENERATION: best.generation if best is not None else None,
            names.LINK_WIDTH: best.width if best is not None else None,
            names.LINK_BANDWIDTH: best.bandwidth if best is not None else None,
            names.LINK_GENERATION_MAX: limit.generation_max,
            names.LINK_WIDTH_MAX: limit.width_max,
            names.LINK_BANDWIDTH_MAX: limit.bandwidth_max,
            names.LINK_DEGRADED: degraded,
            names.LINK_ENDS: f"{limit.parent} {limit.child}",
            names.LINK_PATH: tuple(_hop(link, now=best is not None) for link in (self._best if best is not None else every)),
        }


def _better(one: tuple[Link, ...], other: tuple[Link, ...]) -> tuple[Link, ...]:
    first, second = links.narrowest(one), links.narrowest(other)
    return one if links.best(first, second) is first and first is not None else other


def _hop(link: Link, *, now: bool) -> str:
    """`0000:00:01.0 0000:01:00.0 Gen4 x8 of Gen4 x16`, as far as it is known."""
    known = [str(link.now)] if now and link.bandwidth is not None else []
    known += [str(link.possible)] if link.bandwidth_max is not None else []
    return " ".join([link.parent, link.child, " of ".join(known)]).rstrip()


def named(device: Any) -> Destination | None:
    """The destination that a host's argument names (`"cuda:1"`, a `torch.device`); None for the host's memory, and for what names none."""
    kind, _, number = str(device).partition(":") if isinstance(device, str) else (getattr(device, "type", None), "", "")
    index = int(number) if number.isdecimal() else getattr(device, "index", None)
    if not isinstance(kind, str) or not kind.isidentifier() or kind in _HOST or callable(index):
        return None
    return Destination(kind, index)


def arrived(expected: Destination | None, device: Any) -> Destination | None:
    """The destination of a call whose tensors turned out to be on *device*, a `torch.device`: the *expected* one, if it is that."""
    found = named(device)
    if found is None or expected is None or expected.kind != found.kind or expected.index not in (None, found.index):
        return found
    expected.index = found.index
    return expected


def of_load(destinations: Iterable[Destination]) -> dict[str, Any]:
    """What is known of the devices of a load: of the first that bytes went to, and how several lie to each other."""
    every = list(destinations)
    if not every:
        return {}
    found = every[0].attributes()
    addresses = [facts.pci_address for one in every if (facts := _device(one.kind, one.index).facts).pci_address is not None]
    return found | _related(addresses[:_ADDRESSES])


def _related(addresses: list[str]) -> dict[str, Any]:
    """How devices lie to each other, each pair once."""
    if len(addresses) < 2:  # noqa: PLR2004 - a pair
        return {}
    matrix = pci.matrix(tree, addresses, nvml.nvlinks(_managed()))
    pairs = [
        f"{one} {other} {cell}"
        for row, one in enumerate(addresses)
        for column, other in enumerate(addresses[row + 1 :], row + 1)
        if (cell := matrix[row][column]) is not None
    ]
    return {names.DEVICE_RELATIONS: tuple(pairs)} if pairs else {}


def _managed() -> list[nvml.NvmlGpu]:
    """What NVIDIA's library tells of this machine's GPUs: asked once, and only for what `/sys` does not have."""
    return _asked() if tree.here else []


@lru_cache(maxsize=1)
def _asked() -> list[nvml.NvmlGpu]:
    return nvml.gpus()


def _has_other_links(facts: DeviceFacts) -> bool:
    """Whether a device has links to the CPU that are not PCIe: its PCIe link is then not the main path."""
    return facts.type == "cuda" and any(gpu.c2c for gpu in _managed() if gpu.address == facts.pci_address)
