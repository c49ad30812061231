"""
The machine and what this process may use of it: kernel, CPUs, memory.

All of it is read from kernel files; what none of them says is None.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadspan.facts import cgroups, mounts, numa
from loadspan.facts.memory import parse_kib
from loadspan.facts.tree import HERE, whole

if TYPE_CHECKING:
    from loadspan.facts.tree import Tree

_CPUS = 1 << 14
_LONGEST = 120  # characters of a name that is shown
_GROUPS = "sys/fs/cgroup"
_LAYERED = frozenset(("overlay", "fuse.fuse-overlayfs"))  # what the root of a container is made of
_DEEPEST = 64  # groups above one another
_MODELS = ("model name", "Model", "cpu", "Processor")  # x86; some arm boards; POWER; old arm
_CHOICE = re.compile(r"\[(\w{1,20})\]")


@dataclass(frozen=True, slots=True)
class Machine:
    """Sizes are bytes; what is not known is None."""

    kernel: str | None = None
    architecture: str | None = None
    processor: str | None = None
    """Name of the CPU model."""
    cpus: int | None = None
    """CPUs that are online, hardware threads counted."""
    cpus_allowed: frozenset[int] | None = None
    """CPUs that this process may run on."""
    cpu_limit: float | None = None
    """CPUs' worth of time that its control groups grant, the least of them."""
    numa_nodes: int | None = None
    """Nodes with memory or CPUs; one where there is no NUMA."""
    memory: int | None = None
    memory_available: int | None = None
    """What can be had without swapping."""
    swap: int | None = None
    swap_free: int | None = None
    virtual: bool | None = None
    """True in a virtual machine; None where nothing says so, since a hypervisor may hide."""
    hypervisor: str | None = None
    """Who made the virtual machine, as it says itself."""
    container: str | None = None
    """`docker` or `podman`, where they left their mark."""
    wsl: bool | None = None
    """Whether this is Windows' Linux: its `/mnt/c` and its GPUs are reached through Windows."""
    huge_pages: str | None = None
    """Transparent huge pages: `always`, `madvise`, `never`."""


def _fields(text: bytes, most: int = 200) -> dict[str, str]:
    """Names and values of the first *most* lines `name: value`; of a name that comes again, the first."""
    found: dict[str, str] = {}
    for line in text[: 1 << 16].decode("utf-8", "replace").split("\n")[:most]:
        name, separator, value = line.partition(":")
        if separator:
            found.setdefault(name.strip(), value.strip())
    return found


def _shown(text: str | None) -> str | None:
    name = " ".join(text.split())[:_LONGEST] if text else ""
    return name if name and name.isprintable() else None


def _processor(first: dict[str, str]) -> str | None:
    return next((name for field in _MODELS if (name := _shown(first.get(field)))), None)


def _online(tree: Tree) -> int | None:
    cpus = numa.parse_cpulist(tree.bytes("sys/devices/system/cpu/online"))
    if cpus:
        return len(cpus)
    listed = len(re.findall(rb"(?m)^processor\s*:\s*\d", tree.bytes("proc/cpuinfo")))
    return listed if 0 < listed <= _CPUS else None


def _allowed(tree: Tree) -> frozenset[int] | None:
    if tree.here:
        return numa.affinity(tree)
    return numa.parse_cpulist(_fields(tree.bytes("proc/self/status")).get("Cpus_allowed_list", "").encode("utf-8", "replace")) or None


def _around(path: str) -> list[str]:
    """Group *path* and those around it, up to the root. A container may have no other than the root, which is its own group."""
    parts = [part for part in path.split("/") if part]
    parts = parts if len(parts) <= _DEEPEST and ".." not in parts else []
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]


def _quota(period: int | None, quota: int | None) -> float | None:
    known = period is not None and quota is not None and 0 < period < 1 << 24 and 0 < quota < 1 << 40
    return quota / period if known and period and quota else None


def _cpu_limit(tree: Tree) -> float | None:
    named = cgroups.paths(tree.bytes("proc/self/cgroup"))
    limits = []
    for group in _around(named.get("", "/")):
        quota, _, period = (tree.text(f"{_GROUPS}/{group}/cpu.max") or "").partition(" ")
        limits.append(_quota(whole(period), whole(quota)))
    for group in _around(named.get("cpu", "/")):
        folder = f"{_GROUPS}/cpu/{group}"
        limits.append(_quota(tree.number(f"{folder}/cpu.cfs_period_us"), tree.number(f"{folder}/cpu.cfs_quota_us")))
    return min((limit for limit in limits if limit is not None), default=None)


def _container(tree: Tree) -> str | None:
    # The file alone proves nothing: it stays in an image that a virtual machine boots from.
    root = mounts.find(tree.bytes("proc/self/mountinfo"), "/")
    if root is None or root.filesystem not in _LAYERED:
        return None
    return "docker" if tree.exists(".dockerenv") else "podman" if tree.exists("run/.containerenv") else None


def of(tree: Tree = HERE) -> Machine:
    """The machine that *tree* is of. About a millisecond, more on a machine with hundreds of CPUs: ask once."""
    kernel = _shown(tree.text("proc/sys/kernel/osrelease"))
    memory = parse_kib(tree.bytes("proc/meminfo"), "MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    first = _fields(tree.bytes("proc/cpuinfo"), 60)
    virtual = "hypervisor" in first.get("flags", "").split() or tree.exists("sys/hypervisor/type") or None
    vendor = tree.text("sys/hypervisor/type") or tree.text("sys/class/dmi/id/sys_vendor")
    choice = _CHOICE.search(tree.text("sys/kernel/mm/transparent_hugepage/enabled") or "")
    return Machine(
        kernel,
        _shown(tree.text("proc/sys/kernel/arch")) or (os.uname().machine if tree.here else None),
        _processor(first),
        _online(tree),
        _allowed(tree),
        _cpu_limit(tree),
        len(numa.numbers(tree)) or None,
        memory.get("MemTotal"),
        memory.get("MemAvailable"),
        memory.get("SwapTotal"),
        memory.get("SwapFree"),
        virtual,
        _shown(vendor) if virtual else None,
        _container(tree),
        "microsoft" in kernel.lower() if kernel is not None else None,
        choice[1] if choice is not None else None,
    )
