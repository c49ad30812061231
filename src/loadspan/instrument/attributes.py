"""From what was recorded to span attributes. A number that is not known is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan import names, units
from loadspan.guard import safely
from loadspan.instrument import late

if TYPE_CHECKING:
    from loadspan.facts.counters import IoFacts
    from loadspan.instrument.frames import OpenLoad, OpenStage
    from loadspan.instrument.partition import Partition
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


def clip(text: str) -> str:
    """*text*, cut where it is too long for an attribute."""
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"


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
    found |= late.files(stage.paths, full_paths=full_paths)
    busy = end - stage.start - stage.nested
    if stage.nested:
        found[names.BUSY_TIME] = max(0, busy) / 1e9
    _throughput(found, size, busy, deferred=stage.deferred or not stage.rated)
    found |= stage.inner_attributes or {}
    found |= stage.attributes
    found |= late.devices([] if stage.destination is None else [stage.destination])
    _resident(found, stage.load, stage.met)
    if stage.name in _FROM_FILES:
        found |= late.cold(found, stage.paths, size, deferred=stage.deferred)
    return found


def _io_of_tally(tally: Tally) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if tally.measured:
        found = {names.IO_STORAGE_READ: tally.storage_read, names.FAULT_MAJOR: tally.major, names.IO_SCOPE: "thread"}
        if not tally.joint:
            found[names.FAULT_MINOR] = tally.minor
    if tally.blocked is not None and tally.unseen <= tally.busy * _UNKNOWN:
        found |= {names.BLOCKED_TIME: tally.blocked, names.CPU_TIME: tally.on_cpu, names.RUN_QUEUE_TIME: tally.waiting}
    return found


def of_tally(tally: Tally, *, full_paths: bool) -> dict[str, Any]:
    """Attributes of a tally or of one segment of it."""
    found: dict[str, Any] = {
        names.STAGE: tally.name,
        names.OPERATION_COUNT: tally.count,
        names.BUSY_TIME: tally.busy / 1e9,
        names.OPERATION_EXTENT: (tally.last - tally.first) / 1e9,
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
    found |= late.files(tally.paths, full_paths=full_paths)
    _throughput(found, tally.size if tally.sized else None, tally.busy, deferred=tally.deferred or tally.waits or not tally.rated)
    found |= tally.attributes
    for there in tally.destinations.values():
        there.end(tally.last, found.get(names.THROUGHPUT, 0.0))
    found |= late.devices(tally.destinations.values())
    _resident(found, tally.load, tally.met)
    if tally.name == names.READ and tally.sized and not (tally.deferred or tally.waits):
        found[names.IO_READ] = tally.size
    if tally.name in _FROM_FILES:
        found |= late.cold(found, tally.paths, tally.size if tally.sized else None, deferred=tally.deferred)
    return found


def _slow(took: int, _count: int, size: int | None, label: str) -> str:
    parts = [clip(label)]
    if size is not None:
        parts.append(units.size(size))
    return " ".join([*parts, units.seconds(took / 1e9)])


def load_size(totals: dict[str, int]) -> int | None:
    """Bytes of the weights of a load: of the first stage, in order of how well it knows them, that has any."""
    return next((totals[stage] for stage in _ORDER if totals.get(stage)), None)


def _parts(partition: Partition, whole: int) -> dict[str, Any]:
    """What the *whole* nanoseconds of a load are divided into."""
    parts = {**partition.totals, names.OWN: partition.own}
    found = {names.partition(part): parts[part] / 1e9 for part in names.PARTS if parts.get(part)}
    found[names.partition(names.OTHER)] = partition.other / 1e9
    if whole > 0:
        found[names.COVERAGE] = 1.0 - partition.other / whole
    return found


def of_load(load: OpenLoad, end: int, facts: IoFacts | None) -> dict[str, Any]:
    """Attributes of a load that ended at *end*, its partition closed."""
    found: dict[str, Any] = {}
    size = load.size if load.size is not None else load_size(load.totals)
    if size is not None:
        found[names.SIZE] = size
    found |= _parts(load.partition, end - load.start)
    ticks = sum(load.frames.values())
    if ticks:
        most = sorted(load.frames.items(), key=lambda item: -item[1])[:_FRAMES]
        found[names.OTHER_FRAMES] = tuple(clip(f"{frame} {count / ticks:.0%}") for frame, count in most)
    if load.asked is not None:
        found |= load.asked.attributes(load)
    if load.parent is not None:
        found[names.INNER] = True
    if load.folded:
        found[names.SPAN_LIMIT] = load.folded
    found |= _io(facts)
    if facts is not None:
        found[names.IO_SCOPE] = "process"
    return found | late.group() | load.attributes | (safely(late.devices, load.destinations.values()) or {})
