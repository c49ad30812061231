"""
Kernel files below a root: this machine's `/sys` and `/proc`, or those of a recorded machine.

Paths are relative to the root: `sys/devices/...`, `proc/self/mountinfo`. Whatever cannot be read is None or empty, never an error:
containers lack folders, sandboxes lack files, and a recorded tree has only what was captured.
"""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE = 1 << 12
_LARGEST = 16 << 20  # a mountinfo of 50 000 lines; anything longer is no kernel file
_LINKS = 40  # followed on the way to one file, as the kernel's own limit


_own = [0]
"""Bytes that all threads have read for our own purposes: they are no part of what the host read."""
_lock = threading.RLock()  # a signal handler may come here while its own thread is in here


def _renew() -> None:
    global _lock  # noqa: PLW0603 - one for the process; a thread that a child does not have may hold it
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)


def count_own(size: int) -> None:
    """Keep *size* bytes that were read for our own purposes out of what the host is said to have read."""
    with _lock:
        _own[0] += size


def own_of_process() -> int:
    """Bytes that all threads have read for our own purposes."""
    return _own[0]


def content(path: str) -> bytes:
    """The bytes of file *path*, empty where it cannot be read or is no regular file. They are kept out of what the host read."""
    try:
        # Not blocking: a recorded tree may hold a named pipe that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return b""
    pieces: list[bytes] = []
    size = 0
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        # Up to the empty read: files of lines, as mountinfo, answer with the whole lines that fit.
        while size < _LARGEST and (piece := os.read(descriptor, _PIECE if not size else _PIECE << 4)):
            pieces.append(piece)
            size += len(piece)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
        count_own(size)
    return b"".join(pieces)


class Tree:
    """The kernel files below one root."""

    def __init__(self, root: str = "/") -> None:
        self.root = root.rstrip("/") + "/"
        self.here = self.root == "/"
        """Whether this is the running machine, which alone can answer system calls."""

    def bytes(self, path: str) -> bytes:
        """The bytes of *path*; empty where it cannot be read."""
        found = self.real(path)
        return content(self.root + found) if found is not None else b""

    def text(self, path: str) -> str | None:
        """The text of *path* without white space around it, undecodable bytes as surrogates; None where it is empty or unreadable."""
        return os.fsdecode(self.bytes(path)).strip() or None

    def number(self, path: str) -> int | None:
        """The decimal number in *path*; None where there is none. A sysfs file may hold a negative one, as `numa_node` does."""
        return whole(self.text(path))

    def names(self, path: str) -> list[str]:
        """Entries of folder *path*, sorted; none where it cannot be listed."""
        found = self.real(path)
        try:
            return sorted(os.listdir(self.root + found)) if found is not None else []  # noqa: PTH208 - no Path object on the recording side
        except (OSError, ValueError):
            return []

    def exists(self, path: str) -> bool:
        """Whether there is something at *path*."""
        return self.real(path) is not None

    def real(self, path: str) -> str | None:
        """*path* with all links resolved, relative to the root as well; None where it does not exist."""
        if self.here:
            try:
                return os.path.realpath("/" + path, strict=True)[1:]
            except (OSError, ValueError):
                return None
        return self._resolved(path)

    def _resolved(self, path: str) -> str | None:
        """As `real`, of a recorded tree: a link of it never leads out of it, whatever it says."""

        def target(place: str) -> str | None:
            kind = os.lstat(self.root + place).st_mode
            return os.readlink(self.root + place) if stat.S_ISLNK(kind) else None  # noqa: PTH115 - as above

        try:
            return resolved(path, target)
        except (OSError, ValueError):
            return None


def resolved(path: str, target: Callable[[str], str | None]) -> str | None:
    """
    *path* with all links resolved, nowhere above its own root; None where it has more links than the kernel would follow.

    *target* tells of a place, a path without links before its last part, where it leads: None where it is no link.
    """
    todo, done, links = path.split("/")[::-1], list[str](), 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del done[-1:]
            continue
        leads = target("/".join((*done, part)))
        if leads is None:
            done.append(part)
            continue
        links += 1
        if links > _LINKS:
            return None
        if leads.startswith("/"):
            done.clear()
        todo.extend(leads.split("/")[::-1])
    return "/".join(done)


def whole(text: str | None) -> int | None:
    """The decimal number that *text* is; None where it is none, or too long to be one of the kernel's."""
    if text is None or len(text) > 20 or not text.isascii():  # noqa: PLR2004 - digits of the largest 64-bit number
        return None
    with suppress(ValueError):
        return int(text) if "_" not in text else None
    return None


HERE = Tree()
"""This machine."""
