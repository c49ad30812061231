"""
diffusers: pipelines and their components, each a load; single files; LoRAs put into a pipeline and merged.

A pipeline's components are loads inside its load. Weights are set tensor by tensor (five `Tensor.to` for each, nearly all of which do
nothing): what is recorded is the function around that, `load_model_dict_into_meta`. A cast to another type happens in it, too, and is
told by its `loadspan.dtype`: only a clock around every tensor could tell its seconds apart.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.calls import record_construction, wrap
from loadspan.instrument.described import model_name
from loadspan.instrument.destination import named, settled
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import OURS, Args, Kind, Kwargs, Target, argument, marked, patch_type
from loadspan.instrument.targets import adapters, operations, roots, tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.instrument.frames import OpenLoad, OpenStage

# Roots


def _describe_root(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    """A class method whose first argument is the model's id or path."""
    name = model_name(argument(args, kwargs, 1, "pretrained_model_name_or_path"))
    subfolder = kwargs.get("subfolder")
    frame.known_as(f"{name}/{subfolder}" if name and subfolder else name)  # type: ignore[union-attr] # of a root, which is a load


def _describe_single_file(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    """A class method whose first argument is a file, an address of one, or what was read from it."""
    source = argument(args, kwargs, 1, "pretrained_model_link_or_path")
    if source is None:
        source = kwargs.get("pretrained_model_link_or_path_or_dict")
    frame.known_as(model_name(source) or kwargs.get("subfolder"))  # type: ignore[union-attr] # as above
    _record_mappings()


def _describe_converted(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    """A function that makes a model of transformers of what was read from a single file of diffusers."""
    frame.known_as(kwargs.get("subfolder"))  # type: ignore[union-attr] # as above
    record_construction(argument(args, kwargs, 0, "cls"), _CONSTRUCT)


class _Entry:
    """An entry of a table, whose values are patched as attributes are."""


def _record_mappings() -> None:
    """Record the functions that turn an original checkpoint into one of diffusers: they are only in a table of the library's own."""
    table = getattr(sys.modules.get("diffusers.loaders.single_file_model"), "SINGLE_FILE_LOADABLE_CLASSES", {})
    for entry in table.values():
        function = entry.get(_MAPPING)
        if function is not None and getattr(function, OURS, None) is None:
            owner: Any = _Entry()
            owner.__dict__ = entry  # so that it is put back as attributes are
            patch_type(owner, _MAPPING, marked(wrap(_MAP, function), _MAP))


# What happens in a root


def _describe_config(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.opens = False  # type: ignore[union-attr] # a stage; a configuration is no model
    folder, name = argument(args, kwargs, 1, "pretrained_model_name_or_path"), getattr(args[0], "config_name", None)
    if isinstance(folder, str | os.PathLike) and isinstance(name, str):
        path = os.path.join(folder, kwargs.get("subfolder") or "", name)  # noqa: PTH118 - no Path object on the recording side
        if os.path.isfile(path):  # noqa: PTH113 - as above
            stage.file(path)


def _declared(args: Args, kwargs: Kwargs) -> bool:
    """Whether a load was declared here: what has no weights of its own is recorded in one, and opens none."""
    return roots.around() is not None


_INSIDE = roots.inside("diffusers")


def _describe_part(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.opens = False  # type: ignore[union-attr] # as above: something without weights


def _measure_pipeline_class(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    if isinstance(result, type):
        record_construction(result, _CONSTRUCT)


def _describe_component(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    _describe_part(stage, args, kwargs)
    stage.attributes[names.MADE] = str(argument(args, kwargs, 1, "class_name"))


def _to_device(stage: OpenStage | OpenLoad, device_map: Any) -> None:
    devices = set(device_map.values()) if isinstance(device_map, dict) else set()
    if len(devices) == 1:
        stage.destination = settled(named(devices.pop()))  # type: ignore[union-attr] # as above


def _describe_state_dict(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = argument(args, kwargs, 0, "model", kwargs.get("model_to_load"))
    unexpected = set(kwargs.get("unexpected_keys") or ())
    kind = sys.modules["torch"].Tensor
    state_dict = argument(args, kwargs, 1, "state_dict")
    stage.things = [value for key, value in state_dict.items() if isinstance(value, kind) and key not in unexpected]
    stage.size = tensors.sizes(stage.things)
    operations.watch_quantizer(kwargs.get("hf_quantizer"))
    _to_device(stage, kwargs.get("device_map"))


def _measure_state_dict(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    before = next((value.dtype for value in stage.things if value.is_floating_point()), None)
    after = next((value for value in stage.module.parameters() if value.is_floating_point() and not value.is_meta), None)
    if before is not None and after is not None and after.dtype != before:
        stage.attributes[names.DTYPE] = str(after.dtype).removeprefix("torch.")
    elif stage.destination is None:  # type: ignore[union-attr] # as above
        stage.rated = False  # type: ignore[union-attr] # as above; tensors change hands, no byte moves


def _describe_weights(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    """`_load_pretrained_model`: all files of a model, of which a sharded one reads each in here."""
    stage.module = argument(args, kwargs, 1, "model")
    _to_device(stage, kwargs.get("device_map"))
    _describe_part(stage, args, kwargs)


def _measure_weights(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    # What was done with the tensors is known of the calls inside.
    stage.rated = names.DTYPE in stage.attributes or stage.destination is not None  # type: ignore[union-attr] # as above


def _measure_gguf(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage.size = tensors.sizes(list(result.values()))


def _describe_gguf(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.file(argument(args, kwargs, 0, "gguf_checkpoint_path"), "gguf")


# LoRAs. A pipeline hands on to its components; the outermost call is the stage


def _components(pipeline: Any, chosen: Any = None) -> list[Any]:
    """The models of a pipeline that may have LoRAs, or those of them that were chosen."""
    found = (getattr(pipeline, name, None) for name in chosen or getattr(pipeline, "_lora_loadable_modules", ()))
    return [model for model in found if hasattr(model, "modules")]


def _about(stage: OpenStage | OpenLoad, host: Any) -> None:
    """Say that a stage is about a model, or about the first model of a pipeline that may have LoRAs."""
    stage.module = host if isinstance(host, sys.modules["torch"].nn.Module) else next(iter(_components(host)), None)


def _describe_lora(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    """`load_lora_weights` of a pipeline, `load_lora_adapter` of a model: file, folder, id or state dict, and then options."""
    _about(stage, args[0])
    source = argument(args, kwargs, 1, "pretrained_model_name_or_path_or_dict")
    _describe_source(stage, source, kwargs.get("weight_name"))
    name = kwargs.get("adapter_name")
    adapters.called(stage, [] if name is None else [name], adapters.SWAP if kwargs.get("hotswap") else adapters.LOAD)


def _describe_text_lora(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = argument(args, kwargs, 2, "text_encoder")
    name = kwargs.get("adapter_name")
    adapters.called(stage, [] if name is None else [name], adapters.LOAD)


def _describe_source(stage: OpenStage | OpenLoad, source: Any, weight_name: Any) -> None:
    if isinstance(source, dict):
        stage.things = list(tensors.find(source))
        stage.size = tensors.sizes(stage.things)
    elif isinstance(source, str | os.PathLike):
        path = os.path.join(source, weight_name) if isinstance(weight_name, str) else os.fspath(source)  # noqa: PTH118 - as above
        if os.path.isfile(path):  # noqa: PTH113 - as above
            stage.file(path)


def _describe_fuse(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    _about(stage, args[0])
    adapters.merging(stage, _components(args[0], argument(args, kwargs, 1, "components")), argument(args, kwargs, 4, "adapter_names"))


def _describe_unfuse(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    _about(stage, args[0])
    adapters.unmerging(stage, _components(args[0], argument(args, kwargs, 1, "components")))


def _describe_fuse_model(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = args[0]
    adapters.merging(stage, [args[0]], argument(args, kwargs, 3, "adapter_names"))


def _describe_unfuse_model(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = args[0]
    adapters.unmerging(stage, [args[0]])


def _describing(action: str) -> Any:
    """Of a method of a pipeline or model that takes the names of adapters, or none."""

    def describe(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
        _about(stage, args[0])
        adapters.called(stage, adapters.listed(argument(args, kwargs, 1, "adapter_names")), action)

    return describe


def _watch_subclasses(original: Any) -> Any:
    """Record `load_lora_weights` of each class of pipelines: all have their own, and call no common one."""
    kind = sys.modules["diffusers.loaders.lora_base"].LoraBaseMixin
    _record_subclasses(kind)

    @functools.wraps(original)
    def init_subclass(cls: Any, *args: Any, **kwargs: Any) -> None:
        super(kind, cls).__init_subclass__(*args, **kwargs)
        if recorder.active:
            safely(_record_lora, cls)

    init_subclass.__qualname__ = f"{kind.__qualname__}.{init_subclass.__name__}"  # as what is inherited calls itself here
    return classmethod(init_subclass)


def _record_subclasses(kind: Any) -> None:
    for found in kind.__subclasses__():
        _record_lora(found)
        _record_subclasses(found)


def _record_lora(kind: Any) -> None:
    function = vars(kind).get(_LORA.attribute.rpartition(".")[2])
    if callable(function) and getattr(function, OURS, None) is None:
        patch_type(kind, function.__name__, marked(wrap(_LORA, function), _LORA))


_MAPPING = "checkpoint_mapping_fn"
_MAP = Target(
    module="diffusers.loaders.single_file_model",
    attribute=f"SINGLE_FILE_LOADABLE_CLASSES.{_MAPPING}",
    stage=names.CONVERT,
    describe=_describe_part,
    why="an original checkpoint has other names and other layouts",
)
_CONSTRUCT = Target(
    module="diffusers.pipelines.pipeline_utils",
    attribute="DiffusionPipeline.__init__",
    stage=names.INITIALIZE,
    describe=_describe_part,
    why="the class of what is loaded is known only in the load",
)
_LORA = Target(
    module="diffusers.loaders.lora_base",
    attribute="LoraBaseMixin.load_lora_weights",
    stage=names.MERGE_LORA,
    describe=_describe_lora,
    when=adapters.outermost,
    why="reads a LoRA and puts its layers into each component",
)


def _root(module: str, attribute: str, describe: Callable[..., None], why: str) -> Target:
    return Target(module=f"diffusers.{module}", attribute=attribute, kind=Kind.ROOT, describe=describe, why=why)


def _part(module: str, attribute: str, why: str, stage: str = names.INITIALIZE, **more: Any) -> Target:
    return Target(
        module=f"diffusers.{module}", attribute=attribute, stage=stage, why=why, **({"describe": _describe_part, "when": _declared} | more)
    )


def _lora(module: str, attribute: str, describe: Callable[..., None], why: str) -> Target:
    return Target(
        module=f"diffusers.loaders.{module}",
        attribute=attribute,
        stage=names.MERGE_LORA,
        describe=describe,
        when=adapters.outermost,
        why=why,
    )


_STATE_DICT: dict[str, Any] = {
    "stage": names.LOAD_STATE_DICT,
    "when": None,
    "describe": _describe_state_dict,
    "measure": _measure_state_dict,
}
_WEIGHTS: dict[str, Any] = {"stage": names.LOAD_STATE_DICT, "describe": _describe_weights, "measure": _measure_weights}

ROWS = (
    _root("pipelines.pipeline_utils", "DiffusionPipeline.from_pretrained", _describe_root, "a pipeline, whose components are loads in it"),
    _root("models.modeling_utils", "ModelMixin.from_pretrained", _describe_root, "a model, alone or of a pipeline"),
    _root("loaders.single_file", "FromSingleFileMixin.from_single_file", _describe_single_file, "a pipeline from one original checkpoint"),
    _root("loaders.single_file_model", "FromOriginalModelMixin.from_single_file", _describe_single_file, "a model from one, or of one"),
    _root("loaders.single_file_utils", "create_diffusers_clip_model_from_ldm", _describe_converted, "a text encoder out of a single file"),
    _root("loaders.single_file_utils", "create_diffusers_t5_model_from_checkpoint", _describe_converted, "as above"),
    _part("configuration_utils", "ConfigMixin.load_config", "a file each", names.READ, describe=_describe_config),
    _part("configuration_utils", "ConfigMixin.from_config", "builds the modules"),
    _part("schedulers.scheduling_utils", "SchedulerMixin.from_pretrained", "a component without weights"),
    _part("pipelines.pipeline_utils", "load_sub_model", "a component, by a loader of its own", describe=_describe_component),
    _part("pipelines.pipeline_loading_utils", "get_class_obj_and_candidates", "imports what a component needs"),
    _part("pipelines.pipeline_loading_utils", "_get_pipeline_class", "imports the pipeline", measure=_measure_pipeline_class),
    _part("loaders.single_file_model", "_get_single_file_loadable_mapping_class", "imports every class it knows, the first time"),
    _part("loaders.single_file_utils", "convert_ldm_clip_checkpoint", "an original text encoder", names.CONVERT),
    _part("loaders.single_file_utils", "convert_open_clip_checkpoint", "as above", names.CONVERT),
    _part("models.modeling_utils", "ModelMixin._load_pretrained_model", "matches names, then as below", **_WEIGHTS),
    _part(
        "models.modeling_utils", "ModelMixin._fix_state_dict_keys_on_load", "looks through all modules for old names", names.LOAD_STATE_DICT
    ),
    _part("models.modeling_utils", "ModelMixin._convert_deprecated_attention_blocks", "its name in older releases", names.LOAD_STATE_DICT),
    _part("quantizers.base", "DiffusersQuantizer.preprocess_model", "replaces modules by quantized ones, before there are weights"),
    _part(
        "models.modeling_utils",
        "ModelMixin.state_dict",
        "lists what there is to load",
        names.LOAD_STATE_DICT,
        when=_INSIDE,
    ),
    _part("models.modeling_utils", "ModelMixin.eval", "goes through all modules"),
    _part("configuration_utils", "ConfigMixin.register_to_config", "where it came from"),
    _part("models.model_loading_utils", "load_model_dict_into_meta", "puts tensors into a model built without", **_STATE_DICT),
    _part("models.model_loading_utils", "_load_state_dict_into_model", "the same without accelerate", **_STATE_DICT),
    Target(
        module="diffusers.models.model_loading_utils",
        attribute="load_gguf_checkpoint",
        stage=names.DESERIALIZE,
        describe=_describe_gguf,
        measure=_measure_gguf,
        why="quantized single files",
    ),
    Target(
        module="diffusers.loaders.lora_base",
        attribute="LoraBaseMixin.__init_subclass__",
        kind=Kind.REPLACE,
        replace=_watch_subclasses,
        why="`load_lora_weights` of each class of pipelines is its own",
    ),
    _lora("lora_base", "_load_lora_into_text_encoder", _describe_text_lora, "one component"),
    _lora("lora_base", "LoraBaseMixin.fuse_lora", _describe_fuse, "adds the deltas to the base weights; where all classes' own end"),
    _lora("lora_base", "LoraBaseMixin.unfuse_lora", _describe_unfuse, "takes them out again; as above"),
    _lora("lora_base", "LoraBaseMixin.set_adapters", _describing(adapters.ACTIVATE), "another of the adapters that are there"),
    _lora("lora_base", "LoraBaseMixin.delete_adapters", _describing(adapters.REMOVE), "takes one out"),
    _lora("lora_base", "LoraBaseMixin.unload_lora_weights", _describing(adapters.REMOVE), "takes all out"),
    _lora("peft", "PeftAdapterMixin.load_lora_adapter", _describe_lora, "into one model"),
    _lora("peft", "PeftAdapterMixin.fuse_lora", _describe_fuse_model, "in one model"),
    _lora("peft", "PeftAdapterMixin.unfuse_lora", _describe_unfuse_model, "in one model"),
    _lora("peft", "PeftAdapterMixin.set_adapters", _describing(adapters.ACTIVATE), "in one model"),
    _lora("peft", "PeftAdapterMixin.delete_adapters", _describing(adapters.REMOVE), "from one model"),
    _lora("peft", "PeftAdapterMixin.unload_lora", _describing(adapters.REMOVE), "from one model"),
)
