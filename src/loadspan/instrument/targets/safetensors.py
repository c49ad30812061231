"""
safetensors: `safe_open`, its slices, and the functions of `safetensors.torch`.

`safe_open` is a final Rust class whose type object can be changed in place: that reaches every module that imported it by name, and
handles that are open already. Its default back end maps the file, so tensors on the CPU are views and their bytes arrive at first use.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.calls import wrap
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument, patch_type
from loadspan.instrument.targets import tensors

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_MMAP = "mmap"
_FORMAT = {names.FORMAT: "safetensors"}
_HANDLES = 10_000


class _Handles:
    """What is known of open handles, by id: the class takes no attributes and no weak references."""

    def __init__(self) -> None:
        self._files: dict[int, tuple[str, bool]] = {}

    def opened(self, handle: Any, path: str, *, lazy: bool) -> None:
        """Remember a handle; ids are reused, so a new handle overwrites an old one."""
        self._files[id(handle)] = (path, lazy)
        while len(self._files) > _HANDLES:
            del self._files[next(iter(self._files))]

    def path(self, handle: Any) -> str | None:
        """File of a handle, None if it was opened before we came."""
        return self._files.get(id(handle), (None, False))[0]

    def lazy(self, handle: Any) -> bool:
        """Whether its tensors are views on the mapped file."""
        return self._files.get(id(handle), (None, False))[1]


_handles = _Handles()
_slices = _Handles()


def _lazy(device: Any, back_end: Any) -> bool:
    """Whether tensors are views on the mapped file: on another device they are copies."""
    return str(device) == "cpu" and back_end == _MMAP


def _replace_init(original: Any) -> Any:
    """`__init__` runs right after a successful open and gets its arguments; the class has none of its own, only `object`'s."""

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if recorder.active:
            safely(_opened, self, args, kwargs)
        if original is not object.__init__:
            original(self, *args, **kwargs)

    return init


def _opened(handle: Any, args: Args, kwargs: Kwargs) -> None:
    path = argument(args, kwargs, 0, "filename")
    lazy = _lazy(argument(args, kwargs, 2, "device", "cpu"), kwargs.get("backend", _MMAP))
    _handles.opened(handle, os.fsdecode(path), lazy=lazy)


def _size(result: Any, args: Args, kwargs: Kwargs) -> int | None:
    if isinstance(result, dict):
        return sum(int(tensor.nbytes) for tensor in result.values())
    size = getattr(result, "nbytes", None)
    return size if isinstance(size, int) else None


def _label(args: Args, kwargs: Kwargs) -> str:
    return args[1] if len(args) > 1 and isinstance(args[1], str) else "slice"


def _fine(attribute: str, why: str, handles: _Handles) -> Target:
    """A method of a handle or slice that returns tensors."""

    def facts(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        return {names.FORMAT: "safetensors", names.READ_METHOD: _MMAP if handles.lazy(args[0]) else "buffered"}

    return Target(
        module="safetensors",
        attribute=attribute,
        kind=Kind.FINE,
        stage=names.DESERIALIZE,
        size=_size,
        label=_label,
        facts=facts,
        path=lambda args, kwargs: handles.path(args[0]),
        deferred=lambda args, kwargs: handles.lazy(args[0]),
        why=why,
    )


def _replace_get_slice(original: Any) -> Any:
    """A slice is lazy itself, and does not know its file: it is told here. Its type is reachable only through an instance."""

    @functools.wraps(original)
    def get_slice(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if recorder.active:
            safely(_sliced, self, result)
        return result

    return get_slice


def _sliced(handle: Any, result: Any) -> None:
    path = _handles.path(handle)
    if path is not None:
        _slices.opened(result, path, lazy=_handles.lazy(handle))
    kind = type(result)
    if not hasattr(kind.__getitem__, "__wrapped__"):
        patch_type(kind, "__getitem__", wrap(_SLICE, kind.__getitem__))


_SLICE = _fine("PySafeSlice.__getitem__", "where a slice is read", _slices)


def _describe_file(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    frame.file(argument(args, kwargs, 0, "filename"), "safetensors")


def _measure_file(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    found = list(tensors.find(result))
    frame.size = sum(tensor.nbytes for tensor in found)
    frame.outputs = found
    lazy = _lazy(argument(args, kwargs, 1, "device", "cpu"), kwargs.get("backend", _MMAP))
    frame.attributes[names.READ_METHOD] = _MMAP if lazy else "buffered"
    if lazy:
        frame.deferred = True  # type: ignore[union-attr] # rows of this file are stages


def _describe_bytes(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    frame.attributes |= _FORMAT | {names.READ_METHOD: "memory"}
    frame.things = [argument(args, kwargs, 0, "data")]


def _measure_bytes(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    found = list(tensors.find(result))
    frame.size = sum(tensor.nbytes for tensor in found)
    frame.outputs = found


def _describe_model(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    frame.module = argument(args, kwargs, 0, "model")
    frame.file(argument(args, kwargs, 1, "filename"), "safetensors")


ROWS = (
    Target(
        module="safetensors",
        attribute="safe_open.__init__",
        kind=Kind.REPLACE,
        replace=_replace_init,
        why="tells the file, device and back end of a handle; `__new__` cannot be replaced",
    ),
    _fine("safe_open.get_tensor", "tensor by tensor, as most loaders read", _handles),
    _fine("safe_open.get_tensors", "all at once, since 0.8", _handles),
    Target(
        module="safetensors",
        attribute="safe_open.get_slice",
        kind=Kind.REPLACE,
        replace=_replace_get_slice,
        why="transformers and tensor-parallel loaders read by slices",
    ),
    Target(
        module="safetensors.torch",
        attribute="load_file",
        stage=names.DESERIALIZE,
        describe=_describe_file,
        measure=_measure_file,
        why="a whole file to a state dict",
    ),
    Target(
        module="safetensors.torch",
        attribute="load",
        stage=names.DESERIALIZE,
        describe=_describe_bytes,
        measure=_measure_bytes,
        why="bytes in memory to a state dict, a full copy: what decryptors call",
    ),
    Target(
        module="safetensors.torch",
        attribute="load_model",
        stage=names.LOAD_STATE_DICT,
        describe=_describe_model,
        why="load_file and load_state_dict in one call",
    ),
)
