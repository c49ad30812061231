"""
peft: adapters put into a model, and merged into its weights.

`merge_and_unload` is reached through `PeftModel.__getattr__`, so the tuner classes are patched, not `PeftModel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.patching import Args, Kwargs, Target, argument

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.instrument.frames import OpenLoad, OpenStage


def _layers(model: Any) -> list[Any]:
    """Adapter layers of a model: what peft marks as such, whatever the kind of adapter."""
    return [module for module in model.modules() if hasattr(module, "adapter_layer_names") and hasattr(module, "merged_adapters")]


def _adapter_size(layers: Iterable[Any], adapters: Iterable[str]) -> int:
    """Bytes of the adapter weights of *layers*."""
    wanted = set(adapters)
    total = 0
    for layer in layers:
        for name in layer.adapter_layer_names:
            holder = getattr(layer, name, None)
            for adapter, part in getattr(holder, "items", dict)():
                if adapter in wanted:
                    total += sum(tensor.nbytes for tensor in part.parameters()) if hasattr(part, "parameters") else part.nbytes
    return total


def _describe_inject(position: int) -> Any:
    def describe(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
        stage.module = argument(args, kwargs, position, "model") if position else args[0]
        stage.file(argument(args, kwargs, position + 1, "model_id"))
        stage.attributes[names.ADAPTER_NAME] = str(argument(args, kwargs, position + 2, "adapter_name", "default"))

    return describe


def _measure_from_pretrained(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage.outputs = [result]
    _count_injected(stage, result)


def _measure_load_adapter(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    _count_injected(stage, args[0])


def _count_injected(stage: OpenStage | OpenLoad, model: Any) -> None:
    adapter = stage.attributes[names.ADAPTER_NAME]
    layers = [layer for layer in _layers(model) if any(adapter in (getattr(layer, name, None) or ()) for name in layer.adapter_layer_names)]
    stage.attributes[names.INJECTED_LAYERS] = len(layers)


def _describe_merge(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    _merging(stage, args[0], argument(args, kwargs, 1, "adapter_names"))


def _describe_unmerge(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    merged = [layer for layer in _layers(args[0]) if layer.merged_adapters]
    adapters = sorted({str(adapter) for layer in merged for adapter in layer.merged_adapters})
    stage.module = getattr(args[0], "model", args[0])
    stage.attributes[names.ADAPTER_NAME] = ", ".join(adapters)
    stage.attributes[names.MERGED_LAYERS] = len(merged)
    stage.size = _adapter_size(merged, adapters)


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
    layers = [layer for layer in _layers(tuner) if not set(wanted) <= set(layer.merged_adapters)]
    stage.attributes[names.ADAPTER_NAME] = ", ".join(map(str, wanted))
    stage.attributes[names.MERGED_LAYERS] = len(layers)
    stage.size = _adapter_size(layers, wanted)


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
