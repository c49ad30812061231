"""Files on a disk whose pages are in the page cache, or not: made so, and looked at by a system call of the tests' own."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from loadspan.facts import storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
SIZE = 48 * MIB
"""Of a file: above what is recorded at all, and small enough to be looked at page by page."""

_CACHESTAT = 451
_ATTEMPTS = 6  # machines take back pages of their own accord, or are slow to give them up


def cached(path: Path) -> float:
    """Share of the file's pages that are in the page cache."""
    span, counts = struct.pack("QQ", 0, 0), ctypes.create_string_buffer(40)
    with path.open("rb") as file:
        call = ctypes.CDLL(None, use_errno=True).syscall
        if call(*map(ctypes.c_long, (_CACHESTAT, file.fileno())), ctypes.c_char_p(span), counts, ctypes.c_long(0)):
            pytest.skip(f"no cachestat here: {os.strerror(ctypes.get_errno())}")
    pages = -(-path.stat().st_size // mmap.PAGESIZE)
    return float(struct.unpack_from("Q", counts)[0]) / pages


def chill(path: Path) -> None:
    """Take every page of the file out of the page cache."""
    for _ in range(_ATTEMPTS):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not cached(path):
            return
        time.sleep(0.1)
    pytest.skip("the pages of a file stay in the page cache")


def heat(path: Path) -> None:
    """Bring every page of the file into the page cache."""
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while os.read(descriptor, MIB):
                pass
        finally:
            os.close(descriptor)
        if cached(path) == 1.0:
            return
    pytest.skip("the pages of a file do not stay in the page cache")


def undisturbed(
    path: Path, prepare: Callable[[Path], None], load: Callable[[], dict[str, Any]], left: float, most: float = SIZE * 1.01
) -> dict[str, Any]:
    """
    The *load* of a file that was prepared, and that has at least *left* of its pages cached afterwards, from *most* bytes of the disk.

    It is repeated where that is not so: then the machine took back pages, of the file or of the program, while it ran.
    """
    found: dict[str, Any] = {}
    for _ in range(_ATTEMPTS):
        prepare(path)
        found = load()
        if cached(path) >= left and found["attributes"].get("loadspan.io.storage_read", 0) <= most:
            break
    return found


def on_disk(folder: Path) -> None:
    """Skip the test where *folder* is not on a filesystem that has its pages in the page cache and its bytes on a block device."""
    facts = storage.of_file(str(folder))
    if facts is None or facts.number is None or facts.filesystem not in ("ext4", "xfs", "btrfs"):
        pytest.skip("the folder for temporary files is not on a disk")


def make(path: Path, size: int = SIZE) -> Path:
    """A file of random bytes, on its way to the disk."""
    piece = os.urandom(MIB)
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return path
