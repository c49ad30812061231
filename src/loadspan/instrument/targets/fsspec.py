"""
fsspec: files of object stores and web servers, and its local cache of them.

What is asynchronous inside (s3fs, gcsfs, adlfs, http) passes through one function, in which the calling thread waits for a coroutine: that
is where bytes and seconds of a transfer are known. Files of the local disk are reads like any other, and what is in memory is there.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.calls import wrap
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import transfers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadspan.instrument.frames import OpenLoad, OpenStage

_ASYNC = "fsspec.asyn"
_INTO_FILES = ("_get_file", "_get")
_INTO_MEMORY = ("_cat_file", "_cat", "_cat_ranges")
_PARTS = ("_inner_fetch", "async_fetch_range", "_async_fetch_range", "_fetch_range", "async_fetch_all", "_read")
"""Coroutines that fetch a part of an open file: of s3fs, of http, of others."""


def _path(args: Args, kwargs: Kwargs) -> Any:
    """What a coroutine is about: its first argument, a path or several."""
    found = argument(args, kwargs, 2, "path", kwargs.get("rpath", kwargs.get("paths")))
    return found[0] if isinstance(found, list | tuple) and found else found


def _target(args: Args, kwargs: Kwargs) -> Iterator[str]:
    """Local files that a coroutine writes."""
    found = argument(args, kwargs, 3, "lpath")
    for path in found if isinstance(found, list | tuple) else (found,):
        if isinstance(path, str | os.PathLike):
            yield os.fspath(path)


def _describe(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    path = _path(args, kwargs)
    stage.opens = transfers.may_be_weights(path)
    stage.attributes |= transfers.host(path) or _server(getattr(argument(args, kwargs, 1, "func"), "__self__", None))
    transfers.missed()


def _server(system: Any) -> dict[str, Any]:
    """The server of a file system whose paths do not name it."""
    for name in ("endpoint_url", "client_kwargs"):
        found = getattr(system, name, None)
        if url := transfers.host(found.get("endpoint_url") if isinstance(found, dict) else found):
            return url
    return {}


def _measure_files(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    found = [path for path in _target(args, kwargs) if os.path.isfile(path)]  # noqa: PTH113 - no Path object on the recording side
    for path in found:
        stage.file(path)
    if found:
        _came(stage, sum(os.stat(path).st_size for path in found))  # noqa: PTH116 - as above


def _measure_memory(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    parts = result.values() if isinstance(result, dict) else result if isinstance(result, list) else (result,)
    stage.outputs = [part for part in parts if isinstance(part, bytes)]
    _came(stage, sum(map(len, stage.outputs)))


def _came(stage: OpenStage, size: int) -> None:
    stage.size = size
    transfers.forget_small(stage)
    transfers.arrived(size)


def _part_size(result: Any, args: Args, kwargs: Kwargs) -> int | None:
    size = len(result) if isinstance(result, bytes) else getattr(_file(args, kwargs), "size", None)
    return size if isinstance(size, int) else None


def _file(args: Args, kwargs: Kwargs) -> Any:
    """The open file that a part is of: its method was called with it or is bound to it."""
    func = argument(args, kwargs, 1, "func", args[0] if args else None)
    return next((thing for thing in (*args[2:3], getattr(func, "__self__", None), func) if hasattr(thing, "path")), None)


def _place(args: Args, kwargs: Kwargs) -> Any:
    """The place of that file; s3fs hands on bucket and key."""
    file = _file(args, kwargs)
    return file.path if file is not None else args[4] if len(args) > 4 else None  # noqa: PLR2004 - loop, function, system, bucket, key


def _in_a_load(args: Args, kwargs: Kwargs) -> bool:
    return bool(recorder.loads) or transfers.may_be_weights(_place(args, kwargs))


def _part(module: str, attribute: str, why: str) -> Target:
    return Target(
        module=module,
        attribute=attribute,
        kind=Kind.FINE,
        stage=names.DOWNLOAD,
        when=_in_a_load,
        size=_part_size,
        why=why,
    )


_FILES = Target(
    module=_ASYNC, attribute="sync", stage=names.DOWNLOAD, describe=_describe, measure=_measure_files, why="whole files to the local disk"
)
_MEMORY = Target(
    module=_ASYNC, attribute="sync", stage=names.DOWNLOAD, describe=_describe, measure=_measure_memory, why="whole files into memory"
)
_PART = _part(_ASYNC, "sync", "what is read of an open file")


def _replace_sync(original: Any) -> Any:
    files, memory, part = wrap(_FILES, original), wrap(_MEMORY, original), wrap(_PART, original)
    chosen = dict.fromkeys(_INTO_FILES, files) | dict.fromkeys(_INTO_MEMORY, memory) | dict.fromkeys(_PARTS, part)

    @functools.wraps(original)
    def sync(*args: Any, **kwargs: Any) -> Any:
        func = args[1] if len(args) > 1 else kwargs.get("func")
        return chosen.get(getattr(func, "__name__", ""), original)(*args, **kwargs)

    return sync


def _describe_cached(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    stage.rated = False
    stage.opens = transfers.may_be_weights(argument(args, kwargs, 1, "path"))


def _measure_cached(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    path = getattr(result, "name", None)
    if names.CACHE_HIT not in stage.attributes:
        stage.attributes[names.CACHE_HIT] = True
        if isinstance(path, str) and os.path.isfile(path):  # noqa: PTH113 - as above
            stage.size = os.stat(path).st_size  # noqa: PTH116 - as above
    stage.file(path if isinstance(path, str) else None)


def _cached(kind: str, why: str) -> Target:
    return Target(
        module="fsspec.implementations.cached",
        attribute=f"{kind}._open",
        stage=names.CACHE,
        when=lambda args, kwargs: "r" in str(argument(args, kwargs, 2, "mode", "rb")),
        describe=_describe_cached,
        measure=_measure_cached,
        why=why,
    )


ROWS = (
    Target(
        module=_ASYNC,
        attribute="sync",
        kind=Kind.REPLACE,
        replace=_replace_sync,
        stage=names.DOWNLOAD,
        why="every transfer of a file system that is asynchronous inside",
    ),
    _part("huggingface_hub.hf_file_system", "HfFileSystemFile._fetch_range", "hf:// is not asynchronous inside"),
    _cached("WholeFileCacheFileSystem", "filecache:: looks in its local folder first"),
    _cached("SimpleCacheFileSystem", "simplecache:: does, too"),
)
