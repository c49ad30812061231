"""
How much of a file is in the page cache: cachestat(2) where it tells the truth, else mincore(2) where that does, else nothing.

Both lie without an error. cachestat finds no page of a file on overlay, whose pages belong to the file below; mincore says "all there" to
whoever neither owns the file nor may write to it, and always in some sandboxes. Neither reads anything into the cache, so a file can be
looked at just before it is read; big ones are looked at through windows, so that 140 GB cost no more than 1 GB.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from loadspan.facts import storage as storages
from loadspan.facts import tree
from loadspan.facts.resident import PAGE, Window, cachestat, mincore, mincore_counts

if TYPE_CHECKING:
    from loadspan.facts.storage import StorageFacts

_COUNT = 64
_STEP = 618  # thousandths of a part: the golden ratio spreads any number of them evenly
_CACHESTAT_WIDTH, _CACHESTAT_WHOLE = 1 << 18, 1 << 26
_MINCORE_WIDTH, _MINCORE_WHOLE = 1 << 16, 1 << 22
_LARGEST = 1 << 60  # no file is larger; a mapping of a larger one would fail anyway

# Filesystems whose files have their pages in the page cache, under their own inode. zfs has a cache of its own.
_LOCAL = frozenset(
    (
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "jfs", "reiserfs", "nilfs2", "gfs2", "ocfs2"),
        *("squashfs", "erofs", "cramfs", "iso9660", "udf", "vfat", "msdos", "exfat", "ntfs", "ntfs3"),
    )
)
# As those, but opening a file takes round trips and may drop its pages from the cache: looked at only through the reader's descriptor.
_REMOTE = frozenset(("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "fuse", "fuseblk"))
_STACKED = frozenset(("overlay",))

_SAMPLED_ERROR = 0.1
_READ_AHEAD = 1 << 24  # the kernel reads a little more than it is asked for, and some of it twice

_NOBODY = 65534
_HELD = 64

_LOCK = struct.Struct("hhqqi4x")
_held: list[int] = []
"""Descriptors that must not be closed; see `_close`."""


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """Pages of a file in the page cache at one moment."""

    fraction: float
    """0 to 1, of the pages looked at; to two decimals where the file was sampled, since it is no better than that."""
    method: str
    """"cachestat" or "mincore"."""
    sampled: bool
    """Whether windows were looked at, rather than the whole file."""
    size: int
    """Of the file, bytes."""
    at: int
    """Nanoseconds of `time.perf_counter_ns`."""
    evicted: float | None = None
    """Share of the pages that had been cached and were reclaimed by the kernel; None where it does not say."""
    recently_evicted: float | None = None
    """Share of the pages that were taken so lately that a little more memory would have kept them."""
    windows: tuple[Window, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Eviction:
    """What left the page cache between two looks at one file; shares of the file."""

    share: float
    """Pages that were cached, or came in meanwhile, and were not there any more at the end."""
    reclaimed: float | None
    """Those of them that the kernel reclaimed. The rest was dropped on request. None where it does not say."""


def residency(path: str | os.PathLike[str], storage: StorageFacts | None = None) -> CacheFacts | None:
    """
    What is cached of the file at *path*; None where it cannot be known, or not without disturbing it.

    Files on network and FUSE filesystems are not opened: that alone may empty their cache. For their readers there is `of_descriptor`.
    """
    storage = storage or storages.of_file(os.fspath(path))
    if storage is None or storage.filesystem not in _LOCAL | _STACKED or not storage.counted or storage.kind == "memory":
        return None
    try:
        # Opening anything but a regular file may do something.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - no Path object on the recording side
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return None
    try:
        return of_descriptor(descriptor, storage)
    finally:
        _close(descriptor)


def of_descriptor(descriptor: int, storage: StorageFacts | None = None) -> CacheFacts | None:
    """
    What is cached of the file that is open as *descriptor*; None where it cannot be known.

    On FUSE it is what is there now. The next open may drop it, so that it is no promise of a warm read.
    """
    place = f"/proc/self/fd/{descriptor}"
    storage = storage or storages.of_file(place)
    if storage is None or storage.kind == "memory":
        return None
    try:
        status = os.fstat(descriptor)
    except (OSError, OverflowError):
        return None
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size < _LARGEST:
        return None
    kind = storage.filesystem.partition(".")[0]
    if kind in _LOCAL or kind in _REMOTE:
        with suppress(OSError):
            return _looked(descriptor, status.st_size, by_cachestat=True)
    # Mapping a file of a remote filesystem talks to its server, or empties its cache.
    if (kind in _LOCAL or kind in _STACKED) and _may_ask(status, place) and mincore_counts():
        with suppress(OSError):
            return _looked(descriptor, status.st_size, by_cachestat=False)
    return None


def pull(before: CacheFacts, after: CacheFacts) -> int | None:
    """Bytes of the file that were brought into the cache meanwhile, at least; estimated where it was sampled. None where incomparable."""
    if not _comparable(before, after):
        return None
    pairs = zip(before.windows, after.windows, strict=True)
    return _scaled(after, sum(max(0, new.cached - old.cached, _never(old) - _never(new)) for old, new in pairs))


def evicted(before: CacheFacts, after: CacheFacts, storage_read: int | None = None) -> Eviction | None:
    """
    What left the cache meanwhile, at least. None where the two cannot be compared.

    A file larger than the memory for it looks the same before and after its second reading: its beginning is gone, its end is there.

    Args:
        before: The file before it was read.
        after: The file after it was read.
        storage_read: Bytes of this file that the storage delivered meanwhile. More than were missing are pages that left before they
            were reached. Not to be given where the file was read past the cache (O_DIRECT).
    """
    if not _comparable(before, after):
        return None
    left = reclaimed = pages = 0
    for old, new in zip(before.windows, after.windows, strict=True):
        grown = max(0, (new.evicted or 0) - (old.evicted or 0))
        left += max(0, old.cached - new.cached, grown)
        reclaimed += grown
        pages += new.pages
    told = all(window.evicted is not None for window in (*before.windows, *after.windows))
    share = _share(left, pages, sampled=after.sampled)
    if storage_read is not None:
        again = storage_read / before.size - (1 - before.fraction)
        if again > (_SAMPLED_ERROR if before.sampled else 0) + _READ_AHEAD / before.size:
            share = max(share, round(min(again, 1.0), 2))
    return Eviction(share, _share(reclaimed, pages, sampled=after.sampled) if told else None)


def spans(size: int, whole: int, width: int) -> list[tuple[int, int]]:
    """
    Windows (offset, length) of a file: all of it up to *whole* bytes, else *width* bytes in each of 64 equal parts.

    Each lies elsewhere in its part, the same at each look: at equal distances they would all hit, or all miss, what repeats in a file. None
    is at the beginning, which is cached wherever somebody has looked at the header, and tells nothing of the weights.
    """
    if size <= whole:
        return [(0, size)]
    part = size // _COUNT
    places = (part * number + (part - width) * ((number + 1) * _STEP % 1000) // 1000 for number in range(_COUNT))
    return [(place // PAGE * PAGE, width) for place in places]


def _looked(descriptor: int, size: int, *, by_cachestat: bool) -> CacheFacts:
    if by_cachestat:
        places = spans(size, _CACHESTAT_WHOLE, _CACHESTAT_WIDTH)
        return _facts("cachestat", size, cachestat(descriptor, size, places), sampled=len(places) > 1)
    places = spans(size, _MINCORE_WHOLE, _MINCORE_WIDTH)
    return _facts("mincore", size, mincore(descriptor, size, places), sampled=len(places) > 1)


def _facts(method: str, size: int, windows: list[Window], *, sampled: bool) -> CacheFacts:
    pages = sum(window.pages for window in windows)
    gone = [window.evicted for window in windows if window.evicted is not None]
    lately = [window.recently_evicted for window in windows if window.recently_evicted is not None]
    return CacheFacts(
        fraction=_share(sum(window.cached for window in windows), pages, sampled=sampled),
        method=method,
        sampled=sampled,
        size=size,
        at=time.perf_counter_ns(),
        evicted=_share(sum(gone), pages, sampled=sampled) if gone else None,
        recently_evicted=_share(sum(lately), pages, sampled=sampled) if lately else None,
        windows=tuple(windows),
    )


def _share(part: int, pages: int, *, sampled: bool) -> float:
    share = part / pages if pages else 0.0
    return round(share, 2) if sampled else share


def _comparable(before: CacheFacts, after: CacheFacts) -> bool:
    # Of a file that was replaced by a longer one the windows are elsewhere.
    return (before.method, before.size, len(before.windows)) == (after.method, after.size, len(after.windows)) and after.windows != ()


def _never(window: Window) -> int:
    """Pages that, as far as the kernel remembers, were never cached."""
    return window.pages - window.cached - (window.evicted or 0)


def _scaled(facts: CacheFacts, pages: int) -> int:
    looked = sum(window.pages for window in facts.windows)
    return min(facts.size, round(pages / looked * facts.size)) if looked else 0


def _may_ask(status: os.stat_result, place: str) -> bool:
    """Whether mincore answers this process about the file: to others it says "all there". The error of cachestat does not tell which."""
    owner = os.geteuid()
    # Where this is nobody's number, it is that of every owner unknown in this user namespace too.
    if status.st_uid == owner and owner != _nobody():
        return True
    return os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


@lru_cache(maxsize=1)
def _nobody() -> int:
    return tree.HERE.number("proc/sys/kernel/overflowuid") or _NOBODY


def _close(descriptor: int) -> None:
    # Closing any descriptor of a file gives up the process's record locks on it. Where it has one, ours stays open instead, as long as that
    # is rare.
    if len(_held) < _HELD and _locked_by_us(descriptor):
        _held.append(descriptor)
        return
    with suppress(OSError):
        os.close(descriptor)


def _locked_by_us(descriptor: int) -> bool:
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        kind, _, _, _, pid = _LOCK.unpack(answer)
    except (OSError, AttributeError, struct.error):
        return False
    return bool(kind != fcntl.F_UNLCK and pid == os.getpid())
