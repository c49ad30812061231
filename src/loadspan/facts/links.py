"""
PCIe links between the host and a device: what each can do, what it does now, and whether it is slower than it should be.

A link joins a root port, or a switch's downstream port, to what is below it; the two ports of one switch are no link. An idle link rests at
the lowest speed, of some cards at fewer lanes too: only a reading taken while bytes move tells what it can carry. That may lag all the
same: the best of several readings counts, and none that is less than what was measured to pass.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from loadspan import units
from loadspan.facts import pci

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadspan.facts.tree import Tree

_SPEED = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,2})?) GT/s(?: PCIe)?")
_GENERATIONS: Final = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
# Bytes per second of one lane in one direction: transfers, less the bits that encode them.
_LANE: Final = {
    1: 2.5e9 * 8 / 10 / 8,
    2: 5e9 * 8 / 10 / 8,
    3: 8e9 * 128 / 130 / 8,
    4: 16e9 * 128 / 130 / 8,
    5: 32e9 * 128 / 130 / 8,
    6: 64e9 * 242 / 256 / 8,
}
_WIDEST = 32  # 0, 63 and 255 are what a link that is down, or a device that does not answer, shows
_EMULATED_VENDORS: Final = frozenset({0x1B36, 0x1AF4, 0x15AD})  # QEMU's own ports, and VMware's
_EMULATED: Final = frozenset({(0x104C, 0x8232), (0x104C, 0x8233)})  # a switch that exists in QEMU alone nowadays
_UPSTREAM = re.compile(r".*:pcie1[0-9a-f]{2}")
_BRIDGE: Final = 0x0604


@dataclass(frozen=True, slots=True)
class Lanes:
    """How fast and how wide; None where it is not known."""

    generation: int | None = None
    width: int | None = None

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second in one direction, before the overhead of packets."""
        return _LANE[self.generation] * self.width if self.generation is not None and self.width is not None else None

    def __str__(self) -> str:
        return f"Gen{self.generation or '?'} x{self.width or '?'}"


@dataclass(frozen=True, slots=True)
class Link:
    """A link: its two ends, what each end can do at most, and what the link does now."""

    parent: str
    child: str
    parent_max: Lanes
    child_max: Lanes
    now: Lanes = Lanes()
    parent_emulated: bool = False
    child_emulated: bool = False

    @property
    def possible(self) -> Lanes:
        """What both ends can do; unknown where one end is."""
        ends = (self.parent_max, self.child_max)
        return Lanes(_least(*(end.generation for end in ends)), _least(*(end.width for end in ends)))

    @property
    def generation(self) -> int | None:
        """Generation now."""
        return self.now.generation

    @property
    def width(self) -> int | None:
        """Lanes now."""
        return self.now.width

    @property
    def generation_max(self) -> int | None:
        """The highest generation that both ends support."""
        return self.possible.generation

    @property
    def width_max(self) -> int | None:
        """The most lanes that both ends support."""
        return self.possible.width

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second in one direction now."""
        return self.now.bandwidth

    @property
    def bandwidth_max(self) -> float | None:
        """Bytes per second in one direction at the most that both ends support."""
        return self.possible.bandwidth

    @property
    def narrow(self) -> bool:
        """Whether the port is less than what the device below it could use."""
        return (self.bandwidth_max or 0) < (self.child_max.bandwidth or 0) and self.bandwidth_max is not None

    def __str__(self) -> str:
        return f"{self.parent} {self.child} {self.now} of {self.possible}"


def _least(one: int | None, other: int | None) -> int | None:
    return min(one, other) if one is not None and other is not None else None


def _lanes(tree: Tree, folder: str, which: str) -> Lanes:
    speed = _SPEED.fullmatch(tree.text(f"{folder}/{which}_link_speed") or "")
    width = tree.number(f"{folder}/{which}_link_width")
    return Lanes(
        _GENERATIONS.get(float(speed[1])) if speed is not None else None,
        width if width is not None and 1 <= width <= _WIDEST else None,
    )


def _emulated(tree: Tree, folder: str) -> bool:
    vendor = pci.code(tree, f"{folder}/vendor")
    return vendor in _EMULATED_VENDORS or (vendor, pci.code(tree, f"{folder}/device")) in _EMULATED


def _tunnel(tree: Tree, parent: str, child: str) -> bool:
    """
    Whether a link runs through a Thunderbolt or USB4 cable: its port says 2.5 GT/s, as the standard wants, whatever the cable carries.

    Told by a bridge below such a port, the one of the enclosure: no other port above a switch has been that slow for long.
    """
    class_code = pci.code(tree, f"{child}/class", 6)
    return class_code is not None and class_code >> 8 == _BRIDGE and _lanes(tree, parent, "max").generation == 1


def _inside(tree: Tree, parent: str, child: str) -> bool:
    """
    Whether a link is one inside a card whose two ends say 2.5 GT/s, as those of Intel's Arc do, and mean nothing by it.

    No device that computes has been that slow for long; a port that was set to 2.5 GT/s has a device below it that could do more.
    """
    return pci.code(tree, f"{child}/class", 6) != _BRIDGE << 8 and all(_lanes(tree, end, "max") == Lanes(1, 1) for end in (parent, child))


class LinkReader:
    """
    The links of one device.

    What does not change is read once, and a sample reads two files of each link, and one that tells whether the device is awake: reading a
    sleeping one may wake it.
    """

    def __init__(self, tree: Tree, address: str) -> None:
        self._tree = tree
        self._places = pci.places(tree, address)
        self._folders: tuple[tuple[str, str], ...] = ()
        self._links: tuple[Link, ...] | None = None

    def _awake(self) -> bool:
        return bool(self._places) and self._tree.text(f"{self._places[-1][1]}/power/runtime_status") in (None, "active")

    @property
    def links(self) -> tuple[Link, ...]:
        """The links from the host to the device, without what they do now; none while the device sleeps, or where they are not known."""
        if self._links is None and self._awake():
            self._links = self._constant()
        return self._links or ()

    def _constant(self) -> tuple[Link, ...]:
        tree = self._tree
        # Below the last host bridge: a controller that hides devices in a domain of its own is a host bridge to them.
        start = max(index for index, (name, _) in enumerate(self._places) if pci.is_host_bridge(name)) + 1
        below = self._places[start:]
        pairs = list(zip(below[::2], below[1::2], strict=False))
        # The services that a port offers tell what it is. One that ends a link cannot begin one: the way is not the usual one.
        if any(_UPSTREAM.fullmatch(name) for (_, folder), _ in pairs for name in tree.names(folder)):
            return ()
        pairs = [(parent, child) for parent, child in pairs if len(pairs) == 1 or not _inside(tree, parent[1], child[1])]
        self._folders = tuple((parent, child) for (_, parent), (_, child) in pairs)
        found = []
        for (parent, parent_folder), (child, child_folder) in pairs:
            above, under = _emulated(tree, parent_folder), _emulated(tree, child_folder)
            if _tunnel(tree, parent_folder, child_folder):
                above = under = True  # its two ends say as little as those of a virtual machine
            ends = (
                Lanes() if above else _lanes(tree, parent_folder, "max"),
                Lanes() if under else _lanes(tree, child_folder, "max"),
            )
            found.append(Link(parent, child, *ends, parent_emulated=above, child_emulated=under))
        return tuple(found)

    def read(self) -> tuple[Link, ...]:
        """The links and what they do now."""
        links = self.links
        if not links or not self._awake():
            return links
        return tuple(replace(link, now=self._now(link, *folders)) for link, folders in zip(links, self._folders, strict=True))

    def _now(self, link: Link, parent: str, child: str) -> Lanes:
        if link.child_emulated:
            return Lanes()
        now = _lanes(self._tree, child, "current")
        if now.bandwidth is None and not link.parent_emulated:
            other = _lanes(self._tree, parent, "current")
            now = Lanes(now.generation or other.generation, now.width or other.width)
        return now

    def sample(self) -> Link | None:
        """The narrowest link as it is now; None where that is not known."""
        return narrowest(self.read())


def links(tree: Tree, address: str) -> tuple[Link, ...]:
    """The links from the host to *address*, the one at the host first; none where they are not known, or the device sleeps."""
    return LinkReader(tree, address).read()


def narrowest(links: Sequence[Link], *, possible: bool = False) -> Link | None:
    """
    The link that limits the way, by what links do now, or with *possible* by what they could.

    None where there is none, or one of them is not known: it might be the narrowest. Links inside a virtual machine, or in a cable that
    hides them, are not counted.
    """
    found: list[tuple[float, float, Link]] = []
    for link in links:
        if link.child_emulated:
            continue
        now, most = link.bandwidth, link.bandwidth_max
        first, second = (most, now) if possible else (now, most)
        if first is None:
            return None
        # Of equal ones the one that could do no more: it is the limit also when the others recover.
        found.append((first, second or 0.0, link))
    return min(found, key=lambda item: item[:2])[2] if found else None


def best(one: Link | None, other: Link | None) -> Link | None:
    """The faster of two samples."""
    if one is None or other is None:
        return one or other
    return other if (other.bandwidth or 0) > (one.bandwidth or 0) else one


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said of a device's links."""

    degraded: bool | None = None
    """Whether the narrowest link ran below what both its ends support while bytes moved; None where that was not seen."""
    narrow: bool = False
    """Whether a port is less than what the device below it could use: as built, no fault."""
    stale: bool = False
    """More passed than the reading allows: the reading is wrong, and its generation, width and bandwidth are not to be told."""
    sentence: str | None = None


def verdict(
    links: Sequence[Link], sample: Link | None, *, moved: bool, achieved: float | None = None, coherent: bool = False
) -> Verdict | None:
    """
    Judge a device's *links* by the best *sample*, which counts where bytes *moved* as it was taken.

    *achieved*: bytes per second that were measured to pass; copies that were handed over and not waited for measure nothing.
    None where nothing can be said: the ends of a link are emulated or do not tell what they can do, or the device has *coherent* links to
    the host, which carry its bytes instead.
    """
    limit = narrowest(links, possible=True)
    if coherent or limit is None or any(link.parent_emulated or link.child_emulated for link in links):
        return None
    tight = next((link for link in links if link.narrow and link.bandwidth_max == limit.bandwidth_max), None)
    narrow = tight is not None and (limit.bandwidth_max or 0) < (links[-1].child_max.bandwidth or 0)
    found = Verdict(narrow=narrow, sentence=_narrow(tight) if narrow and tight is not None else None)
    if not moved or sample is None or sample.bandwidth is None or sample.bandwidth_max is None:
        return found
    stale = achieved is not None and achieved > sample.bandwidth
    if sample.bandwidth >= sample.bandwidth_max:
        # What passes more than both its ends could, as cables do that hide the link inside them, tells nothing true of its ends either.
        return Verdict(degraded=False, stale=True) if stale else replace(found, degraded=False)
    if stale:
        return replace(found, stale=True)
    return replace(found, degraded=True, sentence=_degraded(sample))


def _carried(lanes: Lanes) -> str:
    return f"{lanes} ({units.throughput(lanes.bandwidth or 0)})"


def _narrow(link: Link) -> str:
    return (
        f"PCIe port {link.parent} is narrow: with it {link.child} can do {_carried(link.possible)}, "
        f"in a better one it could do {_carried(link.child_max)}"
    )


def _degraded(link: Link) -> str:
    now, most = link.now, link.possible
    less = [f"x{now.width} of x{most.width}"] if (now.width or 0) < (most.width or 0) else []
    less += [f"Gen{now.generation} of Gen{most.generation}"] if (now.generation or 0) < (most.generation or 0) else []
    return (
        f"PCIe link {link.parent} - {link.child}: {' and '.join(less)} while bytes moved, "
        f"{units.throughput(now.bandwidth or 0)} of {units.throughput(most.bandwidth or 0)}"
    )
