"""
What lies between the host and the devices of a load: what they are, the links on the way as they were while bytes moved, NUMA nodes.

Imported when the first bytes go to a device, and run by the sampler: of a program that has none it costs nothing.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from loadspan import names
from loadspan.facts import accelerators, device, links, numa, nvml, pci
from loadspan.facts.tree import HERE

if TYPE_CHECKING:
    from loadspan.facts.device import DeviceFacts
    from loadspan.facts.links import Link
    from loadspan.facts.tree import Tree
    from loadspan.instrument.destination import Destination

_AFTER = 100_000_000  # nanoseconds for which a link stays as it was after the last byte
_ENOUGH = 3  # readings while bytes moved, a tenth of a second apart, before a link is said to be slow
_DEVICES = 64  # of a process are remembered
_ADDRESSES = 8  # devices of a load whose relations are told

tree: Tree = HERE
"""Where the topology is read; tests put a recorded machine here."""


class _Device(NamedTuple):
    """A device of this process: its facts, the reader of its links, and which CPUs are near it."""

    facts: DeviceFacts
    links: links.LinkReader | None
    near: frozenset[int] | None
    nodes: dict[int, frozenset[int]]


@lru_cache(maxsize=_DEVICES)
def _way(where: Tree, address: str) -> tuple[links.LinkReader, frozenset[int] | None]:
    """The reader of a device's links, and the CPUs near it. They stay, whatever else becomes known of the device."""
    return links.LinkReader(where, address), pci.local_cpus(where, address)


@lru_cache(maxsize=_DEVICES)
def _nodes(where: Tree) -> dict[int, frozenset[int]]:
    return numa.nodes(where)


_known: dict[tuple[str, int | None, int], _Device] = {}


def _device(kind: str, index: int | None) -> _Device:
    # By process: a child of a fork may have been given other devices.
    key = kind, index, os.getpid()
    found = _known.get(key)
    if found is None:
        facts = device.of_torch(kind, index, tree)
        reader, near = _way(tree, facts.pci_address) if facts.pci_address is not None else (None, None)
        # A machine that names no node for the device lists all CPUs as near.
        found = _Device(facts, reader, near if facts.numa_node is not None else None, _nodes(tree))
        # One that is not set up yet tells less than it will.
        if index is not None and found.facts.final and len(_known) < _DEVICES:
            _known[key] = found
    return found


def look(destination: Destination) -> None:
    """Read the links of the way, while bytes move or just after."""
    ended, reader = destination.ended, _device(*destination.key).links
    if reader is None or (ended and time.perf_counter_ns() - ended > _AFTER):
        return
    read = reader.read()
    narrowest = links.narrowest(read)
    rate = narrowest.bandwidth if narrowest is not None else None
    if rate is not None and rate > destination.rate:
        destination.best, destination.rate = read, rate
    destination.readings += not ended


def watch(destination: Destination) -> None:
    """
    As `look`, by the sampler: it also asks NVIDIA's library, where the answer will be needed.

    That takes unknown time, some seconds of a driver that hangs, and is none of the program's.
    """
    look(destination)
    narrowest = links.narrowest(destination.best)
    slow = narrowest is not None and (narrowest.bandwidth or 0) < (narrowest.bandwidth_max or 0) and destination.readings >= _ENOUGH
    several = len({kind for kind, _, _ in _known}) < len(_known)
    if tree.here and _managed.gpus is None and (slow or several) and _device(*destination.key).facts.type == "cuda":
        _managed.gpus = nvml.gpus()


def attributes(destinations: list[Destination]) -> dict[str, Any]:
    """What is known of the devices that bytes went to: of the first and the way to it, and how several lie to each other."""
    first = destinations[0]
    look(first)
    known = _device(*first.key)
    facts = known.facts
    found = {
        names.DEVICE_TYPE: facts.type,
        names.DEVICE_INDEX: facts.index,
        names.DEVICE_NAME: facts.name,
        names.DEVICE_PCI_ADDRESS: facts.pci_address,
        names.DEVICE_NUMA_NODE: facts.numa_node,
        names.DEVICE_MEMORY: facts.memory,
        names.THREAD_NUMA_NODE: numa.node_of_affinity(first.cpus, known.nodes),
        names.NUMA_RELATION: numa.relation(first.cpus, known.near),
    }
    addresses = [address for one in destinations if (address := _device(*one.key).facts.pci_address) is not None]
    found |= _of_link(first, known) | _related(addresses[:_ADDRESSES])
    return {name: value for name, value in found.items() if value is not None}


def _of_link(destination: Destination, known: _Device) -> dict[str, Any]:
    every = known.links.links if known.links is not None else ()
    best = links.narrowest(destination.best)
    verdict = links.verdict(every, best, moved=True, achieved=destination.achieved or None)
    degraded = verdict.degraded if verdict is not None else None
    if best is not None and ((verdict is not None and verdict.stale) or (degraded and destination.readings < _ENOUGH)):
        # An idle link is slow, and takes its time to wake up: what was read may be no more than that.
        best = degraded = None
    elif degraded and _may_have_other_links(known.facts):
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
        names.LINK_PATH: tuple(_hop(link, now=best is not None) for link in (destination.best if best is not None else every)),
    }


def _hop(link: Link, *, now: bool) -> str:
    """`0000:00:01.0 0000:01:00.0 Gen4 x8 of Gen4 x16`, as far as it is known."""
    known = [str(link.now)] if now and link.bandwidth is not None else []
    known += [str(link.possible)] if link.bandwidth_max is not None else []
    return " ".join([link.parent, link.child, " of ".join(known)]).rstrip()


def _related(addresses: list[str]) -> dict[str, Any]:
    """How devices lie to each other, each pair once."""
    if len(addresses) < 2:  # noqa: PLR2004 - a pair
        return {}
    matrix = _matrix(tree, tuple(addresses), _managed.gpus is not None)
    pairs = [
        f"{one} {other} {cell}"
        for row, one in enumerate(addresses)
        for column, other in enumerate(addresses[row + 1 :], row + 1)
        if (cell := matrix[row][column]) is not None
    ]
    return {names.DEVICE_RELATIONS: tuple(pairs)} if pairs else {}


class _Managed:
    """What NVIDIA's library tells of this machine's GPUs, for what `/sys` does not have."""

    gpus: list[nvml.NvmlGpu] | None = None
    """None until it was asked."""


_managed = _Managed()


@lru_cache(maxsize=_DEVICES)
def _matrix(where: Tree, addresses: tuple[str, ...], asked: bool) -> tuple[tuple[str | None, ...], ...]:  # noqa: FBT001 - a part of the key
    return accelerators.matrix(where, addresses, nvml.nvlinks(_managed.gpus or []) if asked and where.here else {})


def _may_have_other_links(facts: DeviceFacts) -> bool:
    """Whether a device may have links to the CPU that are not PCIe: its PCIe link is then not the main path."""
    if facts.type != "cuda" or not tree.here:
        return False
    return _managed.gpus is None or any(gpu.c2c for gpu in _managed.gpus if gpu.address == facts.pci_address)
