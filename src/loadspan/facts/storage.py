"""Which mounted filesystem a path is on, from `/proc/self/mountinfo`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache

from loadspan.facts.tree import content

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_SEPARATOR = b" - "
_UNCOUNTED = ("fuse", "nfs", "cifs", "smb3", "9p", "ceph", "lustre", "beegfs", "gpfs", "virtiofs")
_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """Filesystem of a file."""

    filesystem: str
    mountpoint: str

    @property
    def counted(self) -> bool:
        """Whether the kernel counts what is read from it in `read_bytes`: block filesystems only."""
        return self.filesystem not in _MEMORY and not self.filesystem.startswith(_UNCOUNTED)


def parse_mountinfo(text: bytes) -> list[StorageFacts]:
    """Mounts in the order of the file. Lines that are not mounts are skipped."""
    mounts = []
    for line in text.split(b"\n"):
        # Split on single spaces: an empty source is a field of its own.
        head, separator, tail = line.partition(_SEPARATOR)
        fields, kind = head.split(b" "), tail.split(b" ")[0]
        if separator and len(fields) > 4 and kind:  # noqa: PLR2004 - the mount point is the fifth field
            point = _ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), fields[4])
            mounts.append(StorageFacts(kind.decode("utf-8", "replace"), os.fsdecode(point)))
    return mounts


def find(mounts: list[StorageFacts], path: str) -> StorageFacts | None:
    """The mount that holds absolute, resolved *path*: the longest whole-component prefix, the later of two equal ones."""
    best = None
    for mount in mounts:
        point = mount.mountpoint.rstrip("/")
        if (path == point or path.startswith(point + "/")) and (best is None or len(point) >= len(best.mountpoint.rstrip("/"))):
            best = mount
    return best


@lru_cache(maxsize=256)
def _of_folder(folder: str, device: int) -> StorageFacts | None:  # noqa: ARG001 - a new device at the same place is another mount
    return find(parse_mountinfo(content("/proc/self/mountinfo")), folder)


def of_file(path: str) -> StorageFacts | None:
    """Filesystem of *path*, None where it cannot be known. Parsed once per folder and device."""
    try:
        resolved = os.path.realpath(path)
        # A single file can be a mount of its own (bind mounts in containers), so the file and not its folder is looked up then.
        device = os.stat(resolved).st_dev  # noqa: PTH116 - os.stat saves building a Path on the recording side
        folder = resolved if os.path.ismount(resolved) else os.path.dirname(resolved)  # noqa: PTH120 - as above
    except (OSError, ValueError):
        return None
    return _of_folder(folder, device)
