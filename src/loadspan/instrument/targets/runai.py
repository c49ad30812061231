"""
Run:ai model streamer: threads of its own in C read many pieces of many files at once, and tensors come in the order in which they arrive.

`stream_files` reads the headers and asks for the rest; the generator `get_tensors` waits for it, tensor by tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets.transfers import stage_of

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_FACTS = {names.FORMAT: "safetensors"}


def _describe_files(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    for path in argument(args, kwargs, 1, "paths") or ():
        frame.file(path, "safetensors")
    stage_of(frame).rated = False  # what it asks for comes later


def _measure_files(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    frame.outputs = [args[0]]


ROWS = (
    Target(
        module="runai_model_streamer.safetensors_streamer.safetensors_streamer",
        attribute="SafetensorsStreamer.stream_files",
        stage=names.DESERIALIZE,
        describe=_describe_files,
        measure=_measure_files,
        why="reads the headers and asks for all tensors",
    ),
    Target(
        module="runai_model_streamer.safetensors_streamer.safetensors_streamer",
        attribute="SafetensorsStreamer.get_tensors",
        kind=Kind.FINE,
        stage=names.DESERIALIZE,
        size=lambda result, args, kwargs: int(result[1].nbytes),
        thing=lambda result: result[1],
        buffer=lambda args, kwargs: args[0],
        facts=lambda args, kwargs: _FACTS,
        why="tensor by tensor, as they arrive",
    ),
    Target(
        module="runai_model_streamer.file_streamer.file_streamer",
        attribute="FileStreamer.get_chunks",
        kind=Kind.FINE,
        stage=names.READ,
        size=lambda result, args, kwargs: int(result[2].nbytes),
        waits=True,
        why="waits for the next piece of any file, and asks for more",
    ),
)
