"""
A kernel file that stays open: open, read and close cost 25 us where a pread costs 3.

A kept descriptor belongs to one process: after a fork it would still tell of the parent.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress

from loadspan.facts import tree

_PIECE = 1 << 12


class Kept:
    """File *path*, opened once. `alive` says whether it is open and of this process."""

    def __init__(self, path: str) -> None:
        self.pid = os.getpid()
        self.descriptor = -1
        with suppress(OSError, ValueError):
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            weakref.finalize(self, _close, self.descriptor, _identity(self.descriptor)).atexit = False

    @property
    def alive(self) -> bool:
        """Whether it can be read, by this process."""
        return self.descriptor >= 0 and self.pid == os.getpid()

    def read(self) -> bytes:
        """Its first 4 KiB now, empty where it cannot be read."""
        if not self.alive:
            return b""
        try:
            text = os.pread(self.descriptor, _PIECE, 0)
        except OSError:
            return b""
        tree.count_own(len(text))
        return text


def _close(descriptor: int, identity: tuple[int, int]) -> None:
    # A program that closes every descriptor, to become a daemon, may have given this number to another file since.
    with suppress(OSError):
        if _identity(descriptor) == identity:
            os.close(descriptor)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
