"""Weights that came from storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import names, units
from loadspan.findings.rule import NOTABLE, Rule, Told, part

if TYPE_CHECKING:
    from loadspan.model import Load

HALF_CACHED = 0.5
"""Share of the files in the page cache above which the load was warm for the most part; its sample is right to 0.07."""

HALF_READ = 0.5
"""Share of the load that has to have come from storage: what else the process read meanwhile is among those bytes."""


def _cache_cold(_load: Load, seconds: float, cached: float, stored: float, size: float, asleep: float) -> Told | None:
    if cached > HALF_CACHED or not size or stored < HALF_READ * size or asleep < NOTABLE * seconds:
        return None
    return Told(
        "Keep the weights in the page cache, or put them on faster storage: "
        f"{units.share(cached)} of the files were in the page cache before, {units.size(stored)} were read from storage for a load of "
        f"{units.size(size)}, and the loading thread slept for {part(asleep, seconds)}, waiting for storage, a lock or a timer.",
        asleep,
    )


def _cache_missed(_load: Load, seconds: float, cost: float) -> Told | None:
    if cost < NOTABLE * seconds:
        return None
    return Told(
        "Fill the cache before it is asked, or give it more room: it did not have what the load looked for, "
        f"and {part(cost, seconds)} went into what a hit would have spared.",
        cost,
    )


RULES = (
    Rule(
        id="cache-missed",
        when=f"a shared-memory or application cache missed, and that cost at least {units.share(NOTABLE)} of the load",
        mechanism="What the cache does not have is downloaded, read, decrypted, deserialized or compiled again, and put into it.",
        needs=(names.CACHE_MISS_TIME,),
        check=_cache_missed,
    ),
    Rule(
        id="cache-cold",
        when=f"at most {units.share(HALF_CACHED)} of the files were in the page cache, at least {units.share(HALF_READ)} of the load's "
        f"size was read from storage, and the loading thread slept for at least {units.share(NOTABLE)} of the load",
        mechanism="What is not in the page cache is read from storage, which the loading thread waits for.",
        needs=(names.CACHE_RESIDENCY, names.IO_STORAGE_READ, names.SIZE, names.BLOCKED_TIME),
        check=_cache_cold,
    ),
)
