"""
sentence-transformers: models that read their modules when they are constructed. What transformers loads in it is a load inside.

Since release 6 all kinds of models have one base; before, each had a constructor of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import names
from loadspan.instrument.described import model_name
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import roots

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_LIBRARY = "sentence_transformers"


def _source(args: Args, kwargs: Kwargs) -> str | None:
    return model_name(argument(args, kwargs, 1, "model_name_or_path") or kwargs.get("model_name"))


def _reads(args: Args, kwargs: Kwargs) -> bool:
    """Whether a model is read, and not made of modules that are there."""
    source = _source(args, kwargs)
    return source is not None and not roots.same(_LIBRARY, source)


def _describe_root(load: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    load.known_as(_source(args, kwargs))  # type: ignore[union-attr] # a root's frame is a load


def _root(module: str, attribute: str, why: str) -> Target:
    return Target(
        module=f"sentence_transformers.{module}", attribute=attribute, kind=Kind.ROOT, when=_reads, describe=_describe_root, why=why
    )


def _describe_module(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    if args:
        roots.made(stage, args, kwargs)


def _modules(module: str, attribute: str, why: str) -> Target:
    return Target(
        module=f"sentence_transformers.{module}",
        attribute=attribute,
        stage=names.INITIALIZE,
        when=roots.part,
        describe=_describe_module,
        why=why,
    )


def _asks(module: str, kind: str) -> Target:
    return Target(
        module=f"sentence_transformers.{module}",
        attribute=f"{kind}.set_base_model",
        stage=names.DOWNLOAD,
        when=roots.part,
        why="asks the hub for the model that this one was made of, for its card, unless that is offline",
    )


ROWS = (
    _root("base.model", "BaseModel.__init__", "bi-encoders, cross-encoders, sparse and multi-vector encoders"),
    _root("SentenceTransformer", "SentenceTransformer.__init__", "bi-encoders, before release 6"),
    _root("cross_encoder.CrossEncoder", "CrossEncoder.__init__", "cross-encoders, before release 6"),
    _modules("base.modules.module", "Module.load", "makes a module; its weights are read in it, and have stages of their own"),
    _modules("base.modules.dense", "Dense.load", "the same"),
    _modules("sentence_transformer.modules.static_embedding", "StaticEmbedding.load", "the same"),
    _modules("models.Module", "Module.load", "the same, before release 6"),
    _modules("models.Dense", "Dense.load", "the same, before release 6"),
    _modules("models.StaticEmbedding", "StaticEmbedding.load", "the same, before release 6"),
    _modules("base.modules.transformer", "Transformer.__init__", "makes a module; transformers loads the model in it"),
    _modules("models.Transformer", "Transformer.__init__", "the same, before release 6"),
    _modules("sentence_transformer.model_card", "SentenceTransformerModelCardData.__init__", "looks for versions of what is installed"),
    _modules("model_card", "SentenceTransformerModelCardData.__init__", "the same, before release 6"),
    _asks("base.model_card", "BaseModelCardData"),
    _asks("model_card", "SentenceTransformerModelCardData"),
)
