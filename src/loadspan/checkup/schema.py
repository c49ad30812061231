"""
What `loadspan check` found: plain data, which is printed as text or, field by field, as JSON.

The names here are those of the JSON and stay. What is not known is None and left out of the JSON; lists may be empty.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1


def _required(meaning: str, unit: str = "") -> Any:
    return dataclasses.field(metadata={"meaning": meaning, "unit": unit})


def _known(meaning: str, unit: str = "") -> Any:
    return dataclasses.field(default=None, metadata={"meaning": meaning, "unit": unit})


def _list(meaning: str, unit: str = "") -> Any:
    return dataclasses.field(default=(), metadata={"meaning": meaning, "unit": unit})


def _map(meaning: str, unit: str = "") -> Any:
    return dataclasses.field(default_factory=dict, metadata={"meaning": meaning, "unit": unit})


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The computer and what this process may use of it."""

    kernel: str | None = _known("release of the kernel")
    architecture: str | None = _known("of the processor, as the kernel names it")
    processor: str | None = _known("name of the CPU model")
    cpus: int | None = _known("CPUs that are online", "CPUs")
    cpus_allowed: str | None = _known("CPUs that this process may use, as the kernel lists them: `0-3,8`")
    cpu_limit: float | None = _known("CPU time that its control groups grant", "CPUs")
    numa_nodes: int | None = _known("NUMA nodes", "nodes")
    virtual: bool | None = _known("true in a virtual machine; absent where nothing says so")
    hypervisor: str | None = _known("who made the virtual machine")
    container: str | None = _known("docker or podman, where they left their mark")
    wsl: bool | None = _known("whether this is Windows' Linux")
    huge_pages: str | None = _known("transparent huge pages: always, madvise, never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of the machine and of the control group of this process."""

    total: int | None = _known("memory of the machine", "By")
    available: int | None = _known("what can be had without swapping", "By")
    limit: int | None = _known(
        "tightest limit of the control groups, the page cache counted; absent where there is none below the memory of the machine", "By"
    )
    used: int | None = _known("memory that the control group uses, the page cache counted", "By")
    swap: int | None = _known("swap space", "By")
    swap_used: int | None = _known("swap space in use", "By")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One NUMA node."""

    number: int = _required("its number")
    cpus: str | None = _known("its CPUs, as the kernel lists them; empty for a node of memory alone")
    distances: Mapping[str, int] = _map("distance to each node by its number, 10 is itself")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One PCIe link on the way to a device. `now` is a reading of an idle link: nothing is slow because it is low."""

    upper: str = _required("PCI address of the end nearer to the CPU")
    lower: str = _required("PCI address of the end nearer to the device")
    generation: int | None = _known("PCIe generation now")
    width: int | None = _known("lanes now", "lanes")
    generation_possible: int | None = _known("highest generation that both ends support")
    width_possible: int | None = _known("most lanes that both ends have", "lanes")
    generation_device: int | None = _known("highest generation that the lower end supports")
    width_device: int | None = _known("most lanes that the lower end has", "lanes")
    bandwidth: int | None = _known("possible in one direction, encoding taken off", "By/s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator."""

    label: str = _required("`GPU0`, `GPU1`, ... in the order of their PCI addresses, as `nvidia-smi topo -m` has them")
    type: str | None = _known("cuda, hip (which torch calls cuda), xpu, ...")
    index: int | None = _known("index by which torch knows it in this process; absent where the order is not certain")
    visible: bool | None = _known("whether this process may use it, by the environment; absent where that is not certain")
    name: str | None = _known("name of the product")
    driver: str | None = _known("kernel driver that has it")
    vendor: str | None = _known("who made it")
    pci_address: str | None = _known("PCI address")
    memory: int | None = _known("its memory", "By")
    numa_node: int | None = _known("NUMA node that it is attached to")
    cpus: str | None = _known("CPUs near it, as the kernel lists them")
    links: tuple[Link, ...] = _list("PCIe links from the CPU to it, in this order")
    narrowest: Link | None = _known("the link of least possible bandwidth")  # noqa: RUF009 - describes a field
    c2c: int | None = _known("links to the CPU that are not PCIe, and carry the bytes in its place", "links")
    relations: Mapping[str, str] = _map("way to every other device by its label: PIX, PXB, PHB, NODE, SYS, NV1, ...")

    @property
    def torch_name(self) -> str | None:
        """As torch calls it in this process, which says cuda of what is hip; None where that is not certain."""
        return f"{'cuda' if self.type == 'hip' else self.type}:{self.index}" if self.type and self.index is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk at the bottom of a filesystem."""

    name: str = _required("name of the kernel for it")
    number: str | None = _known("major and minor number")
    kind: str | None = _known("nvme, ssd, hdd, virtual, network or memory")
    model: str | None = _known("what it says it is")
    pci_address: str | None = _known("PCI address of its controller")


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A mounted filesystem with files of the path on it."""

    filesystem: str | None = _known("type of the filesystem")
    mountpoint: str | None = _known("where it is mounted")
    root: str | None = _known("what of the filesystem is mounted, where not all of it is")
    source: str | None = _known("what is mounted: device, `server:/export`, ...")
    subtype: str | None = _known("what is behind FUSE; `drvfs` for a drive of Windows")
    options: Mapping[str, str] = _map("options of the filesystem that explain speed")
    server: str | None = _known("host of a network filesystem")
    kind: str | None = _known("nvme, ssd, hdd, virtual, network, fuse, memory or overlay")
    device: str | None = _known("block device of the filesystem")
    stack: tuple[str, ...] = _list("devices from the disks up to that device")
    disks: tuple[Disk, ...] = _list("the disks at the bottom")
    encrypted: bool | None = _known("whether dm-crypt is on the way: decryption that no Python code shows")
    read_ahead: int | None = _known("bytes that the kernel reads ahead", "By")
    files: int | None = _known("files of the path on it", "files")
    size: int | None = _known("bytes of those files", "By")
    cached: float | None = _known("fraction of those bytes in the page cache, 0 to 1")
    evicted: float | None = _known("fraction of those bytes that had been in the page cache and that the kernel reclaimed, 0 to 1")
    cached_method: str | None = _known("how that was asked: cachestat or mincore")
    cached_sampled: bool | None = _known("whether parts of the files stand for all")
    cached_of: int | None = _known("bytes of the files that could be asked", "By")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A path that was asked about."""

    path: str = _required("as it was given")
    resolved: str = _required("absolute, links resolved")
    folder: bool | None = _known("whether it is a folder")
    files: int | None = _known("files with weights: by their suffix, or of 16 MiB and more; all files where none is", "files")
    size: int | None = _known("bytes of those files", "By")
    formats: Mapping[str, int] = _map("how many files of each suffix", "files")
    unreadable: int | None = _known("files that this user may not read", "files")
    broken: int | None = _known("links that lead nowhere", "links")
    complete: bool = _required("whether all of the folder was looked at")
    storage: tuple[Storage, ...] = _list("the filesystems with its files, the one with most bytes first")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A ceiling that `--measure` measured, now or earlier, or why there is none."""

    probe: str = _required("what was measured")
    about: str | None = _known("path or device that it was measured with; absent where it is the processor")
    rate: float | None = _known("bytes per second", "By/s")
    size: int | None = _known("bytes that were moved", "By")
    duration: float | None = _known("seconds that it took; of decryption, on the CPU", "s")
    depth: int | None = _known("requests at once", "requests")
    block: int | None = _known("bytes of one request", "By")
    verified: bool | None = _known("whether the kernel counted the bytes as read from storage; absent where it does not tell")
    source: str | None = _known("where the bytes came from: storage, page cache, storage and page cache, memory, unknown")
    note: str | None = _known("what to know about it")
    measured: str | None = _known("when, in UTC")
    skipped: str | None = _known("why nothing was measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Something suspicious."""

    id: str = _required("which remark; stays")
    about: str | None = _known("path or device that it is about")
    text: str = _required("one sentence with its evidence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """All of it."""

    version: int = _required("1; a field that changes its meaning would change it")
    loadspan: str = _required("version of loadspan")
    captured: bool = _required("whether the facts come from `--root` and not from this machine")
    machine: Machine = _required("the computer")  # noqa: RUF009 - describes a field
    memory: Memory = _required("its memory")  # noqa: RUF009 - describes a field
    nodes: tuple[Node, ...] = _list("its NUMA nodes; none where it does not say")
    devices: tuple[Device, ...] = _list("its accelerators")
    paths: tuple[Place, ...] = _list("the paths that were asked about")
    measured: tuple[Measured, ...] = _list("ceilings: what was measured now, or is kept of the paths and devices from earlier")
    remarks: tuple[Remark, ...] = _list("what is suspicious; none where nothing is")


SCHEMA = (Checkup, Machine, Memory, Node, Device, Link, Place, Storage, Disk, Measured, Remark)
"""The parts, in the order of the documentation."""


def as_json(part: Any) -> Any:
    """*part* as what `json` can write; unknown fields are left out."""
    if dataclasses.is_dataclass(part):
        found = {field.name: as_json(getattr(part, field.name)) for field in dataclasses.fields(part)}
        return {name: value for name, value in found.items() if value is not None}
    if isinstance(part, tuple | list):
        return [as_json(item) for item in part]
    return dict(part) if isinstance(part, dict) else part
