"""
transformers' auto classes, each for itself.

Each has a copy of its base's `from_pretrained`, made of the function's own code when the classes are defined. A wrapper around the base's
would be copied with it if it was there first, and stay for good; if it comes later, none of them has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan.instrument.patching import Kind, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.instrument.patching import Args, Describe, Kwargs

_MODULE = "transformers.models.auto.modeling_auto"
TASKS = (
    *("AudioClassification", "AudioFrameClassification", "AudioTokenization", "AudioXVector", "CTC", "CausalLM", "Decision"),
    *("DepthEstimation", "DocumentQuestionAnswering", "ImageClassification", "ImageMatting", "ImageSegmentation", "ImageTextToText"),
    *("InstanceSegmentation", "MaskedImageModeling", "MaskedLM", "MultimodalLM", "MultipleChoice", "NextSentencePrediction"),
    *("NormalEstimation", "ObjectDetection", "PointmapEstimation", "PoseEstimation", "PreTraining", "QuestionAnswering", "RNNT"),
    *("SemanticSegmentation", "Seq2SeqLM", "SequenceClassification", "SpeechSeq2Seq", "TDT", "TableQuestionAnswering", "TableRecognition"),
    *("TextRecognition", "TimeSeriesPrediction", "TokenClassification", "UniversalSegmentation", "VideoClassification", "Vision2Seq"),
    *("VisualQuestionAnswering", "ZeroShotImageClassification", "ZeroShotObjectDetection"),
)
"""Of every release from 4.40 on."""


def rows(when: Callable[[Args, Kwargs], bool], describe: Describe) -> list[Target]:
    """A root for each of them."""
    return [
        Target(
            module=_MODULE,
            attribute=f"{name}.from_pretrained",
            kind=Kind.ROOT,
            when=when,
            describe=describe,
            why="chooses the class from the configuration",
        )
        for name in ("AutoModel", *(f"AutoModelFor{task}" for task in TASKS))
    ]
