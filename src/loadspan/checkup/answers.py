"""
What no kernel file says of a machine and its paths: answers of system calls, of libraries, and the variables that choose devices.

They are asked of this machine; those of a captured one are in its manifest.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from loadspan.checkup import weights
from loadspan.facts import accelerators, numa, nvml, pagecache, storage
from loadspan.facts.tree import HERE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadspan.checkup.schema import Measured
    from loadspan.checkup.weights import File, Weights
    from loadspan.facts.accelerators import Accelerator
    from loadspan.facts.storage import StorageFacts
    from loadspan.facts.tree import Tree

VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_PIPE_DIRECTORY", "NVIDIA_VISIBLE_DEVICES"),
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
    *("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR", "SYCL_DEVICE_FILTER", "ASCEND_RT_VISIBLE_DEVICES"),
)
"""Environment variables that choose devices; no other one is looked at or captured."""

_LOOKING = 3.0  # seconds in which the page cache is asked about the files of one path


@dataclass(frozen=True, slots=True)
class Group:
    """Files of a path that are on one filesystem."""

    file: str
    """One of them, absolute, links resolved."""
    files: int | None = None
    size: int | None = None
    cached: float | None = None
    method: str | None = None
    sampled: bool | None = None
    cached_of: int | None = None
    """Bytes of the files that could be asked about."""
    evicted: float | None = None
    """Share of them that had been cached and that the kernel reclaimed."""
    below: str | None = None
    """Of an overlay, where that file lies in its layer, where that can be reached."""


@dataclass(frozen=True, slots=True)
class Place:
    """A path that was asked about."""

    path: str
    resolved: str
    folder: bool | None = None
    formats: Mapping[str, int] = field(default_factory=dict)
    unreadable: int = 0
    broken: int = 0
    complete: bool = True
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """What libraries and device files told of one accelerator."""

    address: str
    name: str | None = None
    memory: int | None = None
    c2c: int | None = None
    index: int | None = None
    visible: bool | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """All of it."""

    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: str | None = None
    """CPUs that the process may use."""
    accelerators: tuple[Told, ...] = ()
    nvlinks: tuple[tuple[str, str, int], ...] = ()
    places: tuple[Place, ...] = ()
    measured: tuple[Measured, ...] = ()


def ask(paths: Sequence[str], environment: Mapping[str, str], tree: Tree = HERE) -> Answers:
    """
    Ask this machine; what the kernel's files have to say is read through *tree*. Each of *paths* has to exist.

    Raises:
        FileNotFoundError: one does not.
    """
    found = {name: environment[name] for name in VARIABLES if name in environment}
    managed = nvml.gpus()
    allowed = numa.affinity(tree)
    told = accelerators.machine_devices(tree, found, managed)
    return Answers(
        environment=found,
        cpus=numa.cpulist(allowed) if allowed else None,
        accelerators=tuple(_told(device) for device in told),
        nvlinks=tuple((*pair, count) for pair, count in nvml.nvlinks(managed).items()),
        places=tuple(_place(path, tree) for path in paths),
    )


def _told(device: Accelerator) -> Told:
    return Told(device.address, device.name, device.memory, device.c2c, device.index, device.visible)


def _place(path: str, tree: Tree) -> Place:
    found = weights.find(path)
    if found is None:
        raise FileNotFoundError(path)
    return Place(
        path=path,
        resolved=found.resolved,
        folder=found.folder,
        formats=found.formats,
        unreadable=sum(not file.readable for file in found.files),
        broken=found.broken,
        complete=found.complete,
        groups=tuple(sorted(_groups(found, tree), key=lambda group: (-(group.size or 0), group.file))),
    )


def _groups(found: Weights, tree: Tree) -> list[Group]:
    """The files by the storage that they are on; of a path without files, the storage of the path."""
    by_folder: dict[tuple[str, int], StorageFacts | None] = {}
    by_storage: dict[StorageFacts | None, list[File]] = {}
    for file in found.files:
        # A file may be a mount of its own; it is then the only one of its device in the folder.
        key = (os.path.dirname(file.path), file.device)  # noqa: PTH120 - there are many
        facts = by_folder[key] if key in by_folder else by_folder.setdefault(key, storage.of_file(file.path, tree))
        by_storage.setdefault(facts, []).append(file)
    if not found.files:
        storage.of_file(found.resolved, tree)  # so that a capture has it
        return [Group(found.resolved, 0, 0)]
    end = time.monotonic() + _LOOKING
    return [replace(_group(files, facts, end), below=_below(files[0].path, facts)) for facts, files in by_storage.items()]


def _below(path: str, facts: StorageFacts | None) -> str | None:
    if facts is None or facts.filesystem != "overlay" or not facts.disks:
        return None
    inside = path[len(facts.mountpoint.rstrip("/")) :]
    options = dict(facts.options)
    layers = [options.get("upperdir", ""), *options.get("lowerdir", "").split(":")]
    return next((layer + inside for layer in layers if layer.startswith("/") and os.path.lexists(layer + inside)), None)


def _group(files: Sequence[File], facts: StorageFacts | None, end: float) -> Group:
    asked = cached = evicted = 0.0
    told = True
    method, sampled = None, False
    # The largest first, for what cannot be asked about in time.
    for file in sorted(files, key=lambda file: -file.size):
        if time.monotonic() > end:
            sampled = sampled or asked > 0
            break
        residency = pagecache.residency(file.path, facts) if file.size else None
        if residency is not None:
            asked += file.size
            cached += residency.fraction * file.size
            evicted += (residency.evicted or 0.0) * file.size
            told = told and residency.evicted is not None
            method, sampled = residency.method, sampled or residency.sampled
    group = Group(files[0].path, len(files), sum(file.size for file in files))
    if not asked:
        return group
    gone = round(evicted / asked, 4) if told else None
    return replace(group, cached=round(cached / asked, 4), method=method, sampled=sampled, cached_of=int(asked), evicted=gone)
