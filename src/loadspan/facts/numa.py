"""
NUMA nodes: which CPUs belong to which, where a thread runs, where a buffer's pages are, and whether a device is near.

A kernel that does not know a device's node says -1, which is no node. Nodes without a CPU are memory alone (a GPU's, on GH200).
"""

from __future__ import annotations

import mmap
import os
import platform
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from loadspan.facts.tree import HERE, Tree, whole

try:
    import ctypes
except ImportError:  # Python may be built without
    ctypes = None  # type: ignore[assignment] # then no function is found

if TYPE_CHECKING:
    from collections.abc import Mapping

Nearness = Literal["local", "remote"]

_FOLDER = "sys/devices/system/node"
_NODE = re.compile(r"node([0-9]{1,4})")
_RANGE = re.compile(rb"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_CPUS = 1 << 14  # twice what a kernel can be built for
_NODES = 1 << 10  # the most a kernel can be built for
_LONGEST = 1 << 17  # bytes of a list that names every second CPU
_FARTHEST = 255  # distances are bytes of a firmware table
_PAGES = 1 << 10  # asked for at once, at most
_MOVE_PAGES: Final = {"x86_64": 279, "aarch64": 239, "riscv64": 239, "ppc64le": 301, "s390x": 310}


def parse_cpulist(text: bytes) -> frozenset[int] | None:
    """The CPUs of a list such as `0-3,8`; none of a blank line; None where *text* is no such list or names a CPU that no machine has."""
    if not text or len(text) > _LONGEST:
        return None
    cpus: set[int] = set()
    above = -1
    for part in text.split(b",") if text.strip() else ():
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            return None
        first, last = int(found[1]), int(found[2] or found[1])
        # The kernel writes them in ascending order, so a list costs no more than the CPUs it can name.
        if not above < first <= last < _CPUS:
            return None
        cpus.update(range(first, last + 1))
        above = last
    return frozenset(cpus)


def cpulist(cpus: frozenset[int]) -> str:
    """*cpus* as the kernel writes them: `0-3,8`."""
    parts, ordered = [], sorted(cpus)
    while ordered:
        length = next((n for n in range(1, len(ordered)) if ordered[n] != ordered[0] + n), len(ordered))
        parts.append(f"{ordered[0]}-{ordered[length - 1]}" if length > 1 else f"{ordered[0]}")
        del ordered[:length]
    return ",".join(parts)


def known(node: int | None) -> int | None:
    """*node* where it is one: not the -1 of a kernel that does not know, and no wild number."""
    return node if node is not None and 0 <= node < _NODES else None


def numbers(tree: Tree = HERE) -> list[int]:
    """The nodes, in their order."""
    found = [match for name in tree.names(_FOLDER) if (match := _NODE.fullmatch(name))]
    return sorted({node for match in found if (node := known(int(match[1]))) is not None})


def nodes(tree: Tree = HERE) -> dict[int, frozenset[int]]:
    """The CPUs of every node, in the order of the nodes; one whose list cannot be read is left out."""
    lists = {node: parse_cpulist(tree.bytes(f"{_FOLDER}/node{node}/cpulist")) for node in numbers(tree)}
    return {node: cpus for node, cpus in lists.items() if cpus is not None}


def single(tree: Tree = HERE) -> bool:
    """Whether the CPUs of this machine are known to be of one node. Nodes of memory alone do not count."""
    found = nodes(tree)
    return len(found) == len(numbers(tree)) and len([node for node, cpus in found.items() if cpus]) == 1


def distances(tree: Tree = HERE) -> dict[int, dict[int, int]]:
    """How far every node's memory is from every node, as its firmware says: 10 is the node's own."""
    order = numbers(tree)
    table = {}
    for node in order:
        row = [whole(field) for field in (tree.text(f"{_FOLDER}/node{node}/distance") or "")[:_LONGEST].split()]
        if len(row) == len(order) and all(value is not None and 0 < value <= _FARTHEST for value in row):
            table[node] = {other: value for other, value in zip(order, row, strict=True) if value is not None}
    return table


def node_of_cpu(cpu: int, nodes: Mapping[int, frozenset[int]]) -> int | None:
    """The node that *cpu* is of; None where none says so, or more than one does."""
    found = [node for node, cpus in nodes.items() if cpu in cpus]
    return found[0] if len(found) == 1 else None


def node_of_affinity(cpus: frozenset[int] | None, nodes: Mapping[int, frozenset[int]]) -> int | None:
    """The node that has all of *cpus*; None where there is no such node."""
    found = [node for node, own in nodes.items() if cpus and cpus <= own]
    return found[0] if len(found) == 1 else None


def relation(cpus: frozenset[int] | None, device_cpus: frozenset[int] | None) -> Nearness | None:
    """
    A thread that may run on *cpus*, as seen from a device whose node has *device_cpus*.

    Local where it always runs near, remote where it never does, None where it may do either or one side is unknown.
    """
    if not cpus or not device_cpus:
        return None
    if cpus <= device_cpus:
        return "local"
    return None if cpus & device_cpus else "remote"


def affinity(tree: Tree = HERE) -> frozenset[int] | None:
    """The CPUs that the calling thread may run on."""
    if tree.here and hasattr(os, "sched_getaffinity"):
        with suppress(OSError):
            return frozenset(os.sched_getaffinity(0))
    return None


def _libc() -> Any:
    with suppress(OSError, TypeError, AttributeError):
        return ctypes.CDLL(None, use_errno=True)
    return None


_LIBC = _libc()


def node_of_thread(tree: Tree = HERE) -> int | None:
    """The node of the CPU that the calling thread is on at this moment; it may leave it in the next."""
    getcpu = getattr(_LIBC, "getcpu", None)
    if not tree.here or getcpu is None or not sys.platform.startswith("linux"):
        return None
    cpu, node = ctypes.c_uint(), ctypes.c_uint()
    return known(node.value) if getcpu(ctypes.byref(cpu), ctypes.byref(node)) == 0 else None


def node_of_pages(address: int, size: int, count: int = 16) -> dict[int, int] | None:
    """
    How many of *count* pages, spread over the *size* bytes at *address* of this process, each node holds.

    Pages that are not in memory are left out and not brought in. None where the kernel does not tell, as in many containers, or nothing
    is in memory.
    """
    number = _MOVE_PAGES.get(platform.machine()) if sys.platform.startswith("linux") and sys.maxsize > 1 << 32 else None
    call = getattr(_LIBC, "syscall", None)
    if number is None or call is None or address <= 0 or size <= 0 or address + size >= 1 << 63:
        return None
    page = mmap.PAGESIZE
    first, last = address // page, (address + size - 1) // page
    count = max(1, min(count, _PAGES, last - first + 1))
    asked = [(first + (last - first) * index // max(count - 1, 1)) * page for index in range(count)]
    places, answers = (ctypes.c_void_p * count)(*asked), (ctypes.c_int * count)()
    # Without a list of nodes nothing is moved: the kernel answers where each page is, or a negative error number.
    status = call(ctypes.c_long(number), ctypes.c_long(0), ctypes.c_long(count), places, ctypes.c_void_p(None), answers, ctypes.c_long(0))
    if status != 0:
        return None
    found: dict[int, int] = {}
    for node in answers:
        if known(node) is not None:
            found[node] = found.get(node, 0) + 1
    return dict(sorted(found.items())) or None
