"""The files that storage is measured with: those below a path, opened for reading in two ways, or one written for the purpose."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadspan.checkup import weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadspan.probes import Progress

SCRATCH = "write scratch file"
_FILES = 8
_DIRECT = getattr(os, "O_DIRECT", None)
_UNTOUCHED = getattr(os, "O_NOATIME", 0)  # reading changes nothing, not even the time of the last access
_PIECE = 8 << 20


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is read; `direct` is a descriptor past the page cache, or the reason why there is none."""

    size: int
    buffered: int
    direct: int | str


def choose(path: str) -> list[str]:
    """The largest regular files at or below *path* that can be read and are on one filesystem, the largest first."""
    found = weights.find(path)
    files = sorted((file for file in found.files if file.readable and file.size), key=lambda file: -file.size) if found else []
    return [file.path for file in files[:_FILES] if file.device == files[0].device]


@contextmanager
def opened(paths: list[str]) -> Iterator[list[OpenFile]]:
    """*paths*, open; one that cannot be opened any more is left out."""
    with ExitStack() as stack:
        files = []
        for path in paths:
            with suppress(OSError):
                files.append(_open(path, stack))
        yield files


def _open(path: str, stack: ExitStack) -> OpenFile:
    descriptor = _descriptor(path, 0)
    stack.callback(os.close, descriptor)
    return OpenFile(os.fstat(descriptor).st_size, descriptor, _open_direct(path, stack))


def _open_direct(path: str, stack: ExitStack) -> int | str:
    if _DIRECT is None:
        return "this system has no O_DIRECT"
    try:
        descriptor = _descriptor(path, _DIRECT)
    except OSError as error:
        return f"O_DIRECT is refused: {error.strerror}"
    stack.callback(os.close, descriptor)
    return descriptor


def _descriptor(path: str, flags: int) -> int:
    flags |= os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags | _UNTOUCHED)
    except PermissionError:  # of others' files the kernel keeps that time itself
        return os.open(path, flags)


@contextmanager
def scratch(folder: str, size: int, progress: Progress) -> Iterator[list[OpenFile]]:
    """
    A new file of *size* random bytes in *folder*, on storage and not in the page cache, that nobody else sees.

    Its name is removed as soon as it is open, so that nothing is left however this process ends.

    Raises:
        OSError: it cannot be written.
    """
    with ExitStack() as stack:
        descriptor, name = tempfile.mkstemp(prefix=".loadspan-", suffix=".scratch", dir=folder)
        try:
            stack.callback(os.close, descriptor)
            direct = _open_direct(name, stack)
        finally:
            os.unlink(name)  # noqa: PTH108 - a path already
        done = 0
        while done < size:
            done += os.write(descriptor, os.urandom(min(_PIECE, size - done)))
            progress(SCRATCH, done, size)
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        yield [OpenFile(size, descriptor, direct)]
