"""
transformers: `from_pretrained` of models, and `pipeline`.

Since release 5 a pool of threads reads slices of all files and casts or moves them, while the caller assigns what is ready; before, the
caller did all that, tensor by tensor, in one function. What is not cast stays a view on the mapped file: its bytes arrive at first use.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import observed
from loadspan.instrument.calls import record_construction
from loadspan.instrument.described import model_name
from loadspan.instrument.destination import Destination, named, settled
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import auto_classes, operations, roots, tensors
from loadspan.instrument.targets import transformers_parts as parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.instrument.frames import OpenLoad, OpenStage

_LIBRARY = "transformers"
_SAFETENSORS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""What a slice of safetensors calls torch's types."""


def _model_of(args: Args) -> Any:
    """The module among the first arguments: `_load_pretrained_model` is a class method in some releases, a static one in others."""
    torch: Any = sys.modules["torch"]
    return next((argument for argument in args[:2] if isinstance(argument, torch.nn.Module)), None)


# Roots


def _source(args: Args, kwargs: Kwargs) -> str | None:
    return model_name(argument(args, kwargs, 1, "pretrained_model_name_or_path"))


def _another_model(args: Args, kwargs: Kwargs) -> bool:
    return not roots.same(_LIBRARY, _source(args, kwargs))


def _own_load(args: Args, kwargs: Kwargs) -> bool:
    """Whether a concrete class loads for itself, not for the auto class or pipeline that chose it. Its constructor is made known."""
    record_construction(args[0], _CONSTRUCTION)
    chosen = kwargs.get("_from_auto") and roots.by(_LIBRARY) is not None
    return not chosen and _another_model(args, kwargs)


def _describe_root(load: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    load.known_as(_source(args, kwargs) or getattr(args[0], "__name__", None))  # type: ignore[union-attr] # a root's frame is a load


def _pipeline_of(args: Args, kwargs: Kwargs) -> Any:
    return argument(args, kwargs, 1, "model") or argument(args, kwargs, 0, "task")


def _pipeline_loads(args: Args, kwargs: Kwargs) -> bool:
    """Whether a pipeline is made of a model that is not loaded yet."""
    model = argument(args, kwargs, 1, "model")
    return (model is None or isinstance(model, str)) and not roots.same(_LIBRARY, model_name(model))


def _describe_pipeline(load: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    load.known_as(model_name(_pipeline_of(args, kwargs)))  # type: ignore[union-attr] # as above


_CONSTRUCTION = parts.initializes("modeling_utils", "PreTrainedModel.__init__", "the constructor of the class that a root is called for")

# The state dict


def _describe_load(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = kwargs.get("model", None) or _model_of(args)
    stage.rated = False  # type: ignore[union-attr] # rows of stages; tensors change hands, what moves is told by what is in it
    config = argument(args, kwargs, 3 if args and args[0] is stage.module else 4, "load_config")
    operations.watch(getattr(config, "weight_mapping", None) or ())
    operations.watch_quantizer(getattr(config, "hf_quantizer", None) or kwargs.get("hf_quantizer"))


def _measure_load(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    """Bytes of what has its memory now and was in the checkpoint."""
    info = result[0] if isinstance(result, tuple) else result
    missing, mismatched = (getattr(info, name, ()) for name in ("missing_keys", "mismatched_keys"))
    if isinstance(result, tuple) and info is stage.module:
        missing, mismatched = result[1], result[3]
    without = {*missing, *(key if isinstance(key, str) else key[0] for key in mismatched)}
    found = {}
    for prefix, module in stage.module.named_modules() if without else ((None, module) for module in stage.module.modules()):
        passing = module._non_persistent_buffers_set  # noqa: SLF001 - `state_dict()` runs the host's hooks, the public iterators are slow
        for holder in (module._parameters, module._buffers):  # noqa: SLF001 - as above
            for name, tensor in holder.items():
                if tensor is not None and name not in passing and (not without or f"{prefix}.{name}".lstrip(".") not in without):
                    found[id(tensor)] = tensor
    stage.size = tensors.sizes(found.values()) or None


# Tensor by tensor: casts and moves


def _dtype(args: Args, kwargs: Kwargs) -> dict[str, Any]:
    return {names.DTYPE: str(argument(args, kwargs, 2, "dtype")).removeprefix("torch.")}


_CAST = Target(
    module="transformers.core_model_loading",
    attribute="_materialize_copy",
    kind=Kind.FINE,
    stage=names.CONVERT,
    facts=_dtype,
    why="a slice of the file is cast",
)
_MOVE = Target(
    module="transformers.core_model_loading",
    attribute="_materialize_copy",
    kind=Kind.FINE,
    stage=names.TO_DEVICE,
    destination=lambda args, kwargs: settled(_place(argument(args, kwargs, 1, "device"))),
    why="a slice of the file is brought to a device",
)


class _Types(dict[Any, str | None]):
    """What a slice of safetensors calls a type of torch: asked for every tensor, and to name a type takes longer than to look it up."""

    def __missing__(self, dtype: Any) -> str | None:
        return self.setdefault(dtype, _SAFETENSORS.get(str(dtype).removeprefix("torch.")))


def _place(device: Any) -> Destination | None:
    """The device that a device map names; a number is one of the accelerator that there is."""
    if not isinstance(device, int):
        return named(device)
    accelerator: Any = getattr(sys.modules["torch"], "accelerator", None)
    there = accelerator.current_accelerator() if accelerator is not None else None
    return Destination(there.type if there is not None else "cuda", device)


class _Devices(dict[Any, bool]):
    """Whether a device is another than the host."""

    def __missing__(self, device: Any) -> bool:
        return self.setdefault(device, _place(device) is not None)


_types, _devices = _Types(), _Devices()


def _casts(tensor: Any, dtype: Any) -> bool:
    if dtype is None:
        return False
    of_slice = getattr(tensor, "get_dtype", None)
    if of_slice is not None:
        return bool(of_slice() != _types[dtype])
    return bool(getattr(tensor, "dtype", dtype) != dtype)


def _begin_copy(args: Args, kwargs: Kwargs) -> Any:
    if not recorder.active:
        return None
    if _devices[argument(args, kwargs, 1, "device")]:
        return recorder.begin_fine(names.TO_DEVICE, _MOVE, args, kwargs)
    if _casts(args[0], argument(args, kwargs, 2, "dtype")):
        return recorder.begin_fine(names.CONVERT, _CAST, args, kwargs)
    return None


def _end_copy(call: Any, result: Any, args: Args, kwargs: Kwargs) -> None:
    recorder.end_fine(call, tensors.size(result), None, result)


def _fail_copy(call: Any, error: BaseException) -> None:
    recorder.end_fine(call, None, error)


def _replace_copy(original: Any) -> Any:
    return observed(original, _begin_copy, _end_copy, _fail_copy)


# Adapters and GGUF


def _describe_adapter(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = args[0]
    stage.attributes[names.ADAPTER_NAME] = str(argument(args, kwargs, 2, "adapter_name") or "default")


def _describe_gguf(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.file(argument(args, kwargs, 0, "gguf_checkpoint_path"), "gguf")


def _has_tensors(args: Args, kwargs: Kwargs) -> bool:
    return bool(argument(args, kwargs, 1, "return_tensors", default=False)) or roots.part(args, kwargs)


def _replaces(module: str, attribute: str, replace: Callable[[Any], Any], why: str) -> Target:
    return Target(module=f"transformers.{module}", attribute=attribute, kind=Kind.REPLACE, replace=replace, why=why)


ROWS = (
    *auto_classes.rows(_another_model, _describe_root),
    Target(
        module="transformers.modeling_utils",
        attribute="PreTrainedModel.from_pretrained",
        kind=Kind.ROOT,
        when=_own_load,
        describe=_describe_root,
        why="loads a model, for itself or for an auto class",
    ),
    Target(
        module="transformers.pipelines",
        attribute="pipeline",
        kind=Kind.ROOT,
        when=_pipeline_loads,
        describe=_describe_pipeline,
        why="loads a model, its tokenizer and processors, and brings the model to its device",
    ),
    Target(
        module="transformers.modeling_utils",
        attribute="PreTrainedModel._load_pretrained_model",
        stage=names.LOAD_STATE_DICT,
        describe=_describe_load,
        measure=_measure_load,
        why="reads the files and puts what is in them into the model",
    ),
    Target(
        module="transformers.modeling_utils",
        attribute="PreTrainedModel._finalize_model_loading",
        stage=names.LOAD_STATE_DICT,
        why="ties weights, and complains of those that do not fit",
    ),
    Target(
        module="transformers.modeling_utils",
        attribute="PreTrainedModel._finalize_load_state_dict",
        stage=names.LOAD_STATE_DICT,
        why="its name in release 5.0",
    ),
    Target(
        module="transformers.conversion_mapping",
        attribute="get_model_conversion_mapping",
        stage=names.LOAD_STATE_DICT,
        when=roots.part,
        why="which weights of the checkpoint become which of the model",
    ),
    Target(
        module="transformers.integrations.peft",
        attribute="PeftAdapterMixin.load_adapter",
        stage=names.MERGE_LORA,
        describe=_describe_adapter,
        why="an adapter into a model that peft does not wrap",
    ),
    Target(
        module="transformers.modeling_gguf_pytorch_utils",
        attribute="load_gguf_checkpoint",
        stage=names.DESERIALIZE,
        describe=_describe_gguf,
        when=_has_tensors,
        why="reads and unpacks a GGUF file",
    ),
    Target(
        module="transformers.integrations.gguf.reader",
        attribute="LazyGgufTensor.__getitem__",
        kind=Kind.FINE,
        stage=names.DESERIALIZE,
        size=lambda result, args, kwargs: tensors.size(result),
        facts=lambda args, kwargs: {names.FORMAT: "gguf"},
        why="in the pool: a tensor of a GGUF file, copied out of the mapped file",
    ),
    _replaces("core_model_loading", "_materialize_copy", _replace_copy, "in the pool: a slice of the file, cast and moved"),
)
