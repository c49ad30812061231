"""torch.hub: models and weights by address, kept in a folder of their own."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.calls import RowRecording, recorded
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets.roots import outermost

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

# ruff: noqa: PTH111, PTH113, PTH116, PTH118, PTH119 - no Path object on the recording side


def _kept(args: Args, kwargs: Kwargs) -> str:
    """Where torch keeps what an address has."""
    hub: Any = sys.modules["torch.hub"]
    folder: str = argument(args, kwargs, 1, "model_dir") or os.path.join(hub.get_dir(), "checkpoints")
    file: str = argument(args, kwargs, 5, "file_name") or _file(args, kwargs)
    return os.path.join(folder, file)


def _file(args: Args, kwargs: Kwargs) -> str:
    return os.path.basename(urlparse(str(argument(args, kwargs, 0, "url"))).path)


def _describe_weights(load: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    load.known_as(_file(args, kwargs))  # type: ignore[union-attr] # a root


def _look(args: Args, kwargs: Kwargs) -> None:
    """Whether the weights are here: torch looks for the file, and so do we, since no function of its own does it."""
    path = _kept(args, kwargs)

    def asked(stage: OpenStage) -> None:
        stage.library = "torch"
        stage.file(path)
        stage.attributes[names.CACHE_HIT] = os.path.isfile(path)
        if os.path.isfile(path):
            stage.size = os.stat(path).st_size
            stage.rated = False  # found, but nothing has moved yet

    stage = recorder.open_stage(names.CACHE, asked)
    if stage is not None:
        recorder.close_stage(stage)


class _Weights(RowRecording):
    """A load of weights: one of its own, unless it is part of a model's."""

    def open(self, args: Args, kwargs: Kwargs) -> OpenLoad | OpenStage | None:
        """Open it, and note whether the file is here."""
        load = super().open(args, kwargs)
        if recorder.active:
            safely(_look, args, kwargs)
        return load


def _describe_download(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.file(os.path.expanduser(argument(args, kwargs, 1, "dst")))


def _measure_download(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage.size = os.stat(os.path.expanduser(argument(args, kwargs, 1, "dst"))).st_size


def _describe_model(load: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    load.known_as(str(argument(args, kwargs, 1, "model")))  # type: ignore[union-attr] # a root


_WEIGHTS = Target(
    module="torch.hub",
    attribute="load_state_dict_from_url",
    kind=Kind.ROOT,
    describe=_describe_weights,
    when=outermost("torch"),
    why="weights by address, as torchvision and timm load them",
)

ROWS = (
    Target(
        module=_WEIGHTS.module,
        attribute=_WEIGHTS.attribute,
        kind=Kind.REPLACE,
        replace=lambda original: recorded(original, _Weights(_WEIGHTS)),
        why=_WEIGHTS.why,
    ),
    Target(
        module="torch.hub",
        attribute="download_url_to_file",
        stage=names.DOWNLOAD,
        describe=_describe_download,
        measure=_measure_download,
        why="where bytes come over the network",
    ),
    Target(
        module="torch.hub",
        attribute="load",
        kind=Kind.ROOT,
        describe=_describe_model,
        when=outermost("torch"),
        why="a model by the name of a repository or folder",
    ),
    Target(
        module="torch.hub",
        attribute="_get_cache_or_reload",
        stage=names.DOWNLOAD,
        why="code of a repository, unless it is here",
    ),
    Target(
        module="torch.hub",
        attribute="_load_local",
        stage=names.INITIALIZE,
        why="the repository's own function, which builds the model",
    ),
)
