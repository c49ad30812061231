"""
transformers before release 5: one function reads each tensor, casts or moves it and puts it into the model.

What lies between two functions that it calls for each tensor is the cast; the read is a call of its own in it.
"""

from __future__ import annotations

import threading
from functools import wraps
from typing import Any

from loadspan import names
from loadspan.guard import observed, safely
from loadspan.instrument.destination import named
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import tensors


class _Now(threading.local):
    """The cast or move of the tensor that this thread puts into a model now."""

    call: Any = None
    moves = False


_now = _Now()


def _stop(error: BaseException | None = None) -> None:
    call, _now.call = _now.call, None
    if call is not None:
        recorder.end_fine(call, None, error)


def _replace_infer(original: Any) -> Any:
    @wraps(original)
    def infer(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        if recorder.active:
            safely(_inferred, args, kwargs, found)
        return found

    return infer


def _inferred(args: Args, kwargs: Kwargs, found: Any) -> None:
    _stop()
    dtype, tensor = found[1], argument(args, kwargs, 2, "empty_param")
    if _now.moves:
        _now.call = recorder.begin_fine(names.TO_DEVICE, _PUT, (), {}, tensors.size(tensor))
    elif dtype is not None and dtype != tensor.dtype:
        _now.call = recorder.begin_fine(names.CONVERT, _CAST, (), {"dtype": dtype}, tensors.size(tensor))


def _replace_put(original: Any) -> Any:
    @wraps(original)
    def put(*args: Any, **kwargs: Any) -> Any:
        if _now.call is not None:
            safely(_cast, argument(args, kwargs, 2, "tensor"))
        return original(*args, **kwargs)

    return put


def _cast(tensor: Any) -> None:
    call, _now.call = _now.call, None
    recorder.end_fine(call, tensors.size(tensor), None, tensor)


def _begin_shard(args: Args, kwargs: Kwargs) -> bool:
    devices = argument(args, kwargs, 4, "device_map") or {}
    _now.moves = any(named(f"cuda:{device}" if isinstance(device, int) else device) is not None for device in devices.values())
    return True


def _fail_shard(call: Any, error: BaseException) -> None:
    _stop(error)


def _replace_shard(original: Any) -> Any:
    return observed(original, _begin_shard, lambda call, result, args, kwargs: _stop(), _fail_shard)


_CAST = Target(
    module="transformers.modeling_utils",
    attribute="_load_parameter_into_model",
    kind=Kind.FINE,
    stage=names.CONVERT,
    facts=lambda args, kwargs: {names.DTYPE: str(kwargs["dtype"]).removeprefix("torch.")},
    why="a tensor is cast before it is put into the model",
)
_PUT = Target(
    module="transformers.modeling_utils",
    attribute="_load_parameter_into_model",
    kind=Kind.FINE,
    stage=names.TO_DEVICE,
    why="a tensor is brought to a device before it is put into the model",
)


def _replaces(attribute: str, replace: Any, why: str) -> Target:
    return Target(module="transformers.modeling_utils", attribute=attribute, kind=Kind.REPLACE, replace=replace, why=why)


ROWS = (
    _replaces("_infer_parameter_dtype", _replace_infer, "the type that a tensor will have, asked right before it is read"),
    _replaces("_load_parameter_into_model", _replace_put, "the tensor has it"),
    _replaces("_load_state_dict_into_meta_model", _replace_shard, "the file whose tensors these are, and the devices for them"),
)
