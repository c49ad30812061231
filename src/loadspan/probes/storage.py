"""
How fast the storage under a path reads: past the page cache and through it, by one thread and by several, and page by page.

Nothing is written unless a scratch folder is given, and no page of somebody's file is taken out of the page cache.
"""

from __future__ import annotations

import mmap
import os
import random
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadspan.facts import memory as memories
from loadspan.facts import storage as storages
from loadspan.facts.rates import CACHE, MEMORY, MIXED, STORAGE, UNKNOWN, Outcome, Rate, Skipped
from loadspan.facts.tree import HERE
from loadspan.probes import Bounds, Plan, Progress, Step, files
from loadspan.probes.parts import ALIGNMENT, Parts
from loadspan.probes.reading import Block, NoAnswerError, Reading, read, told
from loadspan.units import seconds as seconds_text
from loadspan.units import size as size_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadspan.facts.storage import StorageFacts
    from loadspan.probes.files import OpenFile
    from loadspan.probes.parts import Part

DIRECT, BUFFERED, MAPPED, FAULTS = "read direct", "read buffered", "read mapped", "fault mapped pages"
_THROUGH_MAPPING = (FAULTS, MAPPED) if hasattr(os, "memfd_create") else ()
PROBES = tuple(probe for probe in (DIRECT, FAULTS, BUFFERED, MAPPED) if probe not in (FAULTS, MAPPED) or probe in _THROUGH_MAPPING)
"""In the order in which they run: those that leave the page cache alone first."""
DEPTHS = (1, 4, 16)
SMALLEST = 64 << 20
"""Bytes below which a measurement says nothing: the first requests of any storage are not like the others."""
_BLOCK = 1 << 20
_SHARE = 256 << 20  # bytes that a probe reads at least, if need be of what another has read
_PAGES = 64 << 20  # bytes, read a page at a time, at most
_LEAST = 32 << 20  # bytes that a probe through the page cache needs outside of it
_LITTLE = 0.1  # share of the bytes from storage up to which a rate is that of the page cache
_WHOLE = 0.98  # of the bytes; the counter and what is read ahead do not end at the same byte


@dataclass(frozen=True, slots=True)
class _Where:
    """What is measured: the open files and what they lie on."""

    files: Sequence[OpenFile]
    parts: Parts
    storage: StorageFacts | None
    bounds: Bounds


def plan(
    path: str,
    bounds: Bounds | None = None,
    *,
    scratch: str | None = None,
    scratch_size: int = 1 << 30,
    probes: Sequence[str] = PROBES,
    depths: Sequence[int] = DEPTHS,
) -> Plan:
    """
    What will be read to measure the storage under *path*, a file or folder, or that under folder *scratch* with a file written for it.

    A plan whose `steps` are empty says in its only outcome why nothing can be measured.
    """
    bounds = bounds or Bounds()
    where = scratch or path
    facts = storages.of_file(where)
    chosen = [] if scratch else files.choose(path)
    total = min(scratch_size, _free_space(scratch) // 4) if scratch else sum(_size(name) for name in chosen)
    if total < SMALLEST:
        return _nothing(f"too small to measure: needs a file of {size_text(SMALLEST)} at least, or a scratch folder with room for one")
    wanted = [(probe, depth) for probe in PROBES if probe in probes for depth in (depths if probe in (DIRECT, BUFFERED) else (1,))]
    memory = facts is not None and facts.kind == "memory"
    share = _share(total, len(wanted), bounds)
    through = min(share, _free_memory())
    most = {DIRECT: share, FAULTS: min(through, _PAGES)}
    steps = tuple(Step(probe, most.get(probe, through), depth) for probe, depth in wanted)

    def run(progress: Progress) -> Iterator[Outcome]:
        with ExitStack() as stack:
            try:
                source = stack.enter_context(files.scratch(scratch, total, progress) if scratch else files.opened(chosen))
            except OSError as error:
                yield from (Skipped(step.probe, f"the scratch file cannot be written: {error.strerror}", step.depth) for step in steps)
                return
            found = _Where(source, Parts(source, facts), facts, bounds)
            answers = True
            for step in steps:
                if not answers:
                    yield Skipped(step.probe, "the storage did not answer the probe before", step.depth)
                    continue
                try:
                    yield _measured(step, found, progress, memory=memory)
                except NoAnswerError:
                    answers = False
                    yield Skipped(step.probe, f"the storage did not answer within {seconds_text(bounds.seconds)}", step.depth)

    return Plan(_lines(chosen, scratch, total, steps, bounds), steps, run)


def _nothing(reason: str) -> Plan:
    return Plan((), (), lambda _: iter([Skipped("read", reason)]))


def _size(path: str) -> int:
    with suppress(OSError):
        return os.stat(path).st_size  # noqa: PTH116 - a path may be no text
    return 0


def _share(total: int, count: int, bounds: Bounds) -> int:
    """Bytes for one of *count* probes: each its own ones if there are enough."""
    return min(bounds.size, total, max(total // max(count, 1), _SHARE))


def _free_space(folder: str) -> int:
    with suppress(OSError):
        space = os.statvfs(folder)
        return space.f_bavail * space.f_frsize
    return 0


def _free_memory() -> int:
    """Half of the memory that nothing is in, so that reading pushes nobody's pages out."""
    now = memories.read()
    room = [] if now.limit is None or now.usage is None else [now.limit - now.usage]
    room += memories.parse_kib(HERE.bytes("proc/meminfo"), "MemFree").values()
    return max(min(room, default=0) // 2, SMALLEST)


def _lines(chosen: Sequence[str], scratch: str | None, total: int, steps: Sequence[Step], bounds: Bounds) -> tuple[str, ...]:
    first = (f"writes {size_text(total)} of random bytes to a file in {scratch} that is removed at once",) if scratch else ()
    source = "it" if scratch else f"{chosen[0]}" + (f" and {len(chosen) - 1} more beside it" if len(chosen) > 1 else "")
    what = ", ".join(dict.fromkeys(step.probe for step in steps))
    largest = max((step.size for step in steps), default=0)
    limit = f"{len(steps)} measurements of at most {size_text(largest)} and {seconds_text(bounds.seconds)} each"
    return (*first, f"reads {source}: {what}; {limit}")


def _measured(step: Step, where: _Where, progress: Progress, *, memory: bool) -> Outcome:
    """The outcome of one step; what it brought into the page cache is dropped again."""
    direct = step.probe == DIRECT
    refused = next((file.direct for file in where.files if isinstance(file.direct, str)), None)
    if direct and (memory or refused):
        return Skipped(step.probe, f"{where.storage.filesystem} is memory" if memory and where.storage else str(refused), step.depth)
    taken, again = where.parts.take(min(step.size, where.parts.size), cached=not direct)
    if not direct and sum(part.length for part in taken) < min(step.size, _LEAST):
        # As good as all of it is in the page cache and stays there: what can be measured is the page cache.
        taken, again = where.parts.take(min(step.size, where.parts.size), cached=False)
    try:
        with _blocks(step.probe, taken, where) as blocks:
            if not blocks:
                return Skipped(step.probe, "no data to read: the files are holes, or gone", step.depth)
            reading = read(blocks, step.depth, where.bounds.seconds, told(step.probe, step.size, progress))
            size = blocks[0].length
    except OSError as error:
        return Skipped(step.probe, f"reading failed: {error.strerror}", step.depth)
    finally:
        if not direct:
            where.parts.drop(taken)
    if not reading.size or reading.seconds <= 0:
        return Skipped(step.probe, "nothing could be read", step.depth)
    return _judged(step, reading, size, where, again=again, memory=memory)


@contextmanager
def _blocks(probe: str, parts: Sequence[Part], where: _Where) -> Iterator[list[Block]]:
    """The requests of a probe; files stay mapped meanwhile where it needs that."""
    with ExitStack() as stack:
        views: dict[int, memoryview] = {}
        if probe in _THROUGH_MAPPING:
            for number in {part.file for part in parts}:
                views[number] = stack.enter_context(_mapped(where.files[number], whole=probe == MAPPED))
        length = ALIGNMENT if probe == FAULTS else _BLOCK
        blocks = [
            Block(_descriptor(where.files[part.file], probe), offset, min(length, part.end - offset), views.get(part.file))
            for part in parts
            for offset in range(part.offset, part.end, length)
        ]
        if probe == FAULTS:
            random.Random(0).shuffle(blocks)  # noqa: S311 - a fixed order, not a secret
        yield blocks


def _descriptor(file: OpenFile, probe: str) -> int:
    return file.direct if probe == DIRECT and isinstance(file.direct, int) else file.buffered


@contextmanager
def _mapped(file: OpenFile, *, whole: bool) -> Iterator[memoryview]:
    mapping = mmap.mmap(file.buffered, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    try:
        if not whole:
            mapping.madvise(mmap.MADV_RANDOM)  # each fault brings its own page, and nothing else
        with memoryview(mapping) as view:
            yield view
    finally:
        with suppress(BufferError):  # a thread that never got its answer still holds a piece
            mapping.close()


def _judged(step: Step, reading: Reading, block: int, where: _Where, *, again: bool, memory: bool) -> Rate:
    """The rate, with what the kernel's counter says about where the bytes came from."""
    verified, source, notes = _origin(reading, where, direct=step.probe == DIRECT, memory=memory)
    if again and source not in (MEMORY, CACHE, MIXED):
        notes.append("part of it was read before, by another probe")
    return Rate(step.probe, reading.size, reading.seconds, step.depth, block, verified, source, "; ".join(notes) or None)


def _origin(reading: Reading, where: _Where, *, direct: bool, memory: bool) -> tuple[bool | None, str, list[str]]:
    facts, counted = where.storage, reading.storage_read
    if memory:
        return False, MEMORY, [f"{facts.filesystem} is memory" if facts else "memory"]
    if counted is not None and counted >= _WHOLE * reading.size:
        if facts is not None and any(name.startswith("loop") for name in facts.stack):
            return None, UNKNOWN, ["not verified: on a loop device, whose own file may be in the page cache"]
        return True, STORAGE, []
    if facts is not None and not facts.counted:
        absent = "" if direct or not where.parts.known else "; its pages were not in the page cache of this machine"
        return None, UNKNOWN, [f"not verified: the kernel does not count what {facts.filesystem} reads{absent}"]
    if counted is None:
        return None, UNKNOWN, ["not verified: the kernel does not tell how much came from storage"]
    share = round(100 * counted / reading.size)
    mixed = counted > _LITTLE * reading.size
    return False, UNKNOWN if direct else MIXED if mixed else CACHE, [f"{f'only {share} %' if share else 'nothing'} of it came from storage"]


__all__ = ["BUFFERED", "DEPTHS", "DIRECT", "FAULTS", "MAPPED", "PROBES", "SMALLEST", "plan"]
