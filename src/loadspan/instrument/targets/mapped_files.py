"""
Big files that are mapped, or read by C code past `open`: numpy and `mmap`.

The bytes of a mapping arrive at first touch, in whatever stage that is: its size is the mapping's, it has no throughput, it is deferred.
"""

from __future__ import annotations

import fcntl
import functools
import os
import threading
from abc import ABCMeta
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import files

if TYPE_CHECKING:
    from collections.abc import Callable

_READ, _COPY = 1, 3  # mmap.ACCESS_READ and ACCESS_COPY
_WRITES = ("w+", "write")

_MAPPING = Target(
    module="mmap",
    attribute="mmap",
    kind=Kind.FINE,
    stage=names.READ,
    facts=lambda _, __: {names.READ_METHOD: "mmap"},
    deferred=lambda _, __: True,
    why="describes mappings",
)


class _Inside(threading.local):
    memmap = False
    """Whether this thread is in `numpy.memmap`, which maps through `mmap` what we have counted, or creates a file."""


_inside = _Inside()


def _path(file: Any) -> str | None:
    """Path of a file given by path or as a file object."""
    name = file if isinstance(file, os.PathLike) else getattr(file, "name", file)
    return os.path.abspath(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else None  # noqa: PTH100 - plain text


def _big(file: Any) -> bool:
    """Whether *file*, given by path or as a file object, is one that may hold weights. The host's call tells what is wrong with it."""
    try:
        fileno = getattr(file, "fileno", None)
        return files.big(os.fstat(fileno()) if fileno is not None else os.stat(file))  # noqa: PTH116 - plain text
    except (OSError, ValueError, TypeError):
        return False


# numpy.fromfile


def _wanted(args: Args, kwargs: Kwargs) -> bool:
    return files.active() and _big(argument(args, kwargs, 0, "file"))


def _method(args: Args, kwargs: Kwargs) -> dict[str, Any]:
    fileno = getattr(argument(args, kwargs, 0, "file"), "fileno", None)
    return {names.READ_METHOD: files.method(fileno()) if fileno is not None else "buffered"}


# Mappings


def _mapping(create: Callable[[], Any], path: str | None, size: Callable[[Any], int | None]) -> Any:
    """What *create* returns, recorded as a mapping."""
    call = safely(recorder.begin_fine, names.READ, _MAPPING, (), None, 0, path)
    if call is None:
        return create()
    try:
        result = create()
    except BaseException as error:
        safely(recorder.end_fine, call, None, error)
        raise
    safely(lambda: recorder.end_fine(call, size(result), None, result, deferred=True))
    return result


def _mapped_size(array: Any) -> int | None:
    mapping = getattr(array, "_mmap", None)
    return len(mapping) if mapping is not None else None


def _replace_memmap(original: Any) -> Any:
    function = original.__func__ if isinstance(original, staticmethod) else original

    @functools.wraps(function)
    def new(*args: Any, **kwargs: Any) -> Any:
        def create() -> Any:
            outer, _inside.memmap = _inside.memmap, True
            try:
                return function(*args, **kwargs)
            finally:
                _inside.memmap = outer

        if not safely(_to_read, args, kwargs):
            return create()
        return _mapping(create, _path(argument(args, kwargs, 1, "filename")), _mapped_size)

    return staticmethod(new)


def _to_read(args: Args, kwargs: Kwargs) -> bool:
    """Whether `numpy.memmap` maps what is there, rather than a file that it makes or extends."""
    return files.active() and argument(args, kwargs, 3, "mode") not in _WRITES and _big(argument(args, kwargs, 1, "filename"))


class _MappingType(ABCMeta):
    """
    Type of the replacement of `mmap.mmap`, which is a C type that cannot be changed.

    Objects are still made by the original and are of its type, so those from before and after are alike; the replacement counts as the same
    type in every comparison but `is`. The metaclass is one that classes with abstract bases can share.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        original = cls.__dict__.get("_loadspan_original")

        def create() -> Any:
            return original(*args, **kwargs) if original is not None else ABCMeta.__call__(cls, *args, **kwargs)

        found = safely(_readable, args, kwargs) if recorder.active and not _inside.memmap else None
        return create() if found is None else _mapping(create, found, len)

    def __instancecheck__(cls, instance: Any) -> bool:
        original = cls.__dict__.get("_loadspan_original")
        return super().__instancecheck__(instance) if original is None else isinstance(instance, original)

    def __subclasscheck__(cls, subclass: Any) -> bool:
        original = cls.__dict__.get("_loadspan_original")
        return super().__subclasscheck__(subclass) if original is None else issubclass(subclass, original)

    def __eq__(cls, other: object) -> bool:
        return cls is other or (other is not None and cls.__dict__.get("_loadspan_original") is other)

    def __hash__(cls) -> int:
        return hash(cls.__dict__.get("_loadspan_original") or id(cls))


def _readable(args: Args, kwargs: Kwargs) -> str | None:
    """Path of the file that `mmap.mmap` maps to be read; None for anything else: anonymous, small, or shared to be written to."""
    descriptor = argument(args, kwargs, 0, "fileno")
    if not isinstance(descriptor, int) or descriptor < 0 or not files.active():
        return None
    length, access = argument(args, kwargs, 1, "length", 0), argument(args, kwargs, 4, "access", 0)
    if length and length < files.BIG:
        return None
    try:
        if not files.big(os.fstat(descriptor)):
            return None
        if access not in (_READ, _COPY) and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            return None
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - plain text
    except OSError:
        return None


def _replace_mmap(original: Any) -> Any:
    space = {
        "__slots__": (),
        "__doc__": original.__doc__,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "_loadspan_original": original,
    }
    return _MappingType(original.__name__, (original,), space)


ROWS = (
    Target(
        module="numpy",
        attribute="fromfile",
        aliases=("numpy._core.multiarray:fromfile", "numpy._core.numeric:fromfile", "numpy._core._multiarray_umath:fromfile"),
        kind=Kind.FINE,
        stage=names.READ,
        when=_wanted,
        facts=_method,
        path=lambda args, kwargs: _path(argument(args, kwargs, 0, "file")),
        size=lambda result, _, __: result.nbytes,
        why="reads the descriptor in C; `numpy.load` ends here",
    ),
    Target(
        module="numpy",
        attribute="memmap.__new__",
        kind=Kind.REPLACE,
        replace=_replace_memmap,
        stage=names.READ,
        why="maps weights, for example of GGUF files",
    ),
    Target(
        module="mmap",
        attribute="mmap",
        kind=Kind.REPLACE,
        replace=_replace_mmap,
        stage=names.READ,
        why="loaders that map files themselves",
    ),
)
