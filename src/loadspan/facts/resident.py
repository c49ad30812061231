"""
The two system calls that count pages of a file in the page cache, each over many windows of one file.

Neither touches the file's pages. Where a call does not exist or is refused, OSError says so; there is no other failure.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast

from loadspan import imports

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PAGE = mmap.PAGESIZE
CACHESTAT = 451  # on each of these machines
_MACHINES = ("x86_64", "aarch64", "ppc64le", "s390x", "riscv64", "loongarch64")
_NO_ACCESS = 0  # a program that locks all its memory would have a readable mapping read in at once
_NO_MAPPING = (1 << 64) - 1
_FRESH = 16  # pages of the file that nobody has touched
_RESIDENT = bytes(byte & 1 for byte in range(256))  # the other bits of mincore's bytes mean nothing

# The result and the arguments of each function, as the names that ctypes has for them: a Python may be built without it.
_TYPES = {
    "syscall": ("c_long", "c_long", "c_long", "c_void_p", "c_void_p", "c_long"),
    "mmap": ("c_void_p", "c_void_p", "c_size_t", "c_int", "c_int", "c_int", "c_long"),
    "munmap": ("c_int", "c_void_p", "c_size_t"),
    "mincore": ("c_int", "c_void_p", "c_size_t", "c_void_p"),
}


class Window(NamedTuple):
    """Pages of one stretch of a file."""

    pages: int
    cached: int
    evicted: int | None
    """Pages that were cached once and that the kernel reclaimed; None where it does not say."""
    recently_evicted: int | None
    """Those of them that would still be there if there were a little more memory."""


@lru_cache(maxsize=8)
def _function(name: str, *, held: bool = True) -> Callable[..., int | None]:
    # Of a library object of our own: argument types of a shared one would hold for everybody who calls the function. The interpreter's
    # lock is given back (not *held*) only around calls that may wait: each time, another busy thread may keep it for 5 ms.
    with suppress(ImportError, OSError, AttributeError, TypeError):
        imports.need("ctypes")
        import ctypes  # noqa: PLC0415 - as above

        function = getattr((ctypes.PyDLL if held else ctypes.CDLL)(None, use_errno=True), name)
        function.restype, *function.argtypes = (getattr(ctypes, type_) for type_ in _TYPES[name])
        if sys.platform.startswith("linux") and sys.maxsize > 1 << 32:
            return cast("Callable[..., int | None]", function)
    raise OSError(errno.ENOSYS, name)


def cachestat(descriptor: int, size: int, spans: Sequence[tuple[int, int]]) -> list[Window]:
    """Count the windows *spans* (offset, length) of a file of *size* bytes with a call of Linux 6.5."""
    call = _function("syscall")
    if os.uname().machine not in _MACHINES:
        raise OSError(errno.ENOSYS, "cachestat")
    import ctypes  # noqa: PLC0415 - it is there, as the function is

    span, counts = (ctypes.c_uint64 * 2)(), (ctypes.c_uint64 * 5)()
    at, into = ctypes.addressof(span), ctypes.addressof(counts)
    found = []
    for offset, length in spans:
        span[0], span[1] = offset, length
        if call(CACHESTAT, descriptor, at, into, 0):
            raise OSError(ctypes.get_errno(), "cachestat")
        pages = _pages(size, offset, length)
        cached, _, _, evicted, recently = counts
        # A file that grows meanwhile has more pages than it had.
        found.append(Window(pages, min(cached, pages), min(evicted, pages), min(recently, pages)))
    return found


def mincore(descriptor: int, size: int, spans: Sequence[tuple[int, int]]) -> list[Window]:
    """Count them with a call of every Linux, on a mapping that is never touched."""
    mapped, unmapped, call = _function("mmap", held=False), _function("munmap", held=False), _function("mincore")
    import ctypes  # noqa: PLC0415 - as above

    address = mapped(None, size, _NO_ACCESS, mmap.MAP_SHARED, descriptor, 0)
    if address is None or address == _NO_MAPPING:
        raise OSError(ctypes.get_errno(), "mmap")
    found = []
    try:
        for offset, length in spans:
            pages = _pages(size, offset, length)
            vector = (ctypes.c_ubyte * pages)()
            if call(address + offset, min(length, size - offset), ctypes.addressof(vector)):
                raise OSError(ctypes.get_errno(), "mincore")
            found.append(Window(pages, bytes(vector).translate(_RESIDENT).count(1), None, None))
    finally:
        unmapped(address, size)
    return found


def _pages(size: int, offset: int, length: int) -> int:
    return -(-(min(offset + length, size) - offset) // PAGE)


@lru_cache(maxsize=1)
def mincore_counts() -> bool:
    """Whether mincore tells the truth here: a stub of a sandbox finds pages in a new file that nobody has touched. Asked once."""
    try:
        descriptor = os.memfd_create("loadspan", os.MFD_CLOEXEC)
    except (OSError, AttributeError):
        return False
    size = _FRESH * PAGE
    try:
        os.ftruncate(descriptor, size)
        return not mincore(descriptor, size, [(0, size)])[0].cached
    except OSError:
        return False
    finally:
        os.close(descriptor)
