"""Too little memory: for the page cache, for the control group, for the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import names, units
from loadspan.findings.rule import NOTABLE, Rule, Told, number, part, times

if TYPE_CHECKING:
    from loadspan.model import Load

EVICTED = 0.1
"""Share of the files, or of the load, that has to have been evicted: the look at the page cache is right to about 0.07."""

ALL_CACHED = 0.995
"""Share of the files from which all were in the page cache before: pages that were read again are then those of something else."""

SWAPPED = 0.05
"""Share of the load that has to have come back from swap: a page of an idle thread comes back now and then, and tells nothing."""


def _cache_evicted(load: Load, _seconds: float, limit: float, hits: float) -> Told | None:
    if not limit or not hits:
        return None
    evicted, again = number(load, names.CACHE_EVICTED), _read_again(load)
    parts = []
    if evicted is not None and evicted >= EVICTED:
        parts.append(f"{units.share(evicted)} of the biggest files were evicted from the page cache")
    if again is not None:
        parts.append(f"{units.size(again)} that had been evicted were read again")
    if not parts:
        return None
    return Told(
        f"Leave the page cache room for the files, with a higher memory limit or less other memory: during the load {' and '.join(parts)}, "
        f"and the control group reached its limit of {units.size(limit)} {times(hits)}."
    )


def _read_again(load: Load) -> float | None:
    """Bytes of the load's own files that had been evicted, where they are many."""
    again, size, cached = (number(load, name) for name in (names.MEMORY_REFAULT, names.SIZE, names.CACHE_RESIDENCY))
    if not again or not size or again < EVICTED * size or load.text(names.MEMORY_REFAULT_SCOPE) != "cgroup":
        return None
    return again if cached is None or cached < ALL_CACHED else None


def _memory_limit(load: Load, seconds: float, limit: float, hits: float, waited: float) -> Told | None:
    # Reaching it is usual: cached pages fill every limit in time, and giving them up costs nothing. Waiting for memory does.
    if not limit or not hits or waited < NOTABLE * seconds or load.text(names.PRESSURE_SCOPE) != "cgroup":
        return None
    return Told(
        f"Raise the memory limit, or load in less memory: the control group reached its limit of {units.size(limit)} {times(hits)} during "
        f"the load, and for {part(waited, seconds)} some task in it waited for memory.",
        waited,
    )


_SCOPES = {"cgroup": " in its control group", "host": " on this host, by the load or by other programs"}


def _swap(load: Load, _seconds: float, swapped: float, size: float) -> Told | None:
    if not size or swapped < SWAPPED * size:
        return None
    where = _SCOPES.get(load.text(names.SWAP_SCOPE) or "", "")
    return Told(f"Free memory before the load, or give it more: {units.size(swapped)} were read back from swap during the load{where}.")


RULES = (
    Rule(
        id="cache-evicted",
        when=f"the control group reached its limit, and at least {units.share(EVICTED)} of the biggest files were evicted, or that share "
        "of the load's size had been evicted and was read again",
        mechanism="Cached pages of files count as memory of the control group; at its limit they are given up, and read again when needed.",
        needs=(names.MEMORY_LIMIT, names.MEMORY_LIMIT_HITS),
        uses=(names.CACHE_EVICTED, names.MEMORY_REFAULT, names.MEMORY_REFAULT_SCOPE, names.SIZE, names.CACHE_RESIDENCY),
        check=_cache_evicted,
    ),
    Rule(
        id="memory-limit",
        when=f"the control group reached its limit, and some task in it waited for memory for at least {units.share(NOTABLE)} of the load",
        mechanism="At the limit of its control group a task waits until memory was taken from something else.",
        needs=(names.MEMORY_LIMIT, names.MEMORY_LIMIT_HITS, names.MEMORY_PRESSURE_TIME),
        uses=(names.PRESSURE_SCOPE,),
        check=_memory_limit,
    ),
    Rule(
        id="swap",
        when=f"at least {units.share(SWAPPED)} of the load's size were read back from swap",
        mechanism="Memory in swap is on disk, and comes back a page at a time.",
        needs=(names.SWAP_IN, names.SIZE),
        uses=(names.SWAP_SCOPE, names.SWAP_USAGE),
        check=_swap,
    ),
)
