"""Attributes of spans as short texts, in the order in which they are read. What was not recorded has no text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from loadspan import names, units
from loadspan.findings.rule import usable
from loadspan.model import Load, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadspan.model import Span

_WARM, _COLD = 0.005, 0.995  # shares that print as 0 % and 100 %
_WORTH_SAYING = 0.01  # share of the whole below which a part explains nothing
_BLOCKED, _SHORT = 0.05, 0.001  # as above for blocked time: every thread sleeps a little now and then
_SWAPPED = 1 << 20  # bytes of swap that are worth a word
_OFTEN, _MOSTLY = re.compile(r"\w+ (\d{1,3}) %"), 20  # percent of the readings
_RELATIONS = 3  # pairs of devices that are named
_SAME_SIZE = 0.01  # sizes that differ less are said once


def of_span(span: Span, exclusive: float | None) -> Iterator[str]:
    """Of a stage or inner load of which so many seconds were its own."""
    for describe in _DESCRIBE:
        yield from describe(span)
    if exclusive is not None and span.children and isinstance(span, Stage) and _worth(exclusive, span.duration):
        yield f"exclusive {units.seconds(exclusive)}"


def of_load(load: Load) -> Iterator[str]:
    """Of a load as a whole: what the machine did meanwhile."""
    for describe in (_cache_of_load, _memory_facts, _disk_facts, _link_facts):
        yield from describe(load)


def notes(load: Load, *, show_pid: bool) -> Iterator[str]:
    """How a load came about, and that it failed."""
    if loader := load.text(names.LOADER):
        yield loader
    if load.attributes.get(names.IMPLICIT) is True:
        yield "implicit"
    if (folded := load.number(names.FOLDED)) and folded > 1:
        yield f"stands for {count(folded)} loads"
    rank, size = usable(load.number(names.RANK)), usable(load.number(names.WORLD_SIZE))
    if rank is not None and size is not None:
        yield f"rank {rank:.0f} of {size:.0f}"
    if show_pid and load.pid is not None:
        yield f"process {load.pid}"
    if load.error is not None or load.text(names.ERROR_TYPE):
        yield f"FAILED {(load.text(names.ERROR_TYPE) or '').rpartition('.')[2]}".rstrip()


count = units.count
_share = units.share


def _worth(part: float | None, whole: float | None, share: float = _WORTH_SAYING) -> bool:
    return part is not None and bool(whole) and part >= share * (whole or 0)


def _model_facts(span: Span) -> Iterator[str]:
    if isinstance(span, Load):
        if name := span.text(names.MODEL_NAME):
            yield name
        yield from notes(span, show_pid=False)
    elif name := span.text(names.ADAPTER_NAME):
        yield f"adapter {name}"
    elif name := span.text(names.MADE):
        yield name


def _file_facts(span: Span) -> Iterator[str]:
    if path := span.text(names.FILE_PATH):
        yield path.rstrip("/").rpartition("/")[2] or path
    if (files := span.number(names.FILE_COUNT)) and files > 1:
        yield f"{count(files)} files"
    if text := span.text(names.FORMAT):
        yield text
    filesystem, kind = span.text(names.FILESYSTEM_TYPE), span.text(names.STORAGE_KIND)
    if filesystem:
        # tmpfs is memory, and overlay is overlay.
        yield filesystem if kind in (None, "memory") or (kind or "") in filesystem else f"{filesystem} on {kind}"
    stack = span.texts(names.STORAGE_STACK)
    if stack:
        yield " > ".join(stack)
    if server := span.text(names.SERVER_ADDRESS):
        yield f"from {server}"
    if span.attributes.get(names.STORAGE_ENCRYPTED) is True and not any("crypt" in layer for layer in stack):
        yield "encrypted"
    if text := span.text(names.READ_METHOD):
        yield text


def _cache_facts(span: Span) -> Iterator[str]:
    cold, stored, size = span.number(names.CACHE_COLD), span.number(names.IO_STORAGE_READ), span.size
    cached = span.number(names.CACHE_RESIDENCY)
    if cached is not None and (cold is None or _WARM < cached < _COLD):
        yield f"{_share(cached)} in cache before"
    if cold is not None and (cold <= _WARM or cold >= _COLD):
        yield "warm" if cold <= _WARM else "cold"
        if cold <= _WARM or (stored and size and abs(stored - size) < _SAME_SIZE * size):
            return
    if stored and stored >= _WORTH_SAYING * (size or 0):
        yield f"{units.size(stored)} from storage"
    elif cold is not None and _WARM < cold < _COLD:
        yield f"{_share(cold)} from storage"


def _call_facts(span: Span) -> Iterator[str]:
    calls = span.number(names.OPERATION_COUNT)
    if calls is not None and calls > 1:
        yield f"{count(calls)} calls"
    if (at_once := span.number(names.CONCURRENCY)) and at_once > 1:
        yield f"{count(at_once)} at once"
    yield from _waiting(span)


def _waiting(span: Span) -> Iterator[str]:
    for name, words in ((names.BLOCKED_TIME, "blocked {}"), (names.RUN_QUEUE_TIME, "waited {} for a CPU")):
        seconds = span.number(name)
        if seconds is not None and seconds >= _SHORT and _worth(seconds, span.duration, _BLOCKED):
            yield words.format(units.seconds(seconds))


_DONE = {"swap": "swapped", "activate": "activated", "combine": "combined", "remove": "removed"}
"""What is said of an action with an adapter that tells of no layers."""


def _work_facts(span: Span) -> Iterator[str]:
    if cipher := span.text(names.CIPHER):
        yield cipher
    if derivation := span.number(names.KEY_DERIVATION_TIME):
        yield f"key derivation {units.seconds(derivation)}"
    if dtype := span.text(names.DTYPE):
        yield dtype
    yield from _adapter_facts(span)
    hit = span.attributes.get(names.CACHE_HIT)
    if isinstance(hit, bool):
        yield "cache hit" if hit else "cache miss"


def _adapter_facts(span: Span) -> Iterator[str]:
    action = span.text(names.ADAPTER_ACTION)
    if done := _DONE.get(action or ""):
        yield done
    merged = "unmerged" if action == "unmerge" else "merged"
    for name, verb in ((names.MERGED_LAYERS, merged), (names.INJECTED_LAYERS, "injected"), (names.MERGE_REPEATED, "merged before:")):
        if layers := span.number(name):
            yield f"{verb} {count(layers)} {'layer' if layers == 1 else 'layers'}"
    if deltas := span.number(names.DELTA_SIZE):
        seconds = span.number(names.DELTA_TIME)
        yield f"deltas {units.size(deltas)}" + (f" in {units.seconds(seconds)}" if seconds is not None else "")


def _device_facts(span: Span) -> Iterator[str]:
    if kind := span.text(names.DEVICE_TYPE):
        index = span.number(names.DEVICE_INDEX)
        yield kind if index is None else f"{kind}:{index:.0f}"
    if name := span.text(names.DEVICE_NAME):
        yield name
    copies, median = span.number(names.COPY_COUNT), span.number(names.COPY_SIZE_MEDIAN)
    if copies and copies > 1 and median is not None:
        yield f"{count(copies)} copies, median {units.size(median)}"
    pinned = span.attributes.get(names.HOST_MEMORY_PINNED)
    if isinstance(pinned, bool):
        yield "pinned" if pinned else "pageable"
    yield from _link_facts(span)


def _link_facts(span: Span) -> Iterator[str]:
    generation, width = span.number(names.LINK_GENERATION), span.number(names.LINK_WIDTH)
    most, widest = span.number(names.LINK_GENERATION_MAX), span.number(names.LINK_WIDTH_MAX)
    if generation and width:
        now = f"PCIe Gen{generation:.0f} x{width:.0f}"
        full = (generation, width) == (most, widest) or not (most and widest)
        yield now if full else f"{now} of Gen{most:.0f} x{widest:.0f}"
    if span.attributes.get(names.LINK_DEGRADED) is True:
        yield "link degraded"
    if span.text(names.NUMA_RELATION) == "remote":
        yield "remote NUMA node"
    yield from span.texts(names.DEVICE_RELATIONS)[:_RELATIONS]


def _cache_of_load(load: Load) -> Iterator[str]:
    if (cached := load.number(names.CACHE_RESIDENCY)) is not None:
        yield f"{_share(cached)} in page cache before"
    if (evicted := load.number(names.CACHE_EVICTED)) and evicted >= _WORTH_SAYING:
        yield f"{_share(evicted)} evicted again"
    if missed := load.number(names.CACHE_MISS_TIME):
        yield f"cache miss, which cost {units.seconds(missed)}"
    elif isinstance(hit := load.attributes.get(names.CACHE_HIT), bool):
        yield "cache hit" if hit else "cache miss"


def _memory_facts(load: Load) -> Iterator[str]:
    refaulted, cached = load.number(names.MEMORY_REFAULT), load.number(names.CACHE_RESIDENCY)
    # Not of a load whose files were all there: then they are pages of something else.
    if refaulted and _worth(refaulted, load.size, _BLOCKED) and (cached is None or cached < _COLD):
        scope = load.text(names.MEMORY_REFAULT_SCOPE)
        yield f"{units.size(refaulted)} evicted and read again" + (f" in its {scope}" if scope == "cgroup" else " on this host")
    limit, hits = load.number(names.MEMORY_LIMIT), load.number(names.MEMORY_LIMIT_HITS)
    if limit and hits:
        yield f"memory limit {units.size(limit)} reached {count(hits)} times"
    if (swapped := load.number(names.SWAP_IN)) and swapped >= _SWAPPED:
        yield f"{units.size(swapped)} read back from swap"


def _disk_facts(load: Load) -> Iterator[str]:
    busy, latency = load.number(names.DISK_UTILIZATION), load.number(names.DISK_LATENCY)
    if busy is not None and busy >= _WORTH_SAYING and _worth(load.number(names.IO_STORAGE_READ), load.size):
        yield f"disk {_share(busy)} busy" + (f", {units.seconds(latency)} a read" if latency is not None else "")
    yield from _waiting(load)
    for place in load.texts(names.BLOCKED_WHERE)[:1]:
        found = _OFTEN.fullmatch(place)
        if found is not None and int(found[1]) >= _MOSTLY:
            yield f"asleep in {place}"


_DESCRIBE: tuple[Callable[[Span], Iterator[str]], ...] = (
    _model_facts,
    _file_facts,
    _cache_facts,
    _work_facts,
    _device_facts,
    _call_facts,
)
