"""
PCI devices: their addresses, the way from the host bridge to each, their NUMA node, and how near two of them are to each other.

An address is `DDDD:BB:DD.F` in lower case, as the kernel writes it; domains may have more than four digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadspan.facts import numa
from loadspan.facts.tree import HERE, Tree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEVICES: Final = "sys/bus/pci/devices"
AMD: Final = 0x1002
DISPLAY: Final = 0x03
"""Class of display controllers, the first of the three bytes."""
_ADDRESS = re.compile(r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])")
_HOST_BRIDGE = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_CODE = re.compile(r"0x([0-9a-f]{1,6})", re.IGNORECASE)
_ACCELERATOR: Final = 0x1200
# Screens of virtual machines (Bochs, virtio, VMware, QXL, VirtualBox, Hyper-V, Cirrus, Parallels, Amazon, bhyve) and of servers' management
# controllers.
_SCREENS: Final = frozenset(
    {0x1234, 0x1AF4, 0x15AD, 0x1B36, 0x80EE, 0x1414, 0x1013, 0x1AB8, 0x1D0F, 0xFB5D, 0x1A03, 0x102B, 0x18CA, 0x19E5, 0x126F}
)


@dataclass(frozen=True, slots=True)
class PciDevice:
    """A function of a PCI device. What the kernel does not tell is None."""

    address: str
    class_code: int | None = None
    """Three bytes: class, subclass, interface; `0x030200` is a 3D controller."""
    vendor: int | None = None
    device: int | None = None
    numa_node: int | None = None
    driver: str | None = None


def normalized(address: str) -> str | None:
    """*address* as the kernel writes it: `00000000:1B:00.0` and `1b:00.0` are `0000:1b:00.0`. None where it is no PCI address."""
    found = _ADDRESS.fullmatch(address.strip())
    if found is None:
        return None
    domain, bus, device, function = found.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function}".lower()


def is_host_bridge(name: str) -> bool:
    """Whether an element of a path is a host bridge, `pci0000:00`."""
    return _HOST_BRIDGE.fullmatch(name) is not None


def code(tree: Tree, path: str, digits: int = 4) -> int | None:
    """The number in a file such as `vendor`, written `0x10de`."""
    found = _CODE.fullmatch(tree.text(path) or "")
    return int(found[1], 16) if found is not None and len(found[1]) <= digits else None


def places(tree: Tree, address: str) -> tuple[tuple[str, str], ...]:
    """
    Name and folder of every element on the way to *address*: the host bridge first, the device last; none where it is not known.

    They are folders of the device's real path: an ancestor's own link below `/sys/bus/pci` may be missing.
    """
    name = normalized(address)
    found = _real(tree, name) if name is not None else None
    if found is None or name is None:
        return ()
    parts = found.split("/")
    first = next((index for index, part in enumerate(parts) if is_host_bridge(part)), len(parts))
    way = parts[first:]
    known = all(is_host_bridge(part) or normalized(part) == part for part in way)
    # Each is met once, and at the end is what was asked for, or the card that it is a part of.
    if len(way) <= 1 or not known or len(set(way)) != len(way) or way[-1][:-1] != name[:-1]:
        return ()
    return tuple((part, "/".join(parts[: first + index + 1])) for index, part in enumerate(way))


def _real(tree: Tree, name: str) -> str | None:
    found = tree.real(f"{DEVICES}/{name}")
    if found is not None:
        return found
    # A partition of an AMD accelerator has a function number of its own in the driver's numbering, but no PCI function.
    card = f"{DEVICES}/{name[:-1]}0"
    return tree.real(card) if not name.endswith("0") and code(tree, f"{card}/vendor") == AMD else None


def path(tree: Tree, address: str) -> tuple[str, ...]:
    """The way to *address*: the host bridge, the bridges, the device; empty where it is not known."""
    return tuple(name for name, _ in places(tree, address))


def _folder(tree: Tree, address: str) -> str | None:
    way = places(tree, address)
    return way[-1][1] if way else None


def numa_node(tree: Tree, address: str) -> int | None:
    """The NUMA node of *address*; None where the kernel does not know it."""
    folder = _folder(tree, address)
    return numa.known(tree.number(f"{folder}/numa_node")) if folder is not None else None


def local_cpus(tree: Tree, address: str) -> frozenset[int] | None:
    """The CPUs of the device's NUMA node; None where the kernel does not know the node: it then names all CPUs, which tells nothing."""
    folder = _folder(tree, address)
    if folder is None or numa.known(tree.number(f"{folder}/numa_node")) is None:
        return None
    return numa.parse_cpulist(tree.bytes(f"{folder}/local_cpulist"))


def device(tree: Tree, address: str) -> PciDevice | None:
    """What the kernel tells of *address*; None where it is not there."""
    way = places(tree, address)
    if not way:
        return None
    name, folder = way[-1]
    driver = tree.real(f"{folder}/driver")
    return PciDevice(
        name,
        code(tree, f"{folder}/class", 6),
        code(tree, f"{folder}/vendor"),
        code(tree, f"{folder}/device"),
        numa.known(tree.number(f"{folder}/numa_node")),
        driver.rpartition("/")[2] if driver is not None else None,
    )


def _addresses(tree: Tree) -> list[str]:
    return [name for name in tree.names(DEVICES) if normalized(name) == name]


def devices(tree: Tree = HERE) -> list[PciDevice]:
    """Every PCI function of the machine, by address."""
    return [found for address in _addresses(tree) if (found := device(tree, address)) is not None]


def accelerators(tree: Tree = HERE) -> list[PciDevice]:
    """
    The devices that compute: display controllers and processing accelerators, without screens that are emulated or a server's console.

    They are the machine's; a container sees them here although it may not be allowed to use them all.
    """
    found = []
    for address in _addresses(tree):
        class_code = code(tree, f"{DEVICES}/{address}/class", 6)
        if class_code is None or (class_code >> 16 != DISPLAY and class_code >> 8 != _ACCELERATOR):
            continue
        one = device(tree, address)
        if one is not None and not (class_code >> 16 == DISPLAY and one.vendor in _SCREENS):
            found.append(one)
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    address: str | None
    path: tuple[str, ...]
    node: int | None


def _place(tree: Tree, address: str) -> _Place:
    return _Place(normalized(address), path(tree, address), numa_node(tree, address))


def _relation(one: _Place, other: _Place, *, single: bool) -> str | None:
    if one.address is None or other.address is None:
        return None
    if one.address == other.address:
        return "X"
    if not one.path or not other.path:
        return None
    common = 0
    for left, right in zip(one.path, other.path, strict=False):
        if left != right:
            break
        common += 1
    if common == 0:
        return _across(one.node, other.node, single=single)
    if is_host_bridge(one.path[common - 1]):
        return "PHB"
    return "PIX" if max(len(one.path), len(other.path)) - 1 - common <= 1 else "PXB"


def _across(one: int | None, other: int | None, *, single: bool) -> str | None:
    """Of devices below different host bridges, by their NUMA nodes."""
    if one is None and other is None:
        return "NODE" if single else None
    # One unknown and the other known is what `nvidia-smi topo` calls SYS, too.
    return "NODE" if one == other else "SYS"


def relation(tree: Tree, one: str, other: str) -> str | None:
    """
    How near two devices are, in the words of `nvidia-smi topo -m`; None where it is not known.

    X: the same. PIX: at most one bridge between. PXB: several bridges. PHB: the same host bridge. NODE: the same NUMA node. SYS: neither.
    """
    return _relation(_place(tree, one), _place(tree, other), single=numa.single(tree))


def matrix(
    tree: Tree, addresses: Sequence[str], nvlinks: Mapping[tuple[str, str], int] | None = None
) -> tuple[tuple[str | None, ...], ...]:
    """
    `relation` of every device with every other, a row for each.

    *nvlinks* tells how many NVLinks join two addresses, in either order: the kernel's files do not, and `NV4` says more than `SYS`.
    """
    found = [_place(tree, address) for address in addresses]
    single = numa.single(tree)
    joined = {frozenset((normalized(one), normalized(other))): count for (one, other), count in (nvlinks or {}).items() if count > 0}

    def cell(one: _Place, other: _Place) -> str | None:
        count = joined.get(frozenset((one.address, other.address))) if one.address != other.address else None
        return f"NV{count}" if count is not None else _relation(one, other, single=single)

    return tuple(tuple(cell(one, other) for other in found) for one in found)
