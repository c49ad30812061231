"""torch: `torch.load`, `Module.load_state_dict`, device initialization. Moves of modules are in `moves`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.described import sample
from loadspan.instrument.destination import arrived, named, settled
from loadspan.instrument.patching import Args, Kwargs, Target, argument
from loadspan.instrument.targets import tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.instrument.frames import OpenLoad, OpenStage


def _torch() -> Any:
    return sys.modules["torch"]


def compiling() -> Callable[[], bool] | None:
    """Whether a call is being traced, in torch's own word: Dynamo knows it, and takes nothing of ours into the graph."""
    return getattr(getattr(_torch(), "compiler", None), "is_compiling", None)


# torch.load


def _describe_load(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    source = argument(args, kwargs, 0, "f")
    if isinstance(source, io.BytesIO):
        stage.things = [source]
        stage.attributes[names.READ_METHOD] = "memory"
    else:
        # A path has a name, too, but that is its last part.
        stage.file(source if isinstance(source, str | os.PathLike) else getattr(source, "name", None))

    stage.destination = settled(named(argument(args, kwargs, 1, "map_location")))  # type: ignore[union-attr] # rows of this file are stages


def _measure_load(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    found = list(tensors.find(result))
    if found:
        stage.size = tensors.unique_size(found)
        stage.destination = arrived(stage.destination, found[0].device)  # type: ignore[union-attr] # as above
    stage.outputs = [result] if isinstance(result, _torch().nn.Module) else sample(found)


def _describe_zip(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.attributes[names.FORMAT] = "zip"
    if argument(args, kwargs, 4, "overall_storage") is not None:
        # The storages are views on the mapped file: nothing was read.
        stage.attributes[names.READ_METHOD] = "mmap"
        stage.deferred = True  # type: ignore[union-attr] # rows of this file are stages


def _describe_legacy(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.attributes[names.FORMAT] = "pickle"


# Module.load_state_dict


def _describe_state_dict(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = args[0]
    state_dict = argument(args, kwargs, 1, "state_dict")
    if isinstance(state_dict, Mapping):
        stage.things = list(state_dict.values())
    if argument(args, kwargs, 3, "assign", default=False):
        stage.rated = False  # type: ignore[union-attr] # as above; tensors change hands, no byte moves


def _measure_state_dict(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    state_dict = argument(args, kwargs, 1, "state_dict")
    unexpected = set(getattr(result, "unexpected_keys", ()))
    kind = _torch().Tensor
    taken = [value for key, value in state_dict.items() if isinstance(value, kind) and not (unexpected and key in unexpected)]
    stage.size = tensors.sizes(taken) or None  # 0: nothing matched, the host may be about to raise


# Device initialization


def _describe_initialize(kind: str) -> Callable[[OpenStage | OpenLoad, Args, Kwargs], None]:
    def describe(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
        stage.attributes[names.DEVICE_TYPE] = kind
        stage.opens = False  # type: ignore[union-attr] # using a device is not loading a model

    return describe


def _initialize(kind: str) -> Target:
    def needed(args: Args, kwargs: Kwargs) -> bool:
        return not getattr(sys.modules.get(f"torch.{kind}"), "_initialized", True)

    return Target(
        module=f"torch.{kind}",
        attribute="_lazy_init",
        stage=names.INITIALIZE,
        when=needed,
        describe=_describe_initialize(kind),
        why="driver and context are set up at the first use of the device",
    )


ROWS = (
    Target(
        module="torch.serialization",
        attribute="load",
        aliases=("torch:load",),
        stage=names.DESERIALIZE,
        describe=_describe_load,
        measure=_measure_load,
        why="every pickle-based checkpoint",
    ),
    Target(
        module="torch.serialization",
        attribute="_load",
        stage=names.DESERIALIZE,
        describe=_describe_zip,
        why="tells the format, and whether the file was mapped",
    ),
    Target(
        module="torch.serialization", attribute="_legacy_load", stage=names.DESERIALIZE, describe=_describe_legacy, why="tells the format"
    ),
    Target(
        module="torch.nn.modules.module",
        attribute="Module.load_state_dict",
        stage=names.LOAD_STATE_DICT,
        describe=_describe_state_dict,
        measure=_measure_state_dict,
        aside=compiling,
        why="state dict into module; with mapped tensors the disk is read here",
    ),
    _initialize("cuda"),
    _initialize("xpu"),
)
