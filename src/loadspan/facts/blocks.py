"""
What lies under a block device: partitions, device mapper, md, loop devices and the files they show, down to the disks; and its counters.

Links of sysfs are followed to a depth of 8 and to 256 devices: nothing real is larger, and a recorded machine may say anything.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadspan.facts import disks, mounts
from loadspan.facts.kept import Kept
from loadspan.facts.tree import HERE, Tree

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.facts.disks import Disk

_DEPTH = 8
_DEVICES = 256
_VOLUMES = 64
_MOST_KEPT = 32
_NODES = 4096
_NAME = 32
_LEVEL = re.compile(r"[a-z0-9]{1,16}")
_MAPPERS = (  # what the name of a mapping begins with, what it is called, whether it encrypts
    ("LVM-", "dm-lvm", False),
    ("CRYPT-VERITY-", "dm-verity", False),
    ("CRYPT-INTEGRITY-", "dm-integrity", False),
    ("CRYPT-SUBDEV-", "dm-integrity", False),
    ("CRYPT-", "dm-crypt", True),
    ("mpath-", "dm-multipath", False),
    ("DMRAID-", "dm-raid", False),
)


@dataclass(frozen=True, slots=True)
class Chain:
    """Devices from the disks up to the one that was asked for."""

    stack: tuple[str, ...] = ()
    disks: tuple[Disk, ...] = ()
    kind: str | None = None
    """Of the disks; None where they differ or one is not known."""
    encrypted: bool = False
    """Whether LUKS or another dm-crypt mapping is among them."""


def _device(tree: Tree, path: str) -> str | None:
    """Where the link *path* of sysfs leads, if that is a device."""
    found = tree.real(path)
    return found if found is not None and found.startswith("sys/devices/") else None


def folder_of(number: str | None, tree: Tree = HERE) -> str | None:
    """Folder of device *number* below `sys`; None where there is no such device, as with filesystems that have none."""
    return _device(tree, f"sys/dev/block/{number}") if number and disks.NUMBER.fullmatch(number) else None


def folders_of(mount: mounts.Mount, tree: Tree = HERE) -> list[str]:
    """Folders of the devices of *mount*: several for a btrfs that spans them, none for a filesystem without."""
    folder = folder_of(mount.number, tree)
    if folder is not None:
        return [folder]
    if mount.filesystem != "btrfs":
        return []
    source = _by_name(mount.source, tree)
    volume = btrfs_folder(source, tree)
    return (_members(volume, tree) if volume else []) or ([source] if source else [])


def _members(volume: str, tree: Tree) -> list[str]:
    found = [_device(tree, f"{volume}/devices/{name}") for name in tree.names(f"{volume}/devices")[:_VOLUMES]]
    return [device for device in found if device is not None]


def btrfs_folder(device: str | None, tree: Tree = HERE) -> str | None:
    """Folder below `sys/fs/btrfs` of the volume that *device* is part of, or of the only one there is where no device is known."""
    base = "sys/fs/btrfs"
    volumes = [f"{base}/{name}" for name in tree.names(base)[:_VOLUMES] if name.count("-") == 4]  # noqa: PLR2004 - a UUID
    if device is None:
        return volumes[0] if len(volumes) == 1 else None
    return next((volume for volume in volumes if device in _members(volume, tree)), None)


def _by_name(source: str, tree: Tree) -> str | None:
    """Folder of the device file *source*, as a mount names it."""
    if not source.startswith("/dev/"):
        return None
    short = source.rpartition("/")[2]
    if source.startswith("/dev/mapper/"):
        # By what sysfs says, not by the link that /dev has here: a machine that is being recorded must hold the answer.
        names = [name for name in tree.names("sys/class/block")[:_NODES] if name.startswith("dm-")]
        name = next((name for name in names if disks.word(tree, f"sys/class/block/{name}/dm/name") == short), None)
        return _device(tree, f"sys/class/block/{name}") if name is not None else None
    real = os.path.realpath(source) if tree.here else source
    found = _device(tree, f"sys/class/block/{real.removeprefix('/dev/').replace('/', '!')}")
    return found or _device(tree, f"sys/class/block/{real.rpartition('/')[2]}")


class _Walk:
    """One descent. Devices that are reached twice, as the disk below two volumes of one group, count once."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.seen: set[str] = set()
        self.stack: list[str] = []
        self.disks: list[Disk] = []
        self.kinds: set[str | None] = set()
        self.encrypted = False

    def add(self, folder: str, depth: int, *, whole: bool = True) -> None:
        """Add what is below *folder*, then itself; not *whole*: it is the disk of a partition, which stands in the stack in its place."""
        if folder in self.seen:
            return
        self.seen.add(folder)
        tree = self.tree
        if whole and tree.exists(f"{folder}/partition"):
            self.add(folder.rpartition("/")[0], depth, whole=False)
            self.stack.append(disks.display(folder))
            return
        if depth >= _DEPTH or len(self.seen) > _DEVICES:
            self.kinds.add(None)
        elif not self._below(folder, depth):
            leaf = disks.disk(tree, folder)
            self.disks.append(leaf)
            self.kinds.add(leaf.kind)
            if not whole:
                return
        name, encrypts = self._called(folder)
        self.encrypted = self.encrypted or encrypts
        self.stack.append(name)

    def _below(self, folder: str, depth: int) -> bool:
        """Add the devices below *folder*; False where there are none."""
        tree = self.tree
        found = [_device(tree, f"{folder}/slaves/{name}") for name in tree.names(f"{folder}/slaves")[:_DEVICES]]
        below = [device for device in found if device is not None]
        for device in below:
            self.add(device, depth + 1)
        return bool(below) or self._behind(folder, depth)

    def _behind(self, folder: str, depth: int) -> bool:
        """Go on with the file that a loop device shows, where there is one of that name: it may be in another namespace."""
        path = self.tree.text(f"{folder}/loop/backing_file")
        if not path or not path.startswith("/") or path.endswith(" (deleted)"):
            return False
        mount = mounts.of_path(path, self.tree)
        if mount is None:
            return False
        kind = mounts.kind_of(mount.filesystem)
        devices = folders_of(mount, self.tree) if kind is None else []
        for device in devices:
            self.add(device, depth + 1)
        if not devices:
            self.kinds.add(kind)
            self.stack.append(mount.filesystem[:_NAME])
        return True

    def _called(self, folder: str) -> tuple[str, bool]:
        """Display name of a device, and whether it encrypts."""
        tree, name = self.tree, disks.display(folder)
        if name.startswith("dm-"):
            uuid = disks.word(tree, f"{folder}/dm/uuid") or ""
            for prefix, called, encrypts in _MAPPERS:
                if uuid.startswith(prefix):
                    return called, encrypts
            return disks.word(tree, f"{folder}/dm/name") or name, False
        level = disks.word(tree, f"{folder}/md/level") if name.startswith("md") else None
        return (f"md-{level}" if level and _LEVEL.fullmatch(level) else name), False


def chain(folders: Iterable[str], tree: Tree = HERE) -> Chain:
    """What lies under the devices at *folders* of sysfs."""
    walk = _Walk(tree)
    for folder in folders:
        walk.add(folder, 0)
    kind = next(iter(walk.kinds)) if len(walk.kinds) == 1 else None
    return Chain(tuple(walk.stack), tuple(walk.disks), kind, walk.encrypted)


@dataclass(frozen=True, slots=True)
class BlockCounters:
    """Lifetime counters of a block device, of the whole machine: other programs and containers included."""

    at: int
    """Nanoseconds of `time.perf_counter_ns`."""
    reads: int
    size: int
    """Bytes read."""
    reading: int
    """Milliseconds of all reads together."""
    busy: int
    """Milliseconds in which there was at least one request."""
    queued: int
    """Milliseconds of all requests together."""


@dataclass(frozen=True, slots=True)
class BlockUse:
    """What a block device did between two readings."""

    seconds: float
    size: int
    """Bytes read."""
    reads: int
    utilization: float
    """Share of the time with at least one request: no measure of saturation where a device serves many at once, as NVMe does."""
    wait: float | None
    """Seconds of a mean read, queue included; None without reads."""
    queue: float
    """Mean number of requests."""

    @property
    def throughput(self) -> float:
        """Bytes per second."""
        return self.size / self.seconds


_SECTOR = 512  # of these counters, whatever the device's own
_COLUMNS = 11
_LARGEST = 1 << 64
_WRAP = 1 << 32  # milliseconds are 32-bit numbers that begin again after 50 days
_DEEPEST = 1 << 16  # requests that a device may have at once
_SLACK = 1000  # milliseconds by which they may be ahead of the clock


def parse_stat(text: bytes, at: int = 0) -> BlockCounters | None:
    """Counters out of the text of a `stat` file; None where it is none."""
    fields = text.split()[:_COLUMNS]
    if len(fields) < _COLUMNS or not all(field.isdigit() and len(field) <= 20 for field in fields):  # noqa: PLR2004 - 64 bits
        return None
    values = [int(field) for field in fields]
    if max(values) >= _LARGEST:
        return None
    return BlockCounters(at, values[0], values[2] * _SECTOR, values[3], values[9], values[10])


def parse_size(text: bytes) -> int | None:
    """Bytes read, alone, out of the text of a `stat` file: for who asks ten times a second, the other numbers cost too much."""
    sectors = text.split(None, 3)[2:3]
    return int(sectors[0]) * _SECTOR if sectors and sectors[0].isdigit() else None


def counters(number: str, tree: Tree = HERE) -> BlockCounters | None:
    """Counters of the device or partition *number* (`254:0`); None where there are none."""
    if not disks.NUMBER.fullmatch(number):
        return None
    return parse_stat(tree.bytes(f"sys/dev/block/{number}/stat"), time.perf_counter_ns())


def difference(before: BlockCounters | None, after: BlockCounters | None) -> BlockUse | None:
    """What happened from *before* to *after*; None where they are not two readings, in this order, of one device."""
    if before is None or after is None or after.at <= before.at or after.reads < before.reads or after.size < before.size:
        return None
    elapsed = (after.at - before.at) / 1e6
    busy, reading, queued = ((now - then) % _WRAP for now, then in zip(_times(after), _times(before), strict=True))
    if busy > elapsed + _SLACK or max(reading, queued) > (elapsed + _SLACK) * _DEEPEST:
        return None  # another device has got the number
    reads = after.reads - before.reads
    return BlockUse(
        seconds=elapsed / 1e3,
        size=after.size - before.size,
        reads=reads,
        utilization=min(1.0, busy / elapsed),
        wait=reading / reads / 1e3 if reads else None,
        queue=queued / elapsed,
    )


def _times(counters: BlockCounters) -> tuple[int, int, int]:
    return counters.busy, counters.reading, counters.queued


_kept: dict[str, Kept] = {}
"""The `stat` file of each device, one for all loads: a program without garbage collection would soon have no descriptor left."""


class BlockDevice:
    """Counters of device *number* of this machine, to be read again and again: 3 us each, where `counters` costs 30."""

    def __init__(self, number: str) -> None:
        self.number = number

    def text(self) -> bytes:
        """Its `stat` file now, for `parse_stat`; empty where there is none."""
        kept = _kept.get(self.number)
        if kept is None or kept.stale:
            if not disks.NUMBER.fullmatch(self.number):
                return b""
            if len(_kept) >= _MOST_KEPT:
                _kept.clear()
            kept = _kept[self.number] = Kept(f"/sys/dev/block/{self.number}/stat")
        text = kept.read()
        if not text:
            _kept.pop(self.number, None)  # the device is gone; another one may get its number
        return text

    def read(self) -> BlockCounters | None:
        """The counters now; None where there are none."""
        return parse_stat(self.text(), time.perf_counter_ns())
