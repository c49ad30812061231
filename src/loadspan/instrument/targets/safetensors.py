"""
safetensors: `safe_open`, its slices, and the functions of `safetensors.torch`.

`safe_open` is a final Rust class whose type object can be changed in place: that reaches every module that imported it by name, and
handles that are open already. Its default back end maps the file, so tensors on the CPU are views and their bytes arrive at first use.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.calls import wrap
from loadspan.instrument.described import sample
from loadspan.instrument.destination import arrived, named
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument, patch_type
from loadspan.instrument.targets import arrays, tensors

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_MMAP = "mmap"
_FORMAT = {names.FORMAT: "safetensors"}
_HANDLES = 10_000
_TORCH = ("pt", "torch", "pytorch")


@dataclass(frozen=True, slots=True)
class _Handle:
    """What is known of a handle. Nothing of one that was opened before we came: then its tensors may be views, too."""

    path: str | None = None
    method: str | None = None
    device: Any = None
    lazy: bool = True
    """Whether its tensors may be views on the mapped file, whose bytes arrive later."""


_UNKNOWN = _Handle()


class _Handles:
    """What is known of open handles, by id: the class takes no attributes and no weak references."""

    def __init__(self) -> None:
        self._known: dict[int, _Handle] = {}

    def path(self, args: Args, kwargs: Kwargs) -> str | None:
        """The file of the handle that a method is called on."""
        known = self._known.get(id(args[0]))
        return None if known is None else known.path

    def __getitem__(self, handle: Any) -> _Handle:
        return self._known.get(id(handle), _UNKNOWN)

    def __setitem__(self, handle: Any, known: _Handle) -> None:
        """Remember a handle; ids are reused, so a new handle overwrites an old one, also where nothing is known of it."""
        self._known[id(handle)] = known
        while len(self._known) > _HANDLES:
            self._known.pop(next(iter(self._known)), None)

    def clear(self) -> None:
        """Forget all: handles came and went unseen."""
        self._known.clear()


_handles = _Handles()
_slices = _Handles()


def _method(back_end: Any) -> str:
    return _MMAP if back_end == _MMAP else "buffered"


def _lazy(device: Any, back_end: Any) -> bool:
    """Whether tensors of torch are views on the mapped file: on another device they are copies."""
    return str(device) == "cpu" and back_end == _MMAP


def _replace_init(original: Any) -> Any:
    """`__init__` runs right after a successful open and gets its arguments; the class has none of its own, only `object`'s."""
    _handles.clear()
    _slices.clear()

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if recorder.active:
            safely(_opened, self, args, kwargs)
        if original is not object.__init__:
            original(self, *args, **kwargs)

    return init


def _opened(handle: Any, args: Args, kwargs: Kwargs) -> None:
    back_end = kwargs.get("backend", _MMAP)
    # Arrays of other frameworks are copies.
    lazy = _lazy(argument(args, kwargs, 2, "device", "cpu"), back_end) and argument(args, kwargs, 1, "framework") in _TORCH
    device = argument(args, kwargs, 2, "device")
    _handles[handle] = _Handle(os.fsdecode(argument(args, kwargs, 0, "filename")), _method(back_end), device, lazy)


def _size(result: Any, args: Args, kwargs: Kwargs) -> int | None:
    if isinstance(result, dict):
        found = list(result.values())
        if found and not hasattr(found[0], "nbytes"):
            return sum([arrays.nbytes(tensor) or 0 for tensor in found])
        return sum([int(tensor.nbytes) for tensor in found])
    size = getattr(result, "nbytes", None)  # asked here: one call less for each of thousands of tensors
    return size if isinstance(size, int) else arrays.nbytes(result)


def _label(args: Args, kwargs: Kwargs) -> str:
    return args[1] if len(args) > 1 and isinstance(args[1], str) else "slice"


def _fine(attribute: str, why: str, handles: _Handles) -> Target:
    """A method of a handle or slice that returns tensors."""

    def facts(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        method = handles[args[0]].method
        return _FORMAT | ({names.READ_METHOD: method} if method is not None else {})

    return Target(
        module="safetensors",
        attribute=attribute,
        kind=Kind.FINE,
        stage=names.DESERIALIZE,
        size=_size,
        label=_label,
        facts=facts,
        path=handles.path,
        destination=lambda args, kwargs: named(handles[args[0]].device),
        deferred=lambda args, kwargs: handles[args[0]].lazy,
        bursts=True,
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
    _slices[result] = _handles[handle]
    kind = type(result)
    if not hasattr(kind.__getitem__, "__wrapped__"):
        patch_type(kind, "__getitem__", wrap(_SLICE, kind.__getitem__))


_SLICE = _fine("PySafeSlice.__getitem__", "where a slice is read", _slices)


def _describe_file(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    frame.file(argument(args, kwargs, 0, "filename"), "safetensors")
    frame.destination = named(argument(args, kwargs, 1, "device"))  # type: ignore[union-attr] # rows of this file are stages


def _measure_file(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    found = list(result.values())
    if frame.inner_size is None:  # type: ignore[union-attr] # rows of this file are stages
        frame.size = tensors.sizes(found)  # a version that reads past `safe_open`'s methods; else each tensor was counted there
    frame.outputs = sample(found)
    if found:
        frame.destination = arrived(frame.destination, found[0].device)  # type: ignore[union-attr] # rows of this file are stages
    back_end = kwargs.get("backend", _MMAP)
    frame.attributes[names.READ_METHOD] = _method(back_end)
    if _lazy(argument(args, kwargs, 1, "device", "cpu"), back_end):
        frame.deferred = True  # type: ignore[union-attr] # rows of this file are stages


def _describe_bytes(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    frame.attributes |= _FORMAT | {names.READ_METHOD: "memory"}
    frame.things = [argument(args, kwargs, 0, "data")]


def _measure_bytes(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    found = list(tensors.find(result))
    frame.size = sum(map(tensors.size, found))
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
