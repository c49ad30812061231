"""transformers: what is made in a load besides its weights: configurations, tokenizers, processors, modules, and the code for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def initializes(module: str, attribute: str, why: str) -> Target:
    """A constructor, or a class method that makes an object: a stage in a load, and nothing outside."""
    return Target(
        module=f"transformers.{module}", attribute=attribute, stage=names.INITIALIZE, describe=roots.made, when=roots.part, why=why
    )


def _rows() -> list[Target]:
    tokenizers = "reads the vocabulary and builds the tokenizer"
    processors = "reads the settings of a processor and makes it"
    configurations = "reads the configuration and makes an object of it"
    return [
        Target(
            module="transformers.utils.import_utils",
            attribute="_LazyModule._get_module",
            stage=names.INITIALIZE,
            describe=_describe_imported,
            when=roots.part,
            why="the code of a model is imported when its class is first asked for",
        ),
        Target(
            module="transformers.utils.import_utils",
            attribute="_is_package_available",
            stage=names.INITIALIZE,
            when=roots.part,
            why="looks through all places where a package could be installed, once for each",
        ),
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
        Target(
            module="transformers.pipelines",
            attribute="_resolve_impl",
            stage=names.INITIALIZE,
            describe=_describe_class,
            when=roots.part,
            why="the code of a pipeline is imported when it is first asked for",
        ),
        Target(
            module="transformers.pipelines",
            attribute="_load_pipeline_component",
            stage=names.INITIALIZE,
            describe=_describe_component,
            when=roots.part,
            why="a tokenizer or processor of a pipeline, that may be missing: whether it is takes time, too",
        ),
        initializes("pipelines.base", "Pipeline.__init__", "puts model and processors together; the model goes to its device in it"),
        initializes("generation.utils", "GenerationMixin.adjust_generation_fn", "settings of text generation, and code of the model's own"),
        initializes("generation.configuration_utils", "GenerationConfig.from_pretrained", configurations),
        Target(
            module="transformers.modeling_utils",
            attribute="get_torch_context_manager_or_global_device",
            stage=names.INITIALIZE,
            when=roots.part,
            why="makes a tensor, often the first of the process, to know where tensors are made",
        ),
        initializes("quantizers.base", "HfQuantizer.preprocess_model", "replaces modules by quantized ones, before there are weights"),
        initializes("modeling_utils", "PreTrainedModel._initialize_missing_keys", "values for weights that the checkpoint lacks"),
        initializes("modeling_utils", "PreTrainedModel._move_missing_keys_from_meta_to_device", "memory for weights it lacks"),
        initializes("modeling_utils", "PreTrainedModel._move_missing_keys_from_meta_to_cpu", "the same, in release 4"),
    ]


ROWS = tuple(_rows())
