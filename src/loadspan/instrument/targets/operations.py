"""
What a load of transformers or diffusers does to weights besides casting them: merges the experts of a layer, splits, quantizes, unpacks.

Since release 5 of transformers each kind of that is a class of operations; before, and in diffusers, quantizers do it. Some hand over what
they made, others put it into the model. Weights that are quantized already are only put together from their parts: that produces nothing.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import observed, safely
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument, patch_method
from loadspan.instrument.targets import roots, tensors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_OPERATION = Target(
    module="transformers.core_model_loading",
    attribute="ConversionOps.convert",
    kind=Kind.FINE,
    stage=names.CONVERT,
    why="merges the experts of a layer, splits, transposes, quantizes or unpacks: each kind of operation has its own",
)


def watch(transforms: Iterable[Any]) -> None:
    """Record the operations of what a load of transformers 5 is going to do."""
    for transform in transforms:
        for operation in getattr(transform, "operations", ()):
            patch_method(type(operation), "convert", _converts, _OPERATION)


def watch_quantizer(quantizer: Any) -> None:
    """Record what *quantizer*, if there is one, does to weights."""
    if quantizer is not None:
        patch_method(type(quantizer), "create_quantized_param", _creates, _OPERATION)
        patch_method(type(quantizer), "get_quantize_ops", _makes_operation, _OPERATION)


def _makes_operation(method: Any) -> Any:
    """A quantizer makes an operation for each tensor."""

    @wraps(method)
    def get_quantize_ops(*args: Any, **kwargs: Any) -> Any:
        operation = method(*args, **kwargs)
        if recorder.active:
            safely(patch_method, type(operation), "convert", _converts, _OPERATION)
        return operation

    return get_quantize_ops


class _Operation:
    """One that runs: the parts of the model that it may fill, and what was there before."""

    call: Any = None

    def __init__(self, model: Any, name: str | None, given: Any) -> None:
        self._module = model.get_submodule(name.rpartition(".")[0]) if model is not None and name else None
        self._before: Collection[int] = tensors.storages((given, self._own()))

    def _own(self) -> list[Any]:
        module = self._module
        return [] if module is None else [*module._parameters.values(), *module._buffers.values()]  # noqa: SLF001 - the public iterators go into its children

    def produced(self, result: Any) -> int | None:
        """Bytes of what it made; what it passes on, or is only another view of that, is none of it."""
        return tensors.made((result, self._own()), self._before) or None


def _begin(args: Args, kwargs: Kwargs, model: Any, name: str | None, given: Any) -> _Operation | None:
    if not recorder.active or not roots.part(args, kwargs):
        return None
    operation = _Operation(model, name, given)
    operation.call = recorder.begin_fine(names.CONVERT, _OPERATION, args, kwargs)
    return operation if operation.call is not None else None


def _end(operation: _Operation, result: Any, args: Args, kwargs: Kwargs) -> None:
    size = None
    try:
        size = operation.produced(result)
    finally:
        slow = recorder.end_fine(operation.call, size, None, result)  # whatever became of the size: the call is over
    if slow:
        recorder.name_slow(operation.call, slow, size, type(args[0]).__name__)


def _fail(operation: _Operation, error: BaseException) -> None:
    recorder.end_fine(operation.call, None, error)


def _converts(method: Any) -> Any:
    def begin(args: Args, kwargs: Kwargs) -> _Operation | None:
        # Looked at before it runs: some take out what they are given.
        return _begin(args, kwargs, kwargs.get("model"), kwargs.get("full_layer_name"), argument(args, kwargs, 1, "input_dict"))

    return observed(method, begin, _end, _fail)


def _creates(method: Any) -> Any:
    def begin(args: Args, kwargs: Kwargs) -> _Operation | None:
        # What is quantized already comes in parts, of which only one is an argument: nothing is known to be made.
        made = not getattr(args[0], "pre_quantized", False)
        model, name = (argument(args, kwargs, index, key) for index, key in ((1, "model"), (3, "param_name")))
        return _begin(args, kwargs, model if made else None, name, argument(args, kwargs, 2, "param_value"))

    return observed(method, begin, _end, _fail)
