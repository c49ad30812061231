"""What a file is stored on: filesystem, block device, what lies under it, and of what kind that is. Constant for a mount, and cached."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from loadspan.facts import blocks, disks, mounts, remote
from loadspan.facts.tree import HERE, Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from loadspan.facts.disks import Disk
    from loadspan.facts.mounts import Mount

_Found = TypeVar("_Found")
_UNCOUNTED = (*mounts.NETWORK, "fuse", "drvfs", "9p", "virtiofs", "vboxsf", "prl_fs")
_ACCOUNTED = ("zfs",)  # it counts what its own cache delivers, too
_ENCRYPTING = ("ecryptfs", "fuse.gocryptfs", "fuse.encfs", "fuse.cryfs", "fuse.securefs")
_MOST_READ_AHEAD = 1 << 40
_REMEMBERED = 4096
_LAYERS = 512


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """What a file is stored on. None and empty: not known, or there is none."""

    filesystem: str
    mountpoint: str
    root: str = "/"
    """What of the filesystem is mounted: not / for bind mounts, subvolumes and subPaths."""
    source: str | None = None
    device: str | None = None
    """Block device of the mount (`/dev/dm-0`); of a network filesystem its source."""
    number: str | None = None
    """Major and minor number of that block device."""
    stack: tuple[str, ...] = ()
    """Display names from the disks or partitions up to the device of the mount: nvme0n1p2, dm-crypt, dm-lvm."""
    disks: tuple[Disk, ...] = ()
    encrypted: bool = False
    """Whether something below the file was seen to decrypt: LUKS or other dm-crypt, fscrypt, a filesystem that does nothing else."""
    kind: str | None = None
    """nvme, ssd, hdd, virtual, network, fuse, memory, overlay; None where it cannot be known."""
    read_ahead: int | None = None
    """Bytes."""
    server: str | None = None
    subtype: str | None = None
    """What is behind FUSE (`sshfs`); `drvfs` for a drive of Windows under WSL."""
    options: tuple[tuple[str, str], ...] = ()
    """Options of the filesystem that explain speed, such as rsize of NFS or subvol of btrfs."""

    @property
    def counted(self) -> bool:
        """Whether the kernel counts what is read from it in `read_bytes`: block filesystems only."""
        return self.filesystem not in mounts.MEMORY and self.filesystem not in _ACCOUNTED and not self.filesystem.startswith(_UNCOUNTED)


def of_mount(mount: Mount, tree: Tree = HERE) -> StorageFacts:
    """What *mount* is stored on."""
    folders = blocks.folders_of(mount, tree)
    chain = blocks.chain(folders, tree)
    source = remote.source(mount)
    kind = mounts.kind_of(mount.filesystem)
    device = f"/dev/{disks.display(folders[0])}" if len(folders) == 1 else None
    if device is None and source is not None and (kind == "network" or (source.startswith("/dev/") and kind is None)):
        device = source
    return StorageFacts(
        filesystem=mount.filesystem,
        mountpoint=mount.point,
        root=mount.root,
        source=source,
        device=device,
        number=disks.number(tree, folders[0]) or mount.number if len(folders) == 1 else None,
        stack=chain.stack,
        disks=chain.disks,
        encrypted=chain.encrypted or mount.filesystem in _ENCRYPTING,
        kind=kind or chain.kind,
        read_ahead=_read_ahead(mount, folders, tree),
        server=remote.server(mount),
        subtype=remote.subtype(mount),
        options=remote.options(mount),
    )


def _read_ahead(mount: Mount, folders: list[str], tree: Tree) -> int | None:
    """Bytes that are read ahead on the mount."""
    if mount.filesystem == "btrfs":
        # It has its own, larger than its devices'.
        volume = blocks.btrfs_folder(folders[0], tree) if folders else None
        value = tree.number(f"{volume}/bdi/read_ahead_kb") if volume else None
    else:
        places = [f"sys/class/bdi/{mount.number}"]
        for folder in folders[:1]:
            partition = tree.exists(f"{folder}/partition")
            places.insert(0, f"{folder.rpartition('/')[0] if partition else folder}/queue")
        value = next((found for place in places if (found := tree.number(f"{place}/read_ahead_kb")) is not None), None)
    return value << 10 if value is not None and 0 <= value < _MOST_READ_AHEAD >> 10 else None


class _Cache:
    """What was found on this machine. It holds as long as no mount comes or goes."""

    def __init__(self) -> None:
        self._watch = mounts.Watch()
        self._found: dict[Hashable, Any] = {}

    def get(self, key: Hashable, find: Callable[[], _Found]) -> _Found:
        """What was found for *key*, or is now."""
        if self._watch.changed():
            self._found = {}
        known = self._found  # that of now: what is found while mounts change is forgotten with it
        try:
            return known[key]  # type: ignore[no-any-return] # each kind of key has one kind of value
        except KeyError:
            found = find()
        if len(known) >= _REMEMBERED:
            known.clear()
        known[key] = found
        return found


def _anew(_key: Hashable, find: Callable[[], _Found]) -> _Found:
    """For a tree that records what is read: nothing of it may be taken from memory."""
    return find()


_cache = _Cache()


def _forget() -> None:
    global _cache  # noqa: PLW0603 - one for the process; its lock may be held by a thread that a child does not have
    _cache = _Cache()


os.register_at_fork(after_in_child=_forget)


def of_file(path: str, tree: Tree = HERE) -> StorageFacts | None:
    """
    What *path* is stored on, None where it cannot be known. Of this machine it is looked up once for each mount.

    On this machine *path* has to exist; of a recorded one it is absolute and taken as it is written, with no link resolved.
    """
    if not tree.here:
        mount = mounts.of_path(path, tree)
        return of_mount(mount, tree) if mount is not None else None
    if not path:
        return None
    remembered = _cache.get if tree is HERE else _anew
    status = mounts.status(path)
    key, place = (status.mount, path) if status is not None else _place(path)
    if place is None:
        return None

    def find() -> tuple[Mount, StorageFacts] | None:
        text = tree.bytes(mounts.MOUNTINFO)
        mount = mounts.by_id(text, status.mount) if status is not None else mounts.find(text, place)
        return (mount, of_mount(mount, tree)) if mount is not None else None

    found = remembered(key, find)
    if found is None:
        return None
    mount, facts = found
    if facts.filesystem == "overlay":
        layers = remembered((key, "layers"), lambda: _layers(mount))
        seen = _seen(path) if layers else None
        if seen is not None:
            facts = remembered((key, seen), lambda: _through(mount, layers, facts, path, tree))
    if status is not None and status.encrypted and not facts.encrypted:
        facts = remembered((key, facts), lambda: replace(facts, encrypted=True))
    return facts


def _place(path: str) -> tuple[Hashable, str | None]:
    """Where *path* really is, and what to remember its mount by, where the kernel gives mounts no number."""
    try:
        real = os.path.realpath(path, strict=True)
        # A single file can be a mount of its own (bind mounts in containers), so the file and not its folder is looked up then.
        place = real if os.path.ismount(real) else os.path.dirname(real)  # noqa: PTH120 - no Path object on the recording side
        return (place, os.stat(real).st_dev), place  # noqa: PTH116 - as above
    except (OSError, ValueError):
        return None, None


def _seen(path: str, *, follow: bool = True) -> tuple[int, int, int] | None:
    """What tells a regular file from others: inode, size, time of change; None for anything else."""
    try:
        status = os.stat(path, follow_symlinks=follow)  # noqa: PTH116 - as above
    except (OSError, ValueError):
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _layers(mount: Mount) -> list[str]:
    """Folders of an overlay that can be reached from here: in a container, none."""
    if mount.option("metacopy") == "on":
        return []  # a file may have its name in one layer and its content in another
    return [layer for layer in mount.layers[:_LAYERS] if layer.startswith("/") and os.path.isdir(layer)]  # noqa: PTH112 - as above


def _through(mount: Mount, layers: list[str], facts: StorageFacts, path: str, tree: Tree) -> StorageFacts:
    """Facts of a file of an overlay, with the devices of the layer that it is in, where that layer can be reached from here."""
    real = os.path.realpath(path)
    seen = _seen(real)
    if seen is None or not real.startswith(mount.point):
        return facts
    inside = mount.root.rstrip("/") + "/" + real[len(mount.point) :].lstrip("/")
    for layer in layers:
        file = layer + inside
        if not os.path.lexists(file):
            continue
        # In a container the layers are paths of the host: a file of that name here is another one.
        found = _seen(file, follow=False)
        below = mounts.of_path(file, tree) if found is not None and found[1:] == seen[1:] else None
        if below is None:
            break
        lower = of_mount(below, tree)
        return replace(
            facts,
            device=lower.device,
            number=lower.number,
            stack=lower.stack or (lower.filesystem,),
            disks=lower.disks,
            encrypted=lower.encrypted,
            read_ahead=lower.read_ahead,
            server=lower.server,
        )
    return facts
