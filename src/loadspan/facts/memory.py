"""
Memory around a load: the limit of the process's control group, pages that were evicted and read again, pressure, swap.

A reading is a set of counters at one moment; what happened in between is the `difference` of two. Of this process the files stay open,
so that a reading at the beginning and one at the end of a load cost less than 100 us together.
"""

from __future__ import annotations

import mmap
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from loadspan.facts import cgroups
from loadspan.facts.kept import Kept
from loadspan.facts.tree import HERE, Tree, whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.facts.cgroups import Groups

Scope = Literal["cgroup", "host"]

_PIECE = 1 << 14  # of a kernel file; the longest, vmstat, has 4 to 6 KiB
_UNLIMITED = 1 << 60  # version 1 writes no limit as the largest number of pages
_LARGEST = 1 << 63
_DIGITS = 20
_KIB = b" kB"
_SOME = re.compile(rb"(?m)^some [^\n]*\btotal=(\d{1,20})$")


@dataclass(frozen=True, slots=True)
class Memory:
    """One reading. Bytes, seconds, counts since the group or the machine began; None where the kernel does not tell."""

    at: int
    """Nanoseconds of `time.perf_counter_ns`."""
    group: str | None = None
    """Folder of the process's control group; None where there is none to be seen."""
    limit: int | None = None
    """Of the group or the tightest around it; None without one."""
    high: int | None = None
    """Above which the group is slowed down, the tightest."""
    usage: int | None = None
    """Of the group whose limit it is, cached pages of files included."""
    hits: int | None = None
    """Times that group reached its limit or its high mark."""
    killed: int | None = None
    """Processes of that group killed for want of memory."""
    refaulted: int | None = None
    """Bytes of file pages that had been evicted and were read again, at least: under pressure the kernel forgets that they were there."""
    refaulted_scope: Scope | None = None
    memory_pressure: float | None = None
    """Seconds in which at least one task waited for memory."""
    io_pressure: float | None = None
    """Seconds in which at least one task waited for storage."""
    pressure_scope: Scope | None = None
    swapped: int | None = None
    """Bytes of the process in swap."""
    swapped_in: int | None = None
    """Bytes; not read on a machine without swap."""
    swapped_out: int | None = None
    swap_scope: Scope | None = None
    total: int | None = None
    """Memory of the machine."""
    available: int | None = None
    """What of it could be had without swapping."""


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """What happened between two readings. A scope says whether others had part in it; None where the kernel does not tell."""

    limit: int | None = None
    """As it was at the end."""
    hits: int | None = None
    killed: int | None = None
    refaulted: int | None = None
    refaulted_scope: Scope | None = None
    memory_pressure: float | None = None
    io_pressure: float | None = None
    pressure_scope: Scope | None = None
    swapped_in: int | None = None
    swapped_out: int | None = None
    swap_scope: Scope | None = None


class _Names(NamedTuple):
    """Files of one version of control groups."""

    limit: str
    usage: str
    high: str | None
    hits: str
    killed: str


_FILES = {
    1: _Names("memory.limit_in_bytes", "memory.usage_in_bytes", None, "memory.failcnt", "memory.oom_control"),
    2: _Names("memory.max", "memory.current", "memory.high", "memory.events", "memory.events"),
}


class _Place(NamedTuple):
    """Where the readings of a process come from."""

    groups: Groups
    limited: str | None
    """Folder of the group with the tightest limit, else the process's own."""
    slowed: str | None
    """The same for the high mark."""


def read(tree: Tree = HERE, pid: int | None = None) -> Memory:
    """Read of process *pid*, by default this one. Groups, pressure and swap of another process are read anew each time, files and all."""
    if tree is HERE and pid is None:
        return _live().read()
    process = f"proc/{'self' if pid is None else pid}"
    return _reading(_place(tree, tree.bytes(f"{process}/cgroup")), tree.bytes, process)


def difference(before: Memory, after: Memory) -> MemoryFacts:
    """What happened from *before* to *after*. What the group counts is unknown where the process changed its group meanwhile."""
    same = before.group == after.group
    refaults = before.refaulted_scope == after.refaulted_scope and (same or after.refaulted_scope == "host")
    pressure = before.pressure_scope == after.pressure_scope and (same or after.pressure_scope == "host")
    swap = before.swap_scope == after.swap_scope and (same or after.swap_scope == "host")
    return MemoryFacts(
        limit=after.limit,
        hits=_less(after.hits, before.hits) if same else None,
        killed=_less(after.killed, before.killed) if same else None,
        refaulted=_less(after.refaulted, before.refaulted) if refaults else None,
        refaulted_scope=after.refaulted_scope if refaults else None,
        memory_pressure=_seconds(after.memory_pressure, before.memory_pressure) if pressure else None,
        io_pressure=_seconds(after.io_pressure, before.io_pressure) if pressure else None,
        pressure_scope=after.pressure_scope if pressure else None,
        swapped_in=_less(after.swapped_in, before.swapped_in) if swap else None,
        swapped_out=_less(after.swapped_out, before.swapped_out) if swap else None,
        swap_scope=after.swap_scope if swap else None,
    )


def _less(after: int | None, before: int | None) -> int | None:
    # Below zero: the counter was begun anew, and what it would have said is unknown.
    return None if after is None or before is None or after < before else after - before


def _seconds(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None or after < before else round(after - before, 6)


# Kernel files


def _place(tree: Tree, groups_of_process: bytes) -> _Place:
    groups = cgroups.of_process(tree, groups_of_process)
    if groups.version is None:
        return _Place(groups, None, None)
    names = _FILES[groups.version]
    return _Place(groups, _tightest(tree, groups.memory, names.limit), _tightest(tree, groups.memory, names.high) if names.high else None)


def _tightest(tree: Tree, folders: tuple[str, ...], name: str) -> str:
    limits = [(limit, folder) for folder in folders if (limit := parse_limit(tree.bytes(f"{folder}/{name}"))) is not None]
    return min(limits, key=lambda found: found[0])[1] if limits else folders[0]


def _reading(place: _Place, text: Callable[[str], bytes], process: str) -> Memory:
    groups = place.groups
    group = groups.memory[0] if groups.memory else None
    stat = parse_stat(text(f"{group}/memory.stat")) if group is not None else {}
    limit = high = usage = hits = killed = None
    if groups.version is not None and place.limited is not None:
        names = _FILES[groups.version]
        limit = parse_limit(text(f"{place.limited}/{names.limit}"))
        # What is set around the mount's own root cannot be seen but in this.
        hidden = stat.get("hierarchical_memory_limit")
        if hidden is not None and 0 < hidden < min(limit or _UNLIMITED, _UNLIMITED):
            limit = hidden
        high = parse_limit(text(f"{place.slowed}/{names.high}")) if place.slowed is not None else None
        usage = _count(text(f"{place.limited}/{names.usage}"))
        hits, killed = parse_hits(text(f"{place.limited}/{names.hits}"))
        if names.killed != names.hits:
            _, killed = parse_hits(text(f"{place.limited}/{names.killed}"))
    memory = parse_kib(text("proc/meminfo"), "MemTotal", "MemAvailable", "SwapTotal")
    refaulted = stat.get("refault")
    # A quarter of the cost, and most machines have no swap.
    vmstat = parse_stat(text("proc/vmstat")) if refaulted is None or memory.get("SwapTotal") != 0 else {}
    swap = stat if "pswpin" in stat else vmstat
    ours = _pressure(text, groups.unified) if groups.unified is not None else (None, None)
    pressure = ours if ours != (None, None) else _pressure(text, None)
    return Memory(
        at=time.perf_counter_ns(),
        group=group,
        limit=limit,
        high=high,
        usage=usage,
        hits=hits,
        killed=killed,
        refaulted=_bytes(refaulted if refaulted is not None else vmstat.get("refault")),
        refaulted_scope="cgroup" if refaulted is not None else "host" if "refault" in vmstat else None,
        memory_pressure=pressure[0],
        io_pressure=pressure[1],
        pressure_scope=None if pressure == (None, None) else "cgroup" if pressure is ours else "host",
        swapped=parse_kib(text(f"{process}/status"), "VmSwap").get("VmSwap"),
        swapped_in=_bytes(swap.get("pswpin")),
        swapped_out=_bytes(swap.get("pswpout")),
        swap_scope=None if "pswpin" not in swap else "cgroup" if swap is stat else "host",
        total=memory.get("MemTotal"),
        available=memory.get("MemAvailable"),
    )


def _pressure(text: Callable[[str], bytes], folder: str | None) -> tuple[float | None, float | None]:
    if folder is not None:
        return parse_pressure(text(f"{folder}/memory.pressure")), parse_pressure(text(f"{folder}/io.pressure"))
    return parse_pressure(text("proc/pressure/memory")), parse_pressure(text("proc/pressure/io"))


def _bytes(pages: int | None) -> int | None:
    return None if pages is None or pages * mmap.PAGESIZE >= _LARGEST else pages * mmap.PAGESIZE


def _count(text: bytes) -> int | None:
    number = whole(text.decode("ascii", "replace").strip())
    return number if number is not None and 0 <= number < _LARGEST else None


def parse_limit(text: bytes) -> int | None:
    """Bytes that a limit file allows; None for "max" and for the huge number that means the same."""
    number = _count(text)
    return number if number is not None and 0 < number < _UNLIMITED else None


def parse_stat(text: bytes) -> dict[str, int]:
    """
    What matters here of a `memory.stat` or of `vmstat`, as it stands there: pages, of the limit bytes.

    Refaults of files are "refault": before Linux 5.9 there were no others, and the key had no suffix.
    """
    text = b"\n" + text
    found = {key: _field(text, key.encode() + b" ") for key in ("pswpin", "pswpout", "hierarchical_memory_limit")}
    refault = _field(text, b"workingset_refault_file ")
    found["refault"] = refault if refault is not None else _field(text, b"workingset_refault ")
    return {key: number for key, number in found.items() if number is not None}


def _field(text: bytes, key: bytes, unit: bytes = b"") -> int | None:
    """The number on the first line that begins with *key*. Found so in vmstat in a tenth of the time that an expression takes."""
    start = text.find(b"\n" + key)
    if start < 0:
        return None
    start += 1 + len(key)
    end = text.find(b"\n", start)
    digits = text[start : end if end >= 0 else len(text)].strip(b" \t")
    if unit:
        if not digits.endswith(unit):
            return None
        digits = digits[: -len(unit)]
    if len(digits) > _DIGITS or not digits.isdigit():
        return None
    number = int(digits)
    return number if number < _LARGEST else None


def parse_hits(text: bytes) -> tuple[int | None, int | None]:
    """Times that a limit was reached and processes killed, out of a `memory.events`, `memory.failcnt` or `memory.oom_control`."""
    lines = b"\n" + text
    hits = _field(lines, b"max ")
    hits = _count(text) if hits is None else hits + (_field(lines, b"high ") or 0)
    return hits, _field(lines, b"oom_kill ")


def parse_kib(text: bytes, *keys: str) -> dict[str, int]:
    """Bytes of the lines *keys* of `meminfo` or `status`."""
    text = b"\n" + text
    found = {key: _field(text, key.encode() + b":", _KIB) for key in keys}
    return {key: number << 10 for key, number in found.items() if number is not None and number < _LARGEST >> 10}


def parse_pressure(text: bytes) -> float | None:
    """Seconds in which at least one task waited, out of a pressure file."""
    found = _SOME.search(text)
    return int(found[1]) / 1e6 if found is not None and int(found[1]) < _LARGEST else None


# This process


class _Live:
    """The files of this process, opened once: open, read and close cost ten times what a pread costs."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._kept: dict[str, Kept] = {}
        self._groups: bytes | None = None
        self._place = _Place(cgroups.Groups(None, (), None), None, None)

    def read(self) -> Memory:
        """A reading now."""
        groups = self._text("proc/self/cgroup")
        if groups != self._groups:  # the first time, or the process was moved
            self._kept = {name: kept for name, kept in self._kept.items() if name.startswith("proc/")}
            self._place, self._groups = _place(HERE, groups), groups
        return _reading(self._place, self._text, "proc/self")

    def _text(self, path: str) -> bytes:
        kept = self._kept.get(path)
        if kept is None or kept.stale:
            kept = self._kept[path] = Kept(HERE.root + path)
        return kept.read(_PIECE)


_lives: list[_Live] = []


def _live() -> _Live:
    # After a fork the files of /proc/self would still tell of the parent.
    if not _lives or _lives[0].pid != os.getpid():
        _lives[:] = [_Live()]
    return _lives[0]
