"""
What is suspicious about a machine and a path before anything was loaded: one sentence each, with the numbers that it rests on.

Everything here was read from an idle machine. An idle link may stand at its lowest speed, so nothing is called degraded.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from loadspan import units
from loadspan.checkup.schema import Remark
from loadspan.facts import numa
from loadspan.facts.links import Lanes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadspan.checkup.schema import Checkup, Device, Link, Machine, Memory, Place, Storage

_COLD, _WARM = 0.05, 0.95
_EVICTED, _EVICTED_OF_SAMPLE = 0.01, 0.05
_SMALL_READ_AHEAD = 128 << 10
_MAPPED = ("safetensors", "gguf", "ggml", "npy", "llamafile")
"""Formats whose loaders map the file into memory."""
_FETCHED = ("9p", "virtiofs", "drvfs", "v9fs")
_SWAPPED = 0.01  # of the memory, from which swap in use is more than what lay idle
_LITTLE_CPU = 1.0


def find(checkup: Checkup) -> tuple[Remark, ...]:
    """Every remark on *checkup*: on the paths first, since they are what was asked about."""
    found = [remark for place in checkup.paths for remark in _on_place(place, checkup.memory)]
    nodes = {node.number: node.cpus for node in checkup.nodes}
    for device in checkup.devices:
        found += _on_cpus(device, checkup.machine, nodes) if device.visible is not False else ()
        # Beside memory of its own that the CPU sees as a node, a device has other links than PCIe, and no use for the speed of that.
        found += _on_links(device) if device.visible is not False and not device.c2c and "" not in nodes.values() else ()
    return (*found, *_on_machine(checkup.machine, checkup.memory))


def _on_place(place: Place, memory: Memory) -> Iterator[Remark]:
    def remark(name: str, text: str) -> Remark:
        return Remark(id=name, about=place.path, text=text)

    if place.broken:
        yield remark("broken_links", f"{_count(place.broken, 'link leads', 'links lead')} nowhere: a download that is not complete?")
    if place.unreadable:
        yield remark("unreadable", f"{_count(place.unreadable, 'file', 'files')} of {place.files} may not be read by this user.")
    if place.files == 0:
        yield remark("no_files", "there is no file to load in it.")
    for storage in place.storage:
        for name, text in _on_storage(storage, place):
            yield remark(name, text)
    kept = [storage for storage in place.storage if storage.kind != "memory"]
    size = sum(storage.size or 0 for storage in kept)
    if memory.limit is not None and size > memory.limit:
        yield remark(
            "memory_limit",
            f"{units.size(size)} of files, but a memory limit of {units.size(memory.limit)}: the page cache counts towards it, so they "
            "cannot stay cached, and every load reads them again.",
        )
    elif memory.total is not None and size > memory.total:
        yield remark(
            "memory_small",
            f"{units.size(size)} of files, but {units.size(memory.total)} of memory: they cannot stay cached, and every load reads them "
            "again.",
        )


def _on_storage(storage: Storage, place: Place) -> Iterator[tuple[str, str]]:
    where = f"{storage.filesystem} on {storage.mountpoint}"
    remote = storage.kind in ("network", "fuse") or storage.filesystem in _FETCHED
    ahead = f" of {units.binary(storage.read_ahead)}" if storage.read_ahead is not None else ""
    mapped = [name for name in place.formats if name in _MAPPED]
    if remote and mapped:
        yield _said(
            "mapped_remote",
            f"{where} fetches a mapped file in pieces of the read-ahead{ahead}, one after the other, and {' and '.join(mapped)} files are "
            "usually mapped. Have the loader read them in large pieces, or copy them to a local disk.",
        )
    if storage.read_ahead is not None and storage.read_ahead <= _SMALL_READ_AHEAD and (remote or storage.kind == "virtual"):
        yield _said(
            "read_ahead",
            f"read-ahead of {where} is {units.binary(storage.read_ahead)}: sequential and mapped reads wait for many small requests, each "
            f"a round trip to a {_FAR.get(storage.kind or '', 'remote storage')}.{_raise(storage)}",
        )
    if storage.encrypted:
        layer = "lies on dm-crypt" if "dm-crypt" in storage.stack else "is encrypted"
        yield _said("encrypted", f"{where} {layer}: every byte that is not cached is decrypted below the program, where no span shows it.")
    if storage.kind == "hdd":
        models = [disk.model for disk in storage.disks if disk.model]
        yield _said(
            "spinning_disk",
            f"{where} lies on a spinning disk{f' ({models[0]})' if models else ''}: reads in any other order than the disk's are slow.",
        )
    if storage.kind == "overlay":
        yield _said(
            "overlay",
            f"{where}: the files are in the image or in the writable layer of a container"
            f"{'' if storage.disks else ', and what disk that is cannot be seen from here'}. Weights belong on a mounted volume.",
        )
    yield from _on_cache(storage, remote=remote)


def _raise(storage: Storage) -> str:
    number = storage.disks[0].number if len(storage.disks) == 1 else None
    return f" Root can raise it in /sys/class/bdi/{number}/read_ahead_kb." if number else ""


_FAR = {"virtual": "disk outside this virtual machine", "network": "server", "fuse": "user process"}


def _on_cache(storage: Storage, *, remote: bool) -> Iterator[tuple[str, str]]:
    # What a FUSE or network filesystem has cached may be dropped as soon as the file is opened.
    asked = storage.cached_of if storage.cached_of is not None else storage.size
    if storage.cached is None or asked is None or storage.kind == "memory" or remote:
        return
    cached, missing, gone = (share * asked for share in (storage.cached, 1 - storage.cached, storage.evicted or 0.0))
    least = _EVICTED_OF_SAMPLE if storage.cached_sampled else _EVICTED
    evicted = f" {units.size(gone)} had been there and was pushed out again." if gone > least * asked else ""
    if storage.cached < _COLD:
        there = units.size(cached) if cached else "nothing"
        yield _said(
            "cold_cache", f"{there} of {units.size(asked)} is in the page cache: the next load reads it from {_disk(storage)}.{evicted}"
        )
    elif storage.cached < _WARM:
        about = "about " if storage.cached_sampled else ""
        yield _said(
            "partly_cached",
            f"{about}{units.size(cached)} of {units.size(asked)} is in the page cache: the next load reads the other "
            f"{units.size(missing)} from {_disk(storage)}.{evicted}",
        )


def _disk(storage: Storage) -> str:
    return storage.disks[0].name if len(storage.disks) == 1 else f"{len(storage.disks)} disks" if storage.disks else "storage"


def _on_links(device: Device) -> Iterator[Remark]:
    link, end = device.narrowest, device.links[-1] if device.links else None
    if link is not None and end is not None and (text := _narrow(link, end)):
        yield Remark(id="narrow_link", about=device.label, text=text)
    for hop in device.links:
        if hop.width is not None and hop.width_possible is not None and hop.width < hop.width_possible:
            text = f"{hop.upper} to {hop.lower} reads x{hop.width}, x{hop.width_possible} is possible. An idle link may be narrower than"
            yield Remark(id="link_width", about=device.label, text=f"{text} a busy one: record a load to see it while bytes move.")


def _on_cpus(device: Device, machine: Machine, nodes: dict[int, str | None]) -> Iterator[Remark]:
    allowed = _cpus(machine.cpus_allowed)
    if numa.relation(allowed, _cpus(device.cpus)) == "remote":
        own = numa.node_of_affinity(allowed, {number: cpus for number, text in nodes.items() if (cpus := _cpus(text))})
        here = "" if own is None else f" of node {own}"
        there, bind = "", ""
        if device.numa_node is not None:
            there, bind = f" of NUMA node {device.numa_node}", f" Start the program with: numactl --cpunodebind={device.numa_node}"
        yield Remark(
            id="remote_cpus",
            about=device.label,
            text=f"it is near CPUs {device.cpus}{there}, but this process may only use {machine.cpus_allowed}{here}: every copy crosses "
            f"between nodes.{bind}",
        )


def _narrow(link: Link, end: Link) -> str | None:
    """The narrowest link has less than the device at its end could use."""
    if link.bandwidth is None:
        return None
    able = Lanes(end.generation_device, end.width_device)
    if able.bandwidth is None or link.bandwidth >= round(able.bandwidth):
        return None
    possible = Lanes(link.generation_possible, link.width_possible)
    return (
        f"at most {possible} is possible from {link.upper} to {link.lower}, {units.throughput(link.bandwidth)}; the device supports "
        f"{able}, {units.throughput(able.bandwidth)}. Another slot may have more."
    )


def _on_machine(machine: Machine, memory: Memory) -> Iterator[Remark]:
    if memory.swap_used is not None and memory.total and memory.swap_used > _SWAPPED * memory.total:
        yield Remark(
            id="swap",
            about=None,
            text=f"{units.size(memory.swap_used)} of swap is in use: memory was short, and weights may be swapped out as they are loaded.",
        )
    if machine.cpu_limit is not None and machine.cpu_limit < _LITTLE_CPU:
        yield Remark(
            id="cpu_limit",
            about=None,
            text=f"the control group allows {machine.cpu_limit:g} CPUs: decryption, casts and copies are throttled to that.",
        )


def _cpus(text: str | None) -> frozenset[int] | None:
    return numa.parse_cpulist(os.fsencode(text)) if text else None


def _said(name: str, text: str) -> tuple[str, str]:
    return name, text


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
