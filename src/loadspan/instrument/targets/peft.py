"""
peft: adapters put into a model, and merged into its weights.

`merge_and_unload` is reached through `PeftModel.__getattr__`, so the tuner classes are patched, not `PeftModel`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.calls import recorded
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import adapters, tensors

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def _file(folder: Any, subfolder: Any) -> str | None:
    """The adapter file in a local folder; None where the adapter comes from elsewhere."""
    if not isinstance(folder, str | os.PathLike):
        return None
    paths = (os.path.join(folder, subfolder or "", name) for name in _FILES)  # noqa: PTH118 - no Path object on the recording side
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113 - as above


def _describe_load(position: int, action: str = adapters.LOAD, source: str = "model_id") -> Any:
    """Of a function that takes the model at *position*, then the folder, then the name of the adapter."""

    def describe(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
        stage.module = argument(args, kwargs, position, "model")
        stage.file(_file(argument(args, kwargs, position + 1, source), kwargs.get("subfolder")))
        adapters.called(stage, [argument(args, kwargs, position + 2, "adapter_name", "default")], action)

    return describe


def _describe_load_adapter(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    _describe_load(0)(stage, args, kwargs)
    if argument(args, kwargs, 2, "adapter_name") in getattr(args[0], "peft_config", ()):
        stage.attributes[names.INJECTED_LAYERS] = 0  # its weights are read into the layers that are there


def _measure_from_pretrained(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage.outputs = [result]


def _describe_injection(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.opens = False  # type: ignore[union-attr] # rows of this file are stages; a new adapter, to be trained, is not loaded
    stage.module = argument(args, kwargs, 1, "model")


def _measure_injection(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    adapters.injected(stage, argument(args, kwargs, 1, "model"), argument(args, kwargs, 2, "adapter_name"))


def _describe_merge(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = getattr(args[0], "model", args[0])
    adapters.merging(stage, [args[0]], argument(args, kwargs, 1, "adapter_names"))


def _describe_unmerge(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = getattr(args[0], "model", args[0])
    adapters.unmerging(stage, [args[0]])


def _describe_unload(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    if not argument(args, kwargs, 1, "merge", default=True):
        stage.cancelled = True  # type: ignore[union-attr] # as above; unloading without a merge is none
        return
    stage.module = getattr(args[0], "model", args[0])
    adapters.merging(stage, [args[0]], argument(args, kwargs, 4, "adapter_names"))


def _describe_activate(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = args[0]
    adapters.called(stage, adapters.listed(argument(args, kwargs, 1, "adapter_name")), adapters.ACTIVATE)


def _describe_combine(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = getattr(args[0], "model", args[0])
    adapters.called(stage, [argument(args, kwargs, 3, "adapter_name")], adapters.COMBINE)
    sources = adapters.listed(argument(args, kwargs, 1, "adapters"))
    found = adapters.layers(args[0])
    stage.size = sum(adapters.size(part) for layer in found for adapter in sources for part in adapters.parts(layer, adapter))


def _describe_state_dict(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = argument(args, kwargs, 0, "model")
    state_dict = argument(args, kwargs, 1, "state_dict", kwargs.get("peft_model_state_dict"))
    stage.things = list(state_dict.values())
    stage.size = tensors.sizes(stage.things)


_INJECT = Target(
    module="peft.tuners.tuners_utils",
    attribute="BaseTuner.inject_adapter",
    stage=names.INITIALIZE,
    describe=_describe_injection,
    measure=_measure_injection,
    why="see the row",
)
_WEIGHTS = Target(
    module="peft.utils.save_and_load",
    attribute="set_peft_model_state_dict",
    stage=names.LOAD_STATE_DICT,
    describe=_describe_state_dict,
    why="see the row",
)

ROWS = (
    Target(
        module="peft.peft_model",
        attribute="PeftModel.from_pretrained",
        stage=names.MERGE_LORA,
        when=adapters.outermost,
        describe=_describe_load(1),
        measure=_measure_from_pretrained,
        why="injects adapter layers and reads their weights",
    ),
    Target(
        module="peft.peft_model",
        attribute="PeftModel.load_adapter",
        stage=names.MERGE_LORA,
        when=adapters.outermost,
        describe=_describe_load_adapter,
        why="one more adapter into a model that has some",
    ),
    Target(
        module="peft.peft_model",
        attribute="PeftModel.set_adapter",
        stage=names.MERGE_LORA,
        when=adapters.outermost,
        describe=_describe_activate,
        why="another of the adapters that are there; what was merged is taken out",
    ),
    Target(
        module="peft.tuners.tuners_utils",
        attribute="BaseTuner.inject_adapter",
        kind=Kind.REPLACE,
        replace=lambda original: recorded(original, adapters.LayerByLayer(_INJECT)),
        why="every adapter's layers are made here, which takes longer than reading them",
    ),
    Target(
        module="peft.utils.save_and_load",
        attribute="set_peft_model_state_dict",
        kind=Kind.REPLACE,
        replace=lambda original: recorded(original, adapters.LayerByLayer(_WEIGHTS)),
        why="puts the weights into the layers, by other names",
    ),
    Target(
        module="peft.tuners.tuners_utils",
        attribute="BaseTuner.merge_adapter",
        stage=names.MERGE_LORA,
        when=adapters.outermost,
        describe=_describe_merge,
        why="adds the deltas to the base weights",
    ),
    Target(
        module="peft.tuners.tuners_utils",
        attribute="BaseTuner.unmerge_adapter",
        stage=names.MERGE_LORA,
        when=adapters.outermost,
        describe=_describe_unmerge,
        why="takes the deltas out again, before another adapter is merged",
    ),
    Target(
        module="peft.tuners.tuners_utils",
        attribute="BaseTuner._unload_and_optionally_merge",
        stage=names.MERGE_LORA,
        when=adapters.outermost,
        describe=_describe_unload,
        why="`merge_and_unload` of every tuner ends here",
    ),
    Target(
        module="peft.tuners.lora.model",
        attribute="LoraModel._unload_and_optionally_merge",
        stage=names.MERGE_LORA,
        when=adapters.outermost,
        describe=_describe_unload,
        why="older releases have it on each tuner",
    ),
    Target(
        module="peft.tuners.lora.model",
        attribute="LoraModel.add_weighted_adapter",
        stage=names.MERGE_LORA,
        when=adapters.outermost,
        describe=_describe_combine,
        why="makes one adapter of several, and injects it",
    ),
    Target(
        module="peft.utils.hotswap",
        attribute="hotswap_adapter",
        stage=names.MERGE_LORA,
        when=adapters.outermost,
        describe=_describe_load(0, adapters.SWAP, "model_name_or_path"),
        why="reads an adapter over one that is there: nothing is injected",
    ),
    Target(
        module="peft.utils.hotswap",
        attribute="hotswap_adapter_from_state_dict",
        stage=names.LOAD_STATE_DICT,
        describe=_describe_state_dict,
        why="where a swap puts the weights; diffusers calls it, too",
    ),
)
