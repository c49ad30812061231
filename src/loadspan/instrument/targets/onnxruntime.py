"""
ONNX Runtime: a session is made of a file or of bytes.

The session of the C extension reads and parses the model when it is made (`deserialize`), then optimizes the graph, places it and packs its
weights; that, and finding the devices to do it on, is `compile`. Weights in files beside the model are mapped, and arrive then.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import arrays, onnx_files

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_EXTENSION = "onnxruntime.capi.onnxruntime_pybind11_state"


def _describe_read(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    source = argument(args, kwargs, 2, "model")
    frame.attributes[names.FORMAT] = "onnx"
    if isinstance(source, bytes):
        frame.attributes[names.READ_METHOD] = "memory"
        frame.size = len(source)
    elif isinstance(source, str | os.PathLike):
        frame.file(source)
        frame.size = arrays.file_size(source)


def _measure_read(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    source = argument(args, kwargs, 2, "model")
    beside = onnx_files.beside(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else {}
    for path, size in beside.items():
        frame.file(path)
        frame.add(size)
    if beside:
        frame.deferred = True  # type: ignore[union-attr] # a row of a stage


ROWS = (
    Target(
        module="onnxruntime.capi.onnxruntime_inference_collection",
        attribute="InferenceSession.__init__",
        kind=Kind.ROOT,
        describe=arrays.root(1, "path_or_bytes"),
        why="every session",
    ),
    Target(
        module=_EXTENSION,
        attribute="InferenceSession.__init__",
        stage=names.DESERIALIZE,
        describe=_describe_read,
        measure=_measure_read,
        why="reads and parses the model",
    ),
    Target(
        module="onnxruntime.capi.onnxruntime_inference_collection",
        attribute="InferenceSession._create_inference_session",
        stage=names.COMPILE,
        why="finds providers, then optimizes the graph, makes its kernels, packs its weights",
    ),
)
