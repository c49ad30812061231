"""From what was recorded to span attributes. A number that is not known is left out."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from loadspan import names, units
from loadspan.facts import storage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.facts.counters import IoFacts
    from loadspan.facts.storage import StorageFacts
    from loadspan.instrument.frames import OpenLoad, OpenStage
    from loadspan.instrument.tally import Tally

_TEXT_LIMIT = 1024
_FRAMES = 3
_UNKNOWN = 0.05  # share of the busy time of which it need not be known whether the thread was asleep
_FROM_FILES = (names.READ, names.DESERIALIZE)
_ORDER = (
    names.DESERIALIZE,
    names.DECRYPT,
    names.READ,
    names.DOWNLOAD,
    names.CACHE,
    names.MERGE_LORA,
    names.LOAD_STATE_DICT,
    names.TO_DEVICE,
    names.CONVERT,
)


def _clip(text: str) -> str:
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"


def files(paths: Iterable[str], *, full_paths: bool) -> dict[str, Any]:
    """Path, size, count and filesystem of the files of a stage."""
    known = list(paths)
    if not known:
        return {}
    found: dict[str, Any] = {}
    sizes = [size for size in map(file_size, known) if size is not None]
    if len(sizes) == len(known):
        found[names.FILE_SIZE] = sum(sizes)
    if len(known) > 1:
        found[names.FILE_COUNT] = len(known)
    # Of several files the first one's name: an attribute is a fact about the stage, the count says that there are more.
    found[names.FILE_PATH] = _clip(os.path.realpath(known[0]) if full_paths else os.path.basename(known[0]))  # noqa: PTH119 - plain text
    mounts = {storage.of_file(path) for path in known}
    mount = mounts.pop() if len(mounts) == 1 else None
    return found | _of_storage(mount) if mount is not None else found


def _of_storage(mount: StorageFacts) -> dict[str, Any]:
    """What a file is on."""
    models = {disk.model for disk in mount.disks}
    local = mount.number is not None
    found = {
        names.FILESYSTEM_TYPE: mount.filesystem,
        names.FILESYSTEM_MOUNTPOINT: mount.mountpoint,
        names.SYSTEM_DEVICE: mount.device if local else None,
        names.SERVER_ADDRESS: mount.server,
        names.STORAGE_KIND: mount.kind,
        names.STORAGE_STACK: mount.stack if len(mount.stack) > 1 else None,
        names.STORAGE_MODEL: models.pop() if len(models) == 1 else None,
        names.STORAGE_ENCRYPTED: True if mount.encrypted else None,
        names.STORAGE_READ_AHEAD: mount.read_ahead,
        names.STORAGE_SOURCE: None if local else mount.source,
        names.STORAGE_SUBTYPE: mount.subtype,
        names.STORAGE_ROOT: mount.root if mount.root != "/" else None,
        names.STORAGE_OPTIONS: tuple(f"{name}={value}" for name, value in mount.options) or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def file_size(path: str) -> int | None:
    """Size of the file *path* in bytes, None where it is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - no Path object on the recording side
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError):
        return None


def _io(facts: IoFacts | None) -> dict[str, Any]:
    if facts is None:
        return {}
    found = {
        names.IO_STORAGE_READ: facts.storage_read,
        names.IO_READ: facts.read,
        names.FAULT_MAJOR: facts.fault_major,
        names.FAULT_MINOR: facts.fault_minor,
        names.CPU_TIME: facts.cpu_time,
        names.BLOCKED_TIME: facts.blocked_time,
        names.RUN_QUEUE_TIME: facts.run_queue_time,
    }
    return {name: value for name, value in found.items() if value is not None}


def _cold(found: dict[str, Any], paths: Iterable[str], size: int | None, *, deferred: bool) -> None:
    """Add how much of a read came from the device, where the kernel counts that for this filesystem."""
    read = found.get(names.IO_STORAGE_READ)
    # Bytes that were in memory already came from no device, those of a direct read all, whatever was in the page cache.
    if deferred or not size or read is None or found.get(names.READ_METHOD) in ("memory", "direct"):
        return
    mounts = [storage.of_file(path) for path in paths]
    if mounts and all(mount is not None and mount.counted for mount in mounts):
        found[names.CACHE_COLD] = min(1.0, read / size)


def _resident(found: dict[str, Any], load: OpenLoad, met: list[str]) -> None:
    """Add how much of the files that this was the first of its load to read was in the page cache before."""
    share = load.surroundings.residency(met) if met else None
    if share is not None:
        found[names.CACHE_RESIDENCY] = share


def _throughput(found: dict[str, Any], size: int | None, busy: int, *, deferred: bool) -> None:
    if size and busy > 0 and not deferred:
        found[names.THROUGHPUT] = size / (busy / 1e9)


def of_stage(stage: OpenStage, end: int, *, full_paths: bool) -> dict[str, Any]:
    """Attributes of a coarse stage that ended at *end*."""
    found: dict[str, Any] = {names.STAGE: stage.name, names.THREAD_NAME: stage.thread_name}
    size = stage.size_known
    if size is not None:
        found[names.SIZE] = size
    if stage.deferred:
        found[names.DEFERRED] = True
    if stage.inner_count > 1:
        found[names.OPERATION_COUNT] = stage.inner_count
    found |= _io(stage.finished)
    if stage.finished is not None:
        found[names.IO_SCOPE] = "process" if stage.alone else "thread"
    found |= files(stage.paths, full_paths=full_paths)
    busy = end - stage.start - stage.nested
    if stage.nested:
        found[names.BUSY_TIME] = max(0, busy) / 1e9
    _throughput(found, size, busy, deferred=stage.deferred or not stage.rated)
    found |= stage.inner_attributes or {}
    found |= stage.attributes
    if stage.destination is not None:
        found |= stage.destination.attributes()
    _resident(found, stage.load, stage.met)
    if stage.name in _FROM_FILES:
        _cold(found, stage.paths, size, deferred=stage.deferred)
    return found


def _io_of_tally(tally: Tally) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if tally.measured:
        found = {names.IO_STORAGE_READ: tally.storage_read, names.FAULT_MAJOR: tally.major, names.IO_SCOPE: "thread"}
        if not tally.joint:
            found[names.FAULT_MINOR] = tally.minor
    if tally.blocked is not None and tally.joint <= tally.busy * _UNKNOWN:
        found |= {names.BLOCKED_TIME: tally.blocked, names.CPU_TIME: tally.on_cpu, names.RUN_QUEUE_TIME: tally.waiting}
    return found


def of_tally(tally: Tally, *, full_paths: bool) -> dict[str, Any]:
    """Attributes of a tally or of one segment of it."""
    found: dict[str, Any] = {
        names.STAGE: tally.name,
        names.OPERATION_COUNT: tally.count,
        names.BUSY_TIME: tally.busy / 1e9,
    }
    if not tally.joint or len(tally.threads) == 1:
        found[names.CONCURRENCY] = max(1, tally.concurrency)
    if len(tally.threads) == 1:
        found[names.THREAD_NAME] = next(iter(tally.threads.values()))
    if tally.apart:
        found[tally.apart] = tally.busy / 1e9
    if tally.sized:
        found[names.SIZE] = tally.size
    if tally.deferred:
        found[names.DEFERRED] = True
    found |= _io_of_tally(tally)
    if tally.slowest and tally.count > 1:
        found[names.SLOWEST] = tuple(_slow(*entry) for entry in sorted(tally.slowest, reverse=True))
    found |= files(tally.paths, full_paths=full_paths)
    _throughput(found, tally.size if tally.sized else None, tally.busy, deferred=tally.deferred or not tally.rated)
    found |= tally.attributes
    if tally.destination is not None:
        found |= tally.destination.attributes()
    _resident(found, tally.load, tally.met)
    if tally.name == names.READ and tally.sized and not tally.deferred:
        found[names.IO_READ] = tally.size
    if tally.name in _FROM_FILES:
        _cold(found, tally.paths, tally.size if tally.sized else None, deferred=tally.deferred)
    return found


def _slow(took: int, _count: int, size: int | None, label: str) -> str:
    parts = [_clip(label)]
    if size is not None:
        parts.append(units.size(size))
    return " ".join([*parts, units.seconds(took / 1e9)])


def load_size(totals: dict[str, int]) -> int | None:
    """Bytes of the weights of a load: of the first stage, in order of how well it knows them, that has any."""
    return next((totals[stage] for stage in _ORDER if totals.get(stage)), None)


def of_load(load: OpenLoad, end: int, facts: IoFacts | None) -> dict[str, Any]:
    """Attributes of a load that ended at *end*, its partition closed."""
    found: dict[str, Any] = {}
    size = load.size if load.size is not None else load_size(load.totals)
    if size is not None:
        found[names.SIZE] = size
    totals = load.partition.totals
    for stage in names.STAGES:
        if totals.get(stage):
            found[names.partition(stage)] = totals[stage] / 1e9
    found[names.partition(names.OTHER)] = load.partition.other / 1e9
    if end > load.start:
        found[names.COVERAGE] = 1.0 - load.partition.other / (end - load.start)
    ticks = sum(load.frames.values())
    if ticks:
        most = sorted(load.frames.items(), key=lambda item: -item[1])[:_FRAMES]
        found[names.OTHER_FRAMES] = tuple(_clip(f"{frame} {count / ticks:.0%}") for frame, count in most)
    if load.folded:
        found[names.SPAN_LIMIT] = load.folded
    found |= _io(facts)
    if facts is not None:
        found[names.IO_SCOPE] = "process"
    return found | load.attributes
