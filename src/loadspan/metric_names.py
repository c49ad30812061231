"""
Every metric loadspan gives to the outside: name, instrument, unit, attributes, buckets and meaning; the documentation is made of them.

Attributes are few and bounded: no path, tensor, load id or PCI address is ever one. Each is absent where it is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from loadspan import names

Instrument = Literal["histogram", "counter", "updowncounter", "gauge"]

# Bounds. The SDK's own are made for milliseconds and would put every load into one bucket.
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
_BYTES: Final = tuple(float(1 << power) for power in range(20, 43, 2))
_BYTES_PER_SECOND: Final = (1e7, 2.5e7, 5e7, 1e8, 2.5e8, 5e8, 1e9, 2.5e9, 5e9, 1e10, 2.5e10, 5e10, 1e11, 2e11)

VALUES: Final = 16
"""Values that one process gives to an attribute of its metrics (models, loaders, exceptions); what comes later is counted without it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One instrument; *bounds* advise the upper bounds of a histogram's buckets."""

    name: str
    instrument: Instrument
    unit: str
    attributes: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()


_OF_LOAD: Final = (names.LOADER, names.MODEL_NAME, names.STORAGE_KIND, names.DEVICE_TYPE, names.ERROR_TYPE)
_OF_STAGE: Final = (names.STAGE, names.LOADER, names.FORMAT, names.STORAGE_KIND, names.DEVICE_TYPE, names.ERROR_TYPE)
_OF_LINK: Final = (names.DEVICE_TYPE, names.DEVICE_INDEX)

LOAD_DURATION: Final = Metric(
    "loadspan.load.duration", "histogram", "s", _OF_LOAD, "seconds of a load; one inside another is part of it", _SECONDS
)
STAGE_DURATION: Final = Metric(
    "loadspan.stage.duration",
    "histogram",
    "s",
    _OF_STAGE,
    "exclusive seconds of a stage in one load, and of `other`: those of one load add up to its duration",
    _SECONDS,
)
STAGE_SIZE: Final = Metric("loadspan.stage.size", "histogram", "By", _OF_STAGE, "bytes that a stage moved in one load", _BYTES)
STAGE_THROUGHPUT: Final = Metric(
    "loadspan.stage.throughput",
    "histogram",
    "By/s",
    _OF_STAGE,
    "bytes of a stage in one load by the seconds inside its calls; absent where the calls are lazy",
    _BYTES_PER_SECOND,
)
LOAD_ACTIVE: Final = Metric("loadspan.load.active", "updowncounter", "{load}", (), "loads that run now")
LOAD_COUNT: Final = Metric("loadspan.load.count", "counter", "{load}", (), "loads that have ended; begins with 0 before the first one")
LOAD_SIZE: Final = Metric("loadspan.load.size", "counter", "By", (), "bytes that have entered loads; begins with 0 before the first one")
STAGE_IO: Final = Metric(
    "loadspan.stage.io",
    "counter",
    "By",
    (names.STAGE,),
    "bytes that a stage has moved so far: grows while a load runs, begins with 0 before the first one; without those of lazy calls, "
    "which come in a later stage",
)
STORAGE_READ: Final = Metric(
    "loadspan.storage.read",
    "counter",
    "By",
    (),
    "bytes that block devices gave to the process while it loaded: grows while a load runs, begins with 0 before the first one",
)
FINDING_COUNT: Final = Metric(
    "loadspan.finding.count",
    "counter",
    "{finding}",
    (names.FINDING_ID,),
    "loads that ended with this finding: what should be done about it",
)
LOAD_LAST_DURATION: Final = Metric(
    "loadspan.load.last_duration", "gauge", "s", (names.MODEL_NAME, names.RANK), "seconds of the last load that succeeded"
)
CACHE_RESIDENCY: Final = Metric(
    "loadspan.cache.residency",
    "gauge",
    "1",
    (names.MODEL_NAME,),
    "share of the last load's files that was in the page cache before; absent where that is not known",
)
LINK_BANDWIDTH: Final = Metric(
    "loadspan.link.bandwidth",
    "gauge",
    "By/s",
    _OF_LINK,
    "narrowest PCIe link to the device of the last load, read while bytes moved",
)
LINK_DEGRADED: Final = Metric(
    "loadspan.link.degraded", "gauge", "1", _OF_LINK, "1 where that link ran below what both its ends support, 0 where it did not"
)

MOVING: Final = tuple(stage for stage in names.STAGES if stage not in {names.INITIALIZE, names.COMPILE})
"""Stages that move bytes."""

METRICS: Final = (
    LOAD_DURATION,
    STAGE_DURATION,
    STAGE_SIZE,
    STAGE_THROUGHPUT,
    LOAD_ACTIVE,
    LOAD_COUNT,
    LOAD_SIZE,
    STAGE_IO,
    STORAGE_READ,
    FINDING_COUNT,
    LOAD_LAST_DURATION,
    CACHE_RESIDENCY,
    LINK_BANDWIDTH,
    LINK_DEGRADED,
)
