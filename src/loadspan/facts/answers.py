"""
What no kernel file says of a machine and its paths: answers of system calls, of libraries, and the variables that choose devices.

They are asked of this machine, and of a captured one read from its `loadspan.json`, which may say anything: what is not as `as_json`
writes it is left out.
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from loadspan.facts import accelerators, checkup, machine, numa, nvml, pagecache, pci, storage, weights
from loadspan.facts.checkup import Measured
from loadspan.facts.tree import HERE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loadspan.facts.accelerators import Accelerator
    from loadspan.facts.scrub import Scrub
    from loadspan.facts.storage import StorageFacts
    from loadspan.facts.tree import Tree
    from loadspan.facts.weights import File, Weights

VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_PIPE_DIRECTORY", "NVIDIA_VISIBLE_DEVICES"),
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
    *("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR", "SYCL_DEVICE_FILTER", "ASCEND_RT_VISIBLE_DEVICES"),
)
"""Environment variables that choose devices; no other one is looked at or captured."""

_LOOKING = 3.0  # seconds in which the page cache is asked about the files of one path
_LARGEST = 1 << 62
_LONGEST = 1 << 13
_MOST = 1 << 12


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
    """Share of them that had been cached and that the kernel took to make room."""
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
        cpus=machine.cpulist(allowed) if allowed else None,
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


def as_json(answers: Answers) -> dict[str, Any]:
    """*answers* for `loadspan.json`."""

    def known(part: Any) -> dict[str, Any]:
        found = {name: getattr(part, name) for name in part.__slots__}
        return {name: value for name, value in found.items() if value is not None}

    return {
        **known(answers),
        "accelerators": [known(told) for told in answers.accelerators],
        "measured": checkup.as_json(answers.measured),
        "places": [{**known(place), "groups": [known(group) for group in place.groups]} for place in answers.places],
    }


def scrubbed(answers: Answers, scrub: Scrub) -> Answers:
    """*answers* without what *scrub* takes out, with the paths as its mounts have them."""
    places = []
    for place in answers.places:
        groups = [replace(group, file=scrub.path(group.file), below=group.below and scrub.path(group.below)) for group in place.groups]
        places.append(replace(place, path=scrub.path(place.path), resolved=scrub.path(place.resolved), groups=tuple(groups)))
    measured = [replace(one, about=one.about and scrub.path(one.about)) for one in answers.measured]
    environment = {name: scrub.text(text) for name, text in answers.environment.items()}
    return replace(answers, environment=environment, places=tuple(places), measured=tuple(measured))


def parse(manifest: Mapping[str, Any]) -> Answers:
    """The answers in *manifest*, a `loadspan.json`; what is not as `as_json` writes it is left out."""
    environment = manifest.get("environment")
    variables = environment if isinstance(environment, dict) else {}
    cpus = _text(manifest.get("cpus"))
    return Answers(
        environment={name: text for name in VARIABLES if (text := _text(variables.get(name), empty=True)) is not None},
        cpus=cpus if cpus and numa.parse_cpulist(cpus.encode()) else None,
        accelerators=tuple(_each(manifest.get("accelerators"), _parse_told)),
        nvlinks=tuple(_each(manifest.get("nvlinks"), _parse_nvlink)),
        places=tuple(_each(manifest.get("places"), _parse_place)),
        measured=tuple(_each(manifest.get("measured"), _parse_measured)),
    )


def _each(value: Any, parse: Callable[[Any], Any]) -> list[Any]:
    return [found for item in value[:_MOST] if (found := parse(item)) is not None] if isinstance(value, list) else []


def _text(value: Any, *, empty: bool = False) -> str | None:
    return value if isinstance(value, str) and len(value) <= _LONGEST and (value or empty) and "\0" not in value else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST else None


def _share(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else None


def _parse_told(item: Any) -> Told | None:
    address = pci.normalized(item["address"]) if isinstance(item, dict) and _text(item.get("address")) else None
    if address is None:
        return None
    whole = {name: _whole(item.get(name)) for name in ("memory", "c2c", "index")}
    return Told(address, _text(item.get("name")), **whole, visible=_flag(item.get("visible")))


def _parse_nvlink(item: Any) -> tuple[str, str, int] | None:
    if not isinstance(item, list) or len(item) != 3 or not _text(item[0]) or not _text(item[1]):  # noqa: PLR2004 - two ends and a count
        return None
    one, other, count = pci.normalized(item[0]), pci.normalized(item[1]), _whole(item[2])
    return (one, other, count) if one and other and count and count <= _MOST else None


def _parse_measured(item: Any) -> Measured | None:
    if not isinstance(item, dict) or _text(item.get("probe")) is None:
        return None
    parsers: dict[str, Callable[[Any], Any]] = {"str": _text, "bool": _flag, "int": _whole, "float": _rate}
    fields = {field.name: parsers[str(field.type).removesuffix(" | None")] for field in dataclasses.fields(Measured)}
    return Measured(**{name: parse(item.get(name)) for name, parse in fields.items()})


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _rate(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _LARGEST else None


def _parse_group(item: Any) -> Group | None:
    if not isinstance(item, dict):
        return None
    file, files, size = _text(item.get("file")), _whole(item.get("files")), _whole(item.get("size"))
    if file is None or not file.startswith("/"):
        return None
    below = _text(item.get("below"))
    group = Group(file, files, size, below=below if below is not None and below.startswith("/") else None)
    cached, cached_of = _share(item.get("cached")), _whole(item.get("cached_of"))
    if cached is None or not cached_of or size is None or cached_of > size:
        return group
    method, sampled = _text(item.get("method")), item.get("sampled") is True
    return replace(group, cached=cached, method=method, sampled=sampled, cached_of=cached_of, evicted=_share(item.get("evicted")))


def _parse_place(item: Any) -> Place | None:
    if not isinstance(item, dict):
        return None
    path, resolved, formats = _text(item.get("path")), _text(item.get("resolved")), item.get("formats")
    if path is None or resolved is None or not resolved.startswith("/"):
        return None
    counted = formats.items() if isinstance(formats, dict) and len(formats) <= _MOST else ()
    return Place(
        path=path,
        resolved=resolved,
        folder=_flag(item.get("folder")),
        formats={name: count for name, value in counted if _text(name) and (count := _whole(value))},
        unreadable=_whole(item.get("unreadable")) or 0,
        broken=_whole(item.get("broken")) or 0,
        complete=item.get("complete") is not False,
        groups=tuple(_each(item.get("groups"), _parse_group)),
    )
