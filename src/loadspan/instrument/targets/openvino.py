"""
OpenVINO: a model is read, then compiled for a device.

The weights of its own format (`.bin` beside `.xml`) are mapped where that is not turned off: their bytes arrive while it is compiled.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.patching import Args, Kwargs, Target, argument
from loadspan.instrument.targets import arrays
from loadspan.instrument.targets.transfers import stage_of

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_MODULE = "openvino._ov_api"


def _files(model: Any, weights: Any) -> list[str]:
    """The files that a model is in."""
    if not isinstance(model, str | os.PathLike):
        return []
    path = os.fspath(model)
    beside = weights if isinstance(weights, str | os.PathLike) else f"{path.removesuffix('.xml')}.bin" if path.endswith(".xml") else None
    return [path, *([os.fspath(beside)] if beside is not None and os.path.isfile(beside) else [])]  # noqa: PTH113 - no Path object here


def _of(frame: OpenStage | OpenLoad, model: Any, weights: Any) -> None:
    for path in _files(model, weights):
        frame.file(path)
        frame.add(arrays.file_size(path) or 0)
    given = [data for data in (model, weights) if isinstance(data, bytes)]
    if given:
        frame.size = sum(map(len, given))
        frame.attributes[names.READ_METHOD] = "memory"
    frame.things = given
    name = os.path.splitext(os.fspath(model))[1] if isinstance(model, str | os.PathLike) else ""  # noqa: PTH122 - as above
    frame.attributes[names.FORMAT] = "onnx" if name == ".onnx" else "openvino"


def _describe_read(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage = stage_of(frame)
    _of(frame, argument(args, kwargs, 1, "model"), argument(args, kwargs, 2, "weights"))
    config = argument(args, kwargs, 3, "config") or {}
    stage.deferred = bool(stage.paths) and config.get("ENABLE_MMAP") not in (False, "NO")


def _measure_read(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    frame.outputs = [result]


def _describe_compile(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    model = argument(args, kwargs, 1, "model")
    if isinstance(model, str | os.PathLike | bytes):
        _of(frame, model, kwargs.get("weights"))
        stage_of(frame).rated = False  # reading is the least of it
    else:
        frame.things = [model]
    device = argument(args, kwargs, 2, "device_name")
    if isinstance(device, str):
        frame.attributes[names.DEVICE_TYPE] = device.lower()


def _describe_import(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    data = argument(args, kwargs, 1, "model_stream")
    if isinstance(data, bytes):
        frame.size = len(data)
        frame.things = [data]


ROWS = (
    Target(
        module=_MODULE,
        attribute="Core.read_model",
        stage=names.DESERIALIZE,
        describe=_describe_read,
        measure=_measure_read,
        why="a file or bytes to a graph",
    ),
    Target(
        module=_MODULE,
        attribute="Core.compile_model",
        stage=names.COMPILE,
        describe=_describe_compile,
        why="a graph or a file to what a device runs; packs the weights",
    ),
    Target(
        module=_MODULE,
        attribute="Core.import_model",
        stage=names.DESERIALIZE,
        describe=_describe_import,
        why="a model that was compiled before",
    ),
)
