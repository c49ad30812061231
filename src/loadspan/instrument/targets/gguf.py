"""gguf, the package with which transformers and diffusers read GGUF files: the reader, which maps the file, and unpacking to floats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import observed
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import roots

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_PLAIN = "F32"


def _describe_reader(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.file(argument(args, kwargs, 1, "path"), "gguf")
    stage.deferred = True  # type: ignore[union-attr] # rows of stages; the tensors are views on the mapped file


_UNPACK = Target(
    module="gguf.quants",
    attribute="dequantize",
    kind=Kind.FINE,
    stage=names.CONVERT,
    facts=lambda args, kwargs: {names.DTYPE: "float32"},
    why="blocks of a tensor to floats",
)


def _begin(args: Args, kwargs: Kwargs) -> Any:
    if not roots.part(args, kwargs):
        return None
    reading = recorder.same(recorder.frame(), names.DESERIALIZE)
    if reading is not None:
        reading.add(int(argument(args, kwargs, 0, "data").nbytes))
    if argument(args, kwargs, 1, "qtype").name == _PLAIN:
        return None  # a view
    return recorder.begin_fine(names.CONVERT, _UNPACK, args, kwargs)


def _end(call: Any, result: Any, args: Args, kwargs: Kwargs) -> None:
    recorder.end_fine(call, int(result.nbytes), None, result)


def _fail(call: Any, error: BaseException) -> None:
    recorder.end_fine(call, None, error)


ROWS = (
    Target(
        module="gguf.gguf_reader",
        attribute="GGUFReader.__init__",
        stage=names.DESERIALIZE,
        when=roots.part,
        describe=_describe_reader,
        why="reads the header, entry by entry",
    ),
    Target(
        module="gguf.quants",
        attribute="dequantize",
        kind=Kind.REPLACE,
        replace=lambda original: observed(original, _begin, _end, _fail),
        why="a tensor of the file to floats, in numpy",
    ),
)
