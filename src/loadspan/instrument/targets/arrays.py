"""
What loaders of numpy and jax arrays have in common, and those of safetensors.

Nothing is imported: an array is whatever has a `dtype` and says how many bytes it has.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.described import model_name, sample
from loadspan.instrument.patching import Args, Kwargs, Target, argument
from loadspan.instrument.targets.transfers import stage_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.instrument.frames import OpenLoad, OpenStage

_LIMIT = 200_000  # objects looked at


def find(result: Any) -> list[Any]:
    """Arrays in nested mappings, lists and tuples, and in objects that are made of such (`flax.struct`, `TrainState`)."""
    found, todo, seen = [], deque([result]), 0
    while todo and seen < _LIMIT:
        thing = todo.popleft()
        seen += 1
        if hasattr(thing, "dtype") and isinstance(getattr(thing, "nbytes", None), int):
            found.append(thing)
        elif isinstance(thing, dict):
            todo.extend(thing.values())
        elif isinstance(thing, list | tuple):
            todo.extend(thing)
        elif hasattr(type(thing), "__dataclass_fields__"):
            todo.extend(vars(thing).values())
    return found


def nbytes(thing: Any) -> int | None:
    """Bytes of one array, or of a tensor or variable of TensorFlow, which has to be asked in another way; None of anything else."""
    size = getattr(thing, "nbytes", None)
    if isinstance(size, int):
        return size
    count = getattr(getattr(thing, "shape", None), "num_elements", None)
    return None if count is None else int((count() or 0) * thing.dtype.base_dtype.size)  # 0: text has none, and what is not made yet


def size(result: Any) -> int:
    """Bytes of all arrays in *result*."""
    return sum(array.nbytes for array in find(result))


def measure(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    """Of a call that returned arrays: their bytes, and by which to know them again."""
    found = find(result)
    if stage_of(frame).inner_size is None:
        frame.size = sum(array.nbytes for array in found)
    frame.outputs = sample(found)


def file_size(path: str | os.PathLike[str]) -> int | None:
    """Bytes of a file; None of one that is not there, which the host is about to say."""
    return os.stat(path).st_size if os.path.isfile(path) else None  # noqa: PTH113, PTH116 - no Path object on the recording side


def root(position: int, name: str) -> Callable[[OpenStage | OpenLoad, Args, Kwargs], None]:
    """What a root is about: the path at *position* or called *name*."""

    def describe(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
        path = argument(args, kwargs, position, name)
        if isinstance(path, str | os.PathLike):
            frame.known_as(model_name(path))  # type: ignore[union-attr] # a root is a load
            frame.file(path)

    return describe


def of_file(position: int, name: str, file_format: str | None = None) -> Callable[[OpenStage | OpenLoad, Args, Kwargs], None]:
    """What a stage is about: the file at *position* or called *name*."""

    def describe(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
        path = argument(args, kwargs, position, name)
        frame.file(path if isinstance(path, str | os.PathLike) else None, file_format)

    return describe


def of_bytes(position: int, name: str, file_format: str) -> Callable[[OpenStage | OpenLoad, Args, Kwargs], None]:
    """What a stage is about: bytes in memory, the argument at *position* or called *name*."""

    def describe(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
        frame.attributes |= {names.FORMAT: file_format, names.READ_METHOD: "memory"}
        frame.things = [argument(args, kwargs, position, name)]

    return describe


def _safetensors(library: str) -> tuple[Target, Target]:
    module = f"safetensors.{library}"
    return (
        Target(
            module=module,
            attribute="load_file",
            stage=names.DESERIALIZE,
            describe=of_file(0, "filename", "safetensors"),
            measure=measure,
            why="a whole file to arrays, which are copies out of the mapping",
        ),
        Target(
            module=module,
            attribute="load",
            stage=names.DESERIALIZE,
            describe=of_bytes(0, "data", "safetensors"),
            measure=measure,
            why="bytes in memory to arrays",
        ),
    )


ROWS = (*_safetensors("numpy"), *_safetensors("flax"), *_safetensors("tensorflow"))
