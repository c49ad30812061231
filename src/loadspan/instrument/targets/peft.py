"""
peft: adapters put into a model, and merged into its weights.

`merge_and_unload` is reached through `PeftModel.__getattr__`, so the tuner classes are patched, not `PeftModel`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.patching import Args, Kwargs, Target, argument
from loadspan.instrument.targets import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.instrument.frames import OpenLoad, OpenStage

_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def _layers(model: Any) -> list[Any]:
    """Adapter layers of a model: what peft marks as such, whatever the kind of adapter."""
    return [module for module in model.modules() if hasattr(module, "adapter_layer_names") and hasattr(module, "merged_adapters")]


def _parts(layer: Any, adapter: str) -> list[Any]:
    """Modules and parameters of one adapter in a layer."""
    holders = (getattr(layer, name, None) for name in layer.adapter_layer_names)
    return [part for holder in holders for name, part in getattr(holder, "items", dict)() if name == adapter]


def _size(part: Any) -> int:
    return sum(map(tensors.size, part.parameters())) if hasattr(part, "parameters") else tensors.size(part)


def _file(folder: Any, subfolder: Any) -> str | None:
    """The adapter file in a local folder; None where the adapter comes from elsewhere."""
    if not isinstance(folder, str | os.PathLike):
        return None
    paths = (os.path.join(folder, subfolder or "", name) for name in _FILES)  # noqa: PTH118 - no Path object on the recording side
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113 - as above


def _describe_inject(position: int) -> Any:
    def describe(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
        stage.module = argument(args, kwargs, position, "model") if position else args[0]
        stage.file(_file(argument(args, kwargs, position + 1, "model_id"), kwargs.get("subfolder")))
        stage.attributes[names.ADAPTER_NAME] = str(argument(args, kwargs, position + 2, "adapter_name", "default"))

    return describe


def _measure_from_pretrained(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage.outputs = [result]
    _count_injected(stage, result)


def _measure_load_adapter(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    _count_injected(stage, args[0])


def _count_injected(stage: OpenStage | OpenLoad, model: Any) -> None:
    adapter = stage.attributes[names.ADAPTER_NAME]
    stage.attributes[names.INJECTED_LAYERS] = sum(bool(_parts(layer, adapter)) for layer in _layers(model))


def _describe_merge(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    _merging(stage, args[0], argument(args, kwargs, 1, "adapter_names"))


def _describe_unmerge(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    merged = [(layer, list(layer.merged_adapters)) for layer in _layers(args[0]) if layer.merged_adapters]
    stage.module = getattr(args[0], "model", args[0])
    _changing(stage, sorted({str(adapter) for _, adapters in merged for adapter in adapters}), merged)


def _describe_unload(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    if not argument(args, kwargs, 1, "merge", default=True):
        stage.cancelled = True  # type: ignore[union-attr] # rows of this file are stages; unloading without a merge is none
        return
    _merging(stage, args[0], argument(args, kwargs, 4, "adapter_names"))


def _merging(stage: OpenStage | OpenLoad, tuner: Any, adapters: Any) -> None:
    """Layers and bytes are counted before: merging and unloading replaces the layers."""
    stage.module = getattr(tuner, "model", tuner)
    names_of = adapters if adapters is not None else getattr(tuner, "active_adapters", ())
    wanted = [names_of] if isinstance(names_of, str) else list(names_of() if callable(names_of) else names_of)
    left = [(layer, [adapter for adapter in wanted if adapter not in layer.merged_adapters]) for layer in _layers(tuner)]
    _changing(stage, wanted, left)


def _changing(stage: OpenStage | OpenLoad, adapters: Iterable[Any], changes: Iterable[tuple[Any, list[str]]]) -> None:
    """Say which adapters go into or out of the base weights; of each layer, only those that it has."""
    found = [[part for adapter in those for part in _parts(layer, adapter)] for layer, those in changes]
    stage.attributes[names.ADAPTER_NAME] = ", ".join(map(str, adapters))
    stage.attributes[names.MERGED_LAYERS] = sum(map(bool, found))
    stage.size = sum(_size(part) for parts in found for part in parts)


ROWS = (
    Target(
        module="peft.peft_model",
        attribute="PeftModel.from_pretrained",
        stage=names.MERGE_LORA,
        describe=_describe_inject(1),
        measure=_measure_from_pretrained,
        why="injects adapter layers and reads their weights",
    ),
    Target(
        module="peft.peft_model",
        attribute="PeftModel.load_adapter",
        stage=names.MERGE_LORA,
        describe=_describe_inject(0),
        measure=_measure_load_adapter,
        why="one more adapter into a model that has some",
    ),
    Target(
        module="peft.tuners.tuners_utils",
        attribute="BaseTuner.merge_adapter",
        stage=names.MERGE_LORA,
        describe=_describe_merge,
        why="adds the deltas to the base weights",
    ),
    Target(
        module="peft.tuners.tuners_utils",
        attribute="BaseTuner.unmerge_adapter",
        stage=names.MERGE_LORA,
        describe=_describe_unmerge,
        why="takes the deltas out again, before another adapter is merged",
    ),
    Target(
        module="peft.tuners.tuners_utils",
        attribute="BaseTuner._unload_and_optionally_merge",
        stage=names.MERGE_LORA,
        describe=_describe_unload,
        why="`merge_and_unload` of every tuner ends here",
    ),
    Target(
        module="peft.tuners.lora.model",
        attribute="LoraModel._unload_and_optionally_merge",
        stage=names.MERGE_LORA,
        describe=_describe_unload,
        why="older releases have it on each tuner",
    ),
)
