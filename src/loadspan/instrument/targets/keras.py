"""
Keras 3: `.keras` archives, `.h5` files and weights alone, whatever the back end.

A model is built from its configuration, then a walk over it reads one array after the other out of HDF5 and assigns it: the walk is
`load_state_dict`, and what h5py reads in it is `deserialize`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import arrays, roots
from loadspan.instrument.targets.transfers import stage_of

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_API, _LIBRARY, _LEGACY = "keras.src.saving.saving_api", "keras.src.saving.saving_lib", "keras.src.legacy.saving.legacy_h5_format"


def _describe_built(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    frame.attributes[names.FORMAT] = "json"


def _measure_walk(position: int, name: str) -> Any:
    def measure(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
        weights = getattr(argument(args, kwargs, position, name), "weights", ())
        frame.size = sum(_nbytes(weight) for weight in weights) or None

    return measure


def _nbytes(weight: Any) -> int:
    count = 1
    for length in weight.shape:
        count *= int(length)
    kind = str(weight.dtype)
    bits = int("".join(filter(str.isdigit, kind.partition("e")[0])) or 0) or (8 if kind == "bool" else 32)
    return count * bits // 8


def _describe_store(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage_of(frame).opens = False
    frame.attributes[names.FORMAT] = "hdf5"


def _describe_archive(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage_of(frame).opens = False
    frame.file(getattr(argument(args, kwargs, 0, "fileobj"), "name", None), "zip")


def _once(args: Args, kwargs: Kwargs) -> bool:
    # It calls itself for each layer: the outermost call alone is of interest, whose path in the model is empty.
    return not argument(args, kwargs, 3, "inner_path", "")


def _read(attribute: str, why: str) -> Target:
    return Target(
        module="h5py._hl.dataset",
        attribute=attribute,
        kind=Kind.FINE,
        stage=names.DESERIALIZE,
        when=roots.during,
        alone=lambda args, kwargs: False,
        size=lambda result, args, kwargs: getattr(result, "nbytes", None),
        facts=lambda args, kwargs: {names.FORMAT: "hdf5"},
        why=why,
    )


ROWS = (
    Target(module=_API, attribute="load_model", kind=Kind.ROOT, describe=arrays.root(0, "filepath"), why="a whole model"),
    Target(
        module=_API, attribute="load_weights", kind=Kind.ROOT, describe=arrays.root(1, "filepath"), why="weights into a model that is there"
    ),
    Target(module=_LIBRARY, attribute="_model_from_config", stage=names.INITIALIZE, describe=_describe_built, why="builds the model"),
    Target(
        module=_LIBRARY,
        attribute="_load_state",
        stage=names.LOAD_STATE_DICT,
        when=_once,
        measure=_measure_walk(0, "saveable"),
        why="walks the model and assigns what it reads",
    ),
    Target(
        module=_LIBRARY,
        attribute="load_weights_only",
        stage=names.LOAD_STATE_DICT,
        measure=_measure_walk(0, "model"),
        why="the walk alone, and the file that it opens",
    ),
    Target(
        module=_LIBRARY,
        attribute="H5IOStore.__init__",
        stage=names.DESERIALIZE,
        describe=_describe_store,
        why="opens the arrays of an archive",
    ),
    Target(
        module=_LIBRARY,
        attribute="H5IOStore.close",
        stage=names.DESERIALIZE,
        describe=_describe_store,
        why="lets go of the file in memory, as big as the model",
    ),
    Target(
        module=_LIBRARY,
        attribute="_load_model_from_fileobj",
        stage=names.READ,
        describe=_describe_archive,
        why="what is its own is the archive: opened, copied into memory, checked, let go; the rest are stages in it",
    ),
    Target(
        module="zipfile",
        attribute="ZipExtFile.read",
        kind=Kind.FINE,
        stage=names.READ,
        when=roots.during,
        alone=lambda args, kwargs: False,
        size=lambda result, args, kwargs: len(result),
        why="weights are taken out of the archive, and checked, before they are interpreted",
    ),
    Target(
        module="keras.src.legacy.saving.saving_utils",
        attribute="model_from_config",
        stage=names.INITIALIZE,
        describe=_describe_built,
        why="builds the model of an .h5 file",
    ),
    Target(
        module=_LEGACY,
        attribute="load_weights_from_hdf5_group",
        stage=names.LOAD_STATE_DICT,
        measure=_measure_walk(1, "model"),
        why="the walk of an .h5 file",
    ),
    Target(
        module=_LEGACY,
        attribute="load_weights_from_hdf5_group_by_name",
        stage=names.LOAD_STATE_DICT,
        measure=_measure_walk(1, "model"),
        why="the same by the layers' names",
    ),
    _read("Dataset.__getitem__", "a part or all of an array"),
    _read("Dataset.__array__", "an array as numpy asks for it"),
)
