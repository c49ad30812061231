"""timm: `create_model` with weights, from a hub, a file or a checkpoint of the user's, and `load_checkpoint` into a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import names
from loadspan.instrument.calls import record_construction
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import roots

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_LIBRARY = "timm"


def _with_weights(args: Args, kwargs: Kwargs) -> bool:
    """Whether a model gets weights: without, its construction is no load."""
    wanted = argument(args, kwargs, 1, "pretrained", default=False) or argument(args, kwargs, 4, "checkpoint_path")
    return bool(wanted) and not roots.same(_LIBRARY, None)


def _describe_model(load: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    load.known_as(str(argument(args, kwargs, 0, "model_name")))  # type: ignore[union-attr] # a root's frame is a load


def _describe_checkpoint(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = argument(args, kwargs, 0, "model")


def _knows(args: Args, kwargs: Kwargs) -> bool:
    """Make known the class of a model that is built for a load: it is not known before. No stage: its weights are read in it, too."""
    kind = argument(args, kwargs, 0, "model_cls")
    if roots.part(args, kwargs) and isinstance(kind, type):
        record_construction(kind, _CONSTRUCTION)
    return False


_CONSTRUCTION = Target(
    module="timm.models._builder",
    attribute="model_cls.__init__",
    stage=names.INITIALIZE,
    describe=roots.made,
    when=roots.part,
    why="the constructor of the class that is built",
)

ROWS = (
    Target(
        module="timm.models._factory",
        attribute="create_model",
        kind=Kind.ROOT,
        when=_with_weights,
        describe=_describe_model,
        why="a model by its name, with weights",
    ),
    Target(
        module="timm.models._helpers",
        attribute="load_checkpoint",
        stage=names.LOAD_STATE_DICT,
        describe=_describe_checkpoint,
        why="reads a checkpoint into a model that is there",
    ),
    Target(
        module="timm.models._builder",
        attribute="load_pretrained",
        stage=names.LOAD_STATE_DICT,
        describe=_describe_checkpoint,
        why="reads a checkpoint, and fits it to what differs in the model",
    ),
    Target(
        module="timm.models._builder",
        attribute="build_model_with_cfg",
        stage=names.INITIALIZE,
        when=_knows,
        why="is told the class of the model",
    ),
)
