"""transformers: what is made in a load besides its weights: configurations, tokenizers, processors, modules, and the code for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.patching import Args, Kwargs, Target, argument
from loadspan.instrument.targets import roots

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage


def _describe_imported(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.attributes[names.MADE] = f"{args[0].__name__}.{argument(args, kwargs, 1, 'module_name')}"


def _describe_class(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.attributes[names.MADE] = str(argument(args, kwargs, 0, "impl"))


def _describe_component(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    # Its last argument is made in a function for each kind: `_resolve_image_processor.<locals>.load`.
    made_in = getattr(argument(args, kwargs, 2, "loader"), "__qualname__", "").partition(".")[0]
    stage.attributes[names.MADE] = made_in.removeprefix("_resolve_")


def initializes(module: str, attribute: str, why: str, describe: Any = roots.made) -> Target:
    """What makes an object, by default a constructor or a class method: a stage in a load, and nothing outside."""
    return Target(module=f"transformers.{module}", attribute=attribute, stage=names.INITIALIZE, describe=describe, when=roots.part, why=why)


def _rows() -> list[Target]:
    tokenizers = "reads the vocabulary and builds the tokenizer"
    processors = "reads the settings of a processor and makes it"
    configurations = "reads the configuration and makes an object of it"
    return [
        initializes(
            "utils.import_utils", "_LazyModule._get_module", "code of a model, imported when its class is asked for", _describe_imported
        ),
        initializes("utils.import_utils", "_is_package_available", "looks for a package in all places, once for each", None),
        initializes("configuration_utils", "PreTrainedConfig.from_pretrained", configurations),
        initializes("configuration_utils", "PretrainedConfig.from_pretrained", configurations + "; its name before release 5"),
        initializes("models.auto.configuration_auto", "AutoConfig.from_pretrained", configurations),
        initializes("models.auto.tokenization_auto", "AutoTokenizer.from_pretrained", tokenizers),
        initializes("tokenization_utils_base", "PreTrainedTokenizerBase.from_pretrained", tokenizers),
        initializes("models.auto.processing_auto", "AutoProcessor.from_pretrained", processors),
        initializes("processing_utils", "ProcessorMixin.from_pretrained", processors),
        initializes("models.auto.image_processing_auto", "AutoImageProcessor.from_pretrained", processors),
        initializes("image_processing_base", "ImageProcessingMixin.from_pretrained", processors),
        initializes("models.auto.feature_extraction_auto", "AutoFeatureExtractor.from_pretrained", processors),
        initializes("feature_extraction_utils", "FeatureExtractionMixin.from_pretrained", processors),
        initializes("models.auto.video_processing_auto", "AutoVideoProcessor.from_pretrained", processors),
        initializes("pipelines", "infer_framework_load_model", "finds the class of a model, in release 4", None),
        initializes("pipelines", "_resolve_impl", "code of a pipeline, imported when it is asked for", _describe_class),
        initializes(
            "pipelines", "_load_pipeline_component", "a part of a pipeline: whether it is missing takes time, too", _describe_component
        ),
        initializes("pipelines.base", "Pipeline.__init__", "puts model and processors together; the model goes to its device in it"),
        initializes("generation.utils", "GenerationMixin.adjust_generation_fn", "settings of text generation, and code of the model's own"),
        initializes("generation.configuration_utils", "GenerationConfig.from_pretrained", configurations),
        initializes("modeling_utils", "get_torch_context_manager_or_global_device", "makes a tensor, to know where they are made", None),
        initializes("quantizers.base", "HfQuantizer.preprocess_model", "replaces modules by quantized ones, before there are weights"),
        initializes("modeling_utils", "PreTrainedModel._initialize_missing_keys", "values for weights that the checkpoint lacks"),
        initializes("modeling_utils", "PreTrainedModel._move_missing_keys_from_meta_to_device", "memory for weights it lacks"),
        initializes("modeling_utils", "PreTrainedModel._move_missing_keys_from_meta_to_cpu", "the same, in release 4"),
    ]


ROWS = tuple(_rows())
