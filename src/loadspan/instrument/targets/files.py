"""
Reads of big files through `open`.

The replacement of `open` returns what the original returned, except for a regular file of weight size that is opened to be read in binary
mode: that is a reader of the same type and buffer size over a raw file of our own, which sees only true reads, since the C buffer absorbs
the small ones. A descriptor that the host gave (a number, or from its `opener`) may be used by it elsewhere under that number: such files
are left alone.
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.instrument.bursts import Burst

BIG = 16 << 20
"""Bytes from which a file may hold weights."""

_BufferedReader = io.BufferedReader
_FileIO = io.FileIO
_DIRECT = getattr(os, "O_DIRECT", 0)
_now = time.perf_counter_ns


def big(status: os.stat_result) -> bool:
    """Whether this is a regular file that may hold weights."""
    return status.st_size >= BIG and stat.S_ISREG(status.st_mode)


def method(descriptor: int) -> str:
    """How reads of an open file get their bytes."""
    return "direct" if fcntl.fcntl(descriptor, fcntl.F_GETFL) & _DIRECT else "buffered"


def active() -> bool:
    """Whether file reads are to be recorded; wrappers may outlive their installation."""
    return recorder.active and recorder.settings.file_reads


_ROW = Target(
    module="_io",
    attribute="FileIO.readinto",
    kind=Kind.FINE,
    stage=names.READ,
    facts=lambda args, _: {names.READ_METHOD: method(args[0].fileno())},
    why="describes the reads of the raw files that `open` returns",
)


def _length(buffer: Any) -> int:
    """Bytes asked for, 0 where *buffer* is none: the read will say so."""
    try:
        return memoryview(buffer).nbytes
    except TypeError:
        return 0


def _count(result: Any) -> int:
    """Bytes that a raw read returned or says it has put into a buffer."""
    return len(result) if isinstance(result, bytes) else result or 0


class _File(io.FileIO):
    """A raw file whose reads are recorded. For everything else, its name included, it is the `FileIO` that it stands for."""

    _burst: Burst | None = None
    _path = ""
    _size = 0

    def readinto(self, buffer: Any, /) -> int | None:
        begun = _now()
        burst = self._burst
        if burst is None or not burst.goes_on(begun):
            return self._announced(_FileIO.readinto, _length(buffer), buffer)  # type: ignore[no-any-return]
        found = _FileIO.readinto(self, buffer)
        burst.count(begun, found or 0)
        return found

    def read(self, size: int | None = -1, /) -> Any:
        return self._announced(_FileIO.read, size if isinstance(size, int) and size >= 0 else self._size, size)

    def readall(self) -> Any:
        return self._announced(_FileIO.readall, self._size)

    def _announced(self, native: Callable[..., Any], chunk: int, *args: Any) -> Any:
        """One read, recorded."""
        call = None
        if recorder.active and not self.closed:
            call = safely(recorder.begin_fine, names.READ, _ROW, (self,), None, chunk, self._path)
        begun = _now()
        try:
            result = native(self, *args)
        except BaseException as error:
            if call is not None:
                safely(recorder.end_fine, call, None, error)
            raise
        safely(self._end, call, result, begun)
        return result

    def _end(self, call: Any, result: Any, begun: int) -> None:
        took, size = _now() - begun, _count(result)
        if call is not None:
            recorder.end_fine(call, size, None, result if isinstance(result, bytes) else None)
        self._burst = recorder.follow(call, took, size, self._burst)

    # No `close` here: a warning about a file that was left open is given in it, and would be about this line.

    def __repr__(self) -> str:
        # Some versions print the name of the type as it is in C.
        return super().__repr__().replace("<FileIO", "<_io.FileIO", 1)


for _attribute in ("__name__", "__qualname__", "__doc__"):
    setattr(_File, _attribute, getattr(_FileIO, _attribute))
_File.__module__ = "_io"


def _recorded(result: Any, args: Args, kwargs: Kwargs) -> Any:
    """What `open` returns instead of *result*, which may be itself."""
    descriptor = result.fileno()
    status = os.fstat(descriptor)
    if status.st_size < BIG or not big(status) or not active() or argument(args, kwargs, 7, "opener") is not None:
        return result
    raw = result if type(result) is _FileIO else result.raw
    if type(raw) is not _FileIO or raw.mode != "rb" or type(raw.name) not in (str, bytes):
        return result
    buffered = 0 if raw is result else result.__sizeof__() - _BufferedReader.__basicsize__
    if buffered < 0:
        return result
    duplicate = os.dup(descriptor)
    try:
        ours = _File(duplicate, "rb")
    except BaseException:
        os.close(duplicate)
        raise
    ours.name = raw.name
    ours._path = os.path.abspath(os.fsdecode(raw.name))  # noqa: PTH100, SLF001 - no Path object on the recording side; a class of this file
    ours._size = status.st_size  # noqa: SLF001 - as above
    made = _BufferedReader(ours, buffered) if buffered else ours
    safely(result.close)
    return made


class _Open:
    """
    Stands where `open` stood.

    An object, not a function: as the attribute of a class it must not become a method. It looks and pickles like the original.
    """

    __slots__ = ("__weakref__", "_original")

    def __init__(self, original: Any) -> None:
        self._original = original

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        result = self._original(*args, **kwargs)
        kind = type(result)
        if (kind is _BufferedReader or kind is _FileIO) and recorder.active:
            return safely(_recorded, result, args, kwargs) or result
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    @property  # type: ignore[misc] # the only way to be taken for a function by `inspect`
    def __class__(self) -> Any:
        return type(self._original)

    def __reduce__(self) -> Any:
        return self._original.__reduce__()

    def __repr__(self) -> str:
        return repr(self._original)


def _replace_open(original: Any) -> Any:
    if sys.flags.warn_default_encoding:
        return None  # then `open` warns about the line that calls it, and that would be ours
    kind = type("_Open", (_Open,), {"__slots__": (), "__module__": original.__module__, "__doc__": original.__doc__})
    return kind(original)


ROWS = (
    Target(
        module="builtins",
        attribute="open",
        # Python 3.10 has a copy in pathlib.
        aliases=("io:open", "_io:open", "pathlib:_NormalAccessor.open"),
        kind=Kind.REPLACE,
        replace=_replace_open,
        stage=names.READ,
        why="files that the program reads itself: encrypted weights, pickles, archives",
    ),
)
