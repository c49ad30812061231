"""
tensorizer: files of tensors, read by several threads, which may decrypt them.

The constructor reads everything, or nothing yet (`lazy_load`): then whoever asks for tensors pays. Threads of its own read into the memory
of each tensor (`read`, where the file is a local one), decrypt there, and hand the tensors on one by one. The row of
its key derivation is beside those of other libraries.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.described import sample
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import roots, tensors

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_MODULE = "tensorizer.serialization"
_FORMAT = "tensorizer"


def _path(source: Any) -> Any:
    return source if isinstance(source, str | bytes | os.PathLike) else getattr(source, "name", None)


def _describe_file(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    frame.file(_path(argument(args, kwargs, 1, "file_obj")), _FORMAT)


def _loaded(deserializer: Any) -> list[Any]:
    """Tensors that a deserializer has read so far, and kept."""
    return [copied.parameter for copied in list(deserializer._cache.values()) if copied is not None]  # noqa: SLF001 - asking it would read


def _measure_file(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    frame.outputs = [args[0], *sample(_loaded(args[0]))]


def _describe_module(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    frame.module = argument(args, kwargs, 1, "m")
    frame.things = [args[0], *_loaded(args[0])]


def _measure_module(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    frame.size = tensors.sizes(_loaded(args[0]))


ROWS = (
    Target(
        module=_MODULE,
        attribute="TensorDeserializer.__init__",
        stage=names.DESERIALIZE,
        describe=_describe_file,
        measure=_measure_file,
        why="reads and decrypts all tensors, unless it is to be lazy",
    ),
    Target(
        module=_MODULE,
        attribute="TensorDeserializer._bulk_load_uncached",
        kind=Kind.FINE,
        stage=names.DESERIALIZE,
        size=lambda result, args, kwargs: int(result.parameter.nbytes),
        thing=lambda result: result.parameter,
        facts=lambda args, kwargs: {names.FORMAT: _FORMAT},
        why="tensor by tensor as they come from the threads: in the constructor, or when a lazy one is asked",
    ),
    Target(
        module=_MODULE,
        attribute="TensorDeserializer.load_into_module",
        stage=names.LOAD_STATE_DICT,
        describe=_describe_module,
        measure=_measure_module,
        why="tensors become the module's; a lazy one reads them now",
    ),
    Target(
        module="tensorizer._crypt._encryption",
        attribute="_EncryptionManager._inplace_decrypt",
        kind=Kind.FINE,
        stage=names.DECRYPT,
        when=roots.during,
        size=lambda result, args, kwargs: int(result),
        facts=lambda args, kwargs: {names.CIPHER: "XSalsa20-Poly1305"},
        why="a chunk of a tensor, in a thread of a pool",
    ),
)
