"""
Which mount a path is on, from `/proc/self/mountinfo`: one line of it, since a machine may have thousands.

On this machine statx(2) names the mount of a file by its number (Linux 5.8), and poll(2) on mountinfo tells when any mount has come or
gone. Without them, and of a recorded machine, the longest mount point that is a whole-component prefix of the path is the one.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from struct import pack, unpack_from
from typing import TYPE_CHECKING, Any, NamedTuple

from loadspan.facts.kept import Kept
from loadspan.facts.tree import HERE, Tree

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import ctypes
except ImportError:  # a Python may be built without
    ctypes = None  # type: ignore[assignment] # then no function is found

MEMORY = frozenset(("tmpfs", "ramfs", "rootfs", "devtmpfs", "hugetlbfs"))
NETWORK = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "afs", "orangefs", "wekafs", "panfs", "dvs", "coda")
)
MOUNTINFO = "proc/self/mountinfo"

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")
_NUMBER = re.compile(rb"\d{1,4}:\d{1,7}")
_FIELDS = 6  # before the optional ones
_POINT = 4  # the field that is the mount point
_LONGEST = 1 << 15  # of one line: its paths are at most a page each
_URGENT, _CLOSED = 2, 32  # POLLPRI: the file can be read at any time; POLLNVAL
_LAYERS = re.compile(r"(?<!\\)::?")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. Undecodable bytes of its paths are surrogates, as everywhere in Python."""

    number: str
    """Major and minor number of the filesystem: those of its block device, or 0 and any."""
    root: str
    """What of the filesystem is mounted: not / for bind mounts, subvolumes, subPaths."""
    point: str
    filesystem: str
    source: str
    options: tuple[tuple[str, str], ...]
    """Those of the filesystem, not those of the mount; a flag has an empty value."""

    def option(self, name: str) -> str | None:
        """Value of option *name*, the last where it is given twice; None without."""
        return next((value for key, value in reversed(self.options) if key == name), None)

    @property
    def layers(self) -> list[str]:
        """Folders of an overlay, from the uppermost down, as whoever mounted it knew them."""
        upper = self.option("upperdir")
        lower = [value for key, value in self.options if key in ("lowerdir", "lowerdir+", "datadir+")]
        found = ([upper] if upper else []) + [layer for value in lower for layer in _LAYERS.split(value)]
        return [layer.replace("\\:", ":") for layer in found if layer]


def kind_of(filesystem: str) -> str | None:
    """Kind of storage that a filesystem type alone tells: memory, network, fuse, overlay; None where the device decides."""
    if filesystem in MEMORY:
        return "memory"
    if filesystem in NETWORK:
        return "network"
    if filesystem in ("fuse", "fuseblk") or filesystem.startswith(("fuse.", "fuseblk.")):
        return "fuse"
    return "overlay" if filesystem == "overlay" else None


def _decode(field: bytes) -> str:
    if b"\\" in field:
        field = _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)
    return os.fsdecode(field)


def parse(line: bytes) -> Mount | None:
    """The mount that *line* tells of; None where it is none."""
    # Split on single spaces: an empty source is a field of its own.
    head, separator, tail = line[:_LONGEST].partition(b" - ")
    fields, last = head.split(b" "), tail.split(b" ")
    if not separator or len(fields) < _FIELDS or not last[0] or not _NUMBER.fullmatch(fields[2]):
        return None
    # Split before decoding: a comma inside a value is escaped.
    options = [_decode(option).partition("=") for option in b" ".join(last[2:]).split(b",") if option]
    return Mount(
        number=fields[2].decode(),
        root=_decode(fields[3]),
        point=_decode(fields[_POINT]),
        filesystem=last[0].decode("utf-8", "replace"),
        source=_decode(last[1]) if len(last) > 1 else "",
        options=tuple((key, value) for key, _, value in options),
    )


def by_id(text: bytes, number: int) -> Mount | None:
    """The mount with id *number*."""
    # Not by a regular expression, which takes 100 times as long to find the beginning of a line.
    start = b"%d " % number
    at = 0 if text.startswith(start) else text.find(b"\n" + start) + 1
    return parse(text[at : at + _LONGEST].partition(b"\n")[0]) if at or text.startswith(start) else None


def find(text: bytes, path: str) -> Mount | None:
    """The mount that holds absolute, resolved *path*: the longest whole-component prefix, the later of two equal ones."""
    try:
        wanted = os.fsencode(path)
    except ValueError:
        return None
    best: bytes | None = None
    longest = -1
    for line in text.split(b"\n"):
        fields = line.split(b" ", _FIELDS)
        if len(fields) < _FIELDS or b" - " not in line:
            continue
        point = fields[_POINT]
        if b"\\" in point:
            point = os.fsencode(_decode(point))
        point = point.rstrip(b"/")
        if len(point) >= longest and wanted.startswith(point) and wanted[len(point) : len(point) + 1] in (b"", b"/") and parse(line):
            best, longest = line, len(point)
    return parse(best) if best is not None else None


class Status(NamedTuple):
    """What statx(2) tells of a file that stat(2) does not."""

    mount: int
    encrypted: bool
    """Whether the filesystem itself encrypts the file (fscrypt)."""


def _function(name: str) -> Any:
    """Function *name* of the C library; None where it has none."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (AttributeError, OSError, TypeError):
        return None


_statx, _poll = _function("statx"), _function("poll")


def status(path: str) -> Status | None:
    """Mount of *path* and whether it is encrypted; None where the kernel does not tell."""
    if _statx is None:
        return None
    out = ctypes.create_string_buffer(256)
    with suppress(ValueError):  # from the folder of the process, without asking a server anew; the mount's id
        if _statx(ctypes.c_int(-100), os.fsencode(path), ctypes.c_int(0x4000), ctypes.c_uint(0x1000), out) == 0:
            mask, attributes = unpack_from("=I4xQ", out, 0)
            if mask & 0x1000:
                return Status(unpack_from("=Q", out, 0x90)[0], bool(attributes & 0x800))
    return None


def of_path(path: str, tree: Tree = HERE) -> Mount | None:
    """The mount of *path*. Of a recorded machine the path is taken as it is written: its links are not there to be followed."""
    text = tree.bytes(MOUNTINFO)
    if not tree.here:
        return find(text, os.path.normpath(path)) if path.startswith("/") else None
    known = status(path)
    if known is not None:
        return by_id(text, known.mount)
    try:
        return find(text, os.path.realpath(path, strict=True))
    except (OSError, ValueError):
        return None


class Watch:
    """Tells when the mounts of this process have changed, for 1 us: ids and device numbers are given again after an unmount."""

    def __init__(self) -> None:
        self._kept: Kept | None = None
        self._lock = threading.RLock()  # a signal handler may come here while its own thread is in here

    def changed(self) -> bool:
        """Whether mounts have changed since this was last asked; True where that cannot be known, and the first time."""
        with self._lock:
            if _poll is None:
                return True
            if self._kept is None or not self._kept.intact():
                # Not the parent's after a fork: whoever asks first would take the news from the other.
                self._kept = Kept("/" + MOUNTINFO)
                return True
            news = _news(_poll, self._kept.descriptor)
            if news & _CLOSED:
                self._kept = None  # by a program that closes every descriptor
            return bool(news)


def _news(poll: Callable[..., int], descriptor: int) -> int:
    # Not by `select`, which programs with green threads replace.
    asked = ctypes.create_string_buffer(pack("=ihh", descriptor, _URGENT, 0), 8)
    return unpack_from("=h", asked, 6)[0] if poll(asked, ctypes.c_ulong(1), ctypes.c_int(0)) > 0 else 0
