"""
What is imported late: with the first library that loads models, or with the first load, and not by every Python that is instrumented.

Reading the machine takes some 20 ms to import, which would double what an instrumented program needs to start. Each import is announced
(`imports.need`), since another thread of the host may fork meanwhile.
"""

from __future__ import annotations

import os
from collections import ChainMap
from typing import TYPE_CHECKING, Any

from loadspan import imports, names
from loadspan.instrument import telemetry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.instrument.destination import Destination
    from loadspan.instrument.surroundings import Surroundings

LONG = 1_000_000_000  # nanoseconds: `findings.LONG`, without importing it


def prepare() -> None:
    """Import what every load needs: the host is importing a library of seconds at this moment."""
    imports.need("loadspan.instrument.stored")
    imports.need("loadspan.instrument.surroundings")
    from loadspan.instrument import stored, surroundings

    del stored
    ready = getattr(surroundings, "prepare", None)
    if ready is not None:  # not while it is being imported: what it imports itself may be such a library
        ready()


def surroundings(*, outermost: bool) -> Surroundings:
    """A new `Surroundings`."""
    imports.need("loadspan.instrument.surroundings")
    from loadspan.instrument.surroundings import Surroundings

    return Surroundings(outermost=outermost)


def file_size(path: str) -> int | None:
    """Size of the file *path*, which a load has met; None of what it has not, or is no file."""
    imports.need("loadspan.facts.files")
    from loadspan.facts import files

    return files.size(path)


def group() -> dict[str, Any]:
    """Attributes of the group of processes that load together, where this one is in one."""
    imports.need("loadspan.facts.group")
    from loadspan.facts import group

    found = group.of_process(ChainMap(telemetry.inherited, os.environ))
    if found is None:
        return {}
    told = {names.LOAD_ID: found.id, names.RANK: found.rank, names.RANK_LOCAL: found.rank_local, names.WORLD_SIZE: found.world_size}
    return {name: value for name, value in told.items() if value is not None}


def files(paths: Iterable[str], *, full_paths: bool) -> dict[str, Any]:
    """As `stored.files`."""
    imports.need("loadspan.instrument.stored")
    from loadspan.instrument import stored

    return stored.files(paths, full_paths=full_paths)


def cold(found: dict[str, Any], paths: Iterable[str], size: int | None, *, deferred: bool) -> dict[str, Any]:
    """As `stored.cold`."""
    imports.need("loadspan.instrument.stored")
    from loadspan.instrument import stored

    return stored.cold(found, paths, size, deferred=deferred)


def devices(destinations: Iterable[Destination]) -> dict[str, Any]:
    """As `topology.attributes`; nothing where there are none."""
    every = list(destinations)
    if not every:
        return {}
    imports.need("loadspan.instrument.topology")
    from loadspan.instrument import topology

    return topology.attributes(every)


def prepare_findings() -> None:
    """Import what a long load needs when it ends, while it runs."""
    imports.need("loadspan.findings")
    from loadspan import findings

    del findings


def findings(found: dict[str, Any], start: int, end: int) -> dict[str, Any]:
    """Attributes that say what to do about a load from *start* to *end* with the attributes *found*: few loads that are short need them."""
    if end - start < LONG and found.get(names.LINK_DEGRADED) is not True:
        return {}
    imports.need("loadspan.findings")
    from loadspan import findings
    from loadspan.model import Load

    load = Load(name=names.LOAD_SPAN, span_id="", parent_id=None, start=start, end=end, attributes=found, trace_id="", pid=None)
    return findings.attributes(findings.find(load))


def look(destination: Destination) -> None:
    """As `topology.watch`."""
    imports.need("loadspan.instrument.topology")
    from loadspan.instrument import topology

    topology.watch(destination)
