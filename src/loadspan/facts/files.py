"""
A file of a load: its size, its real path and what it is stored on, remembered from the moment at which it was about to be read.

Later its server may be gone, and whoever asks for its status then waits for as long as that lasts: a thread of the program at the end of a
load of which the program wants nothing more, or the program's own end. So of what comes over a network or out of another process nothing
is asked a second time.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from loadspan.facts import storage

if TYPE_CHECKING:
    from loadspan.facts.storage import StorageFacts

_REMEMBERED = 4096
_BLOCK = 512  # of st_blocks, whatever the filesystem's own


class Seen(NamedTuple):
    """One file; None where the kernel does not tell."""

    size: int | None
    """Bytes; None of what is no regular file."""
    real: str
    """Its path with links resolved, itself where that is not known."""
    storage: StorageFacts | None
    whole: bool
    """Whether there are as many bytes of it on its storage; not of a sparse or a compressed file."""


_seen: dict[str, Seen] = {}


def meet(path: str) -> Seen:
    """Look at *path*, which its reader is about to open or to read."""
    found = _look(path)
    _seen.pop(path, None)
    if len(_seen) >= _REMEMBERED:
        _seen.pop(next(iter(_seen)), None)  # the oldest alone: of the others nothing may be asked again
    _seen[path] = found
    return found


def seen(path: str) -> Seen:
    """What is known of *path*: as it is, or, where asking might wait for a server, as it was when it was met."""
    known = _seen.get(path)
    if known is not None and known.storage is not None and _may_wait(known.storage):
        return known
    return _look(path)


def size(path: str) -> int | None:
    """Bytes that *path* had when it was met; None where it was not, or is no file. Nothing is asked: a load may have hundreds of files."""
    known = _seen.get(path)
    return known.size if known is not None else None


def _may_wait(facts: StorageFacts) -> bool:
    return not facts.counted and facts.kind != "memory"


def _look(path: str) -> Seen:
    size, real, whole = None, path, False
    try:
        status = os.stat(path)  # noqa: PTH116 - no Path object on the recording side
        size = status.st_size if stat.S_ISREG(status.st_mode) else None
        whole = size is not None and status.st_blocks * _BLOCK >= size
        real = os.path.realpath(path)
    except (OSError, ValueError):
        pass
    return Seen(size, real, storage.of_file(path), whole)
