"""
torch: `torch.load`, `Module.load_state_dict`, moves and casts of modules, device initialization.

Every move and cast of a module ends in `Module._apply`, which recurses into children: its outermost call is the stage. What it did is
read off the module, before and after: `fn` is opaque, and `.to()` may move nothing at all. `Tensor.to` is on the inference path and is
left alone.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.calls import recorded
from loadspan.instrument.frames import sample
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadspan.instrument.frames import OpenLoad, OpenStage

_META = "meta"
_PART = 10_000  # identities looked at together: a megabyte
_EMPTY = "to_empty"
_CASTS = ("half", "float", "double", "bfloat16", "type")


def _torch() -> Any:
    return sys.modules["torch"]


def _compiling() -> Callable[[], bool] | None:
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


def _measure_load(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    found = list(tensors.find(result))
    if found:
        stage.size = tensors.unique_size(found)
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
    taken = state_dict.values() if not unexpected else [value for key, value in state_dict.items() if key not in unexpected]
    stage.size = (
        tensors.sizes(value for value in taken if isinstance(value, kind)) or None
    )  # 0: nothing matched, the host may be about to raise


# Module.to, cuda, half, ...


class _Before(threading.local):
    inside = False


class _Survey:
    """
    Devices and types of a module's parameters and buffers, in the order of a walk.

    A byte a tensor: 20 000 objects of ours would set off a garbage collection that costs more than all the rest.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._kinds: list[tuple[Any, Any]] = []
        """Device and type, by number."""
        self._walked = array("H")
        numbers: dict[tuple[Any, Any], int] = {}
        for tensor in self._walk():
            kind = tensor.device, tensor.dtype
            number = numbers.get(kind)
            if number is None:
                number = numbers[kind] = len(self._kinds)
                self._kinds.append(kind)
            self._walked.append(number)

    def _walk(self) -> Iterator[Any]:
        for child in self._module.modules():
            for holder in (child._parameters, child._buffers):  # noqa: SLF001 - the public iterators take ten times as long
                for tensor in holder.values():
                    if tensor is not None:
                        yield tensor

    def __bool__(self) -> bool:
        return bool(self._walked)

    def pinned(self) -> bool | None:
        """Whether the first tensor in host memory is page-locked; None where asking would set up a device."""
        if not _torch().cuda.is_initialized():
            return None
        found = next((tensor for tensor in self._walk() if tensor.device.type == "cpu"), None)
        return bool(found.is_pinned()) if found is not None else None

    def source(self) -> Any:
        """Device of the first tensor that is not meta."""
        return next((device for device, _ in self._kinds if device.type != _META), None)

    def compare(self) -> tuple[int, int, int, Any, Any]:
        """Bytes moved to another device, bytes cast in place, tensors given memory, and the device and type of what changed first."""
        made = 0
        device = dtype = None
        identities, sizes, moves = array("Q"), array("Q"), bytearray()
        for number, tensor in zip(self._walked, self._walk(), strict=False):
            old_device, old_dtype = self._kinds[number]
            moved = tensor.device != old_device
            if (not moved and tensor.dtype == old_dtype) or tensor.is_meta:
                continue
            if old_device.type == _META:
                made += 1
                continue
            if moved:
                device = device or tensor.device
            else:
                dtype = dtype or tensor.dtype
            identities.append(id(tensor))
            sizes.append(tensors.size(tensor))
            moves.append(moved)
        again = _again(identities)
        totals = [0, 0]
        for index, size in enumerate(sizes):
            if index not in again:
                totals[moves[index]] += size
        return totals[1], totals[0], made, device, dtype


def _again(identities: array[int]) -> set[int]:
    """Places at which an identity was met before: weights that are tied. Looked for in parts, so that the sets stay small."""
    parts = 1 + len(identities) // _PART
    again: set[int] = set()
    for part in range(parts):
        here = [identity for identity in identities if (identity >> 6) % parts == part]
        if len(set(here)) < len(here):
            seen: set[int] = set()
            for place, identity in enumerate(identities):
                if (identity >> 6) % parts == part:
                    (again if identity in seen else seen).add(place if identity in seen else identity)
    return again


def _method(function: Any) -> str:
    """Method of `Module` that passed *function* to `_apply`."""
    return str(getattr(function, "__qualname__", "").split(".<locals>")[0].rpartition(".")[2])


def _free(function: Any) -> dict[str, Any]:
    """What a closure of torch's has captured: `.to()` keeps its parsed arguments there."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or cells is None:
        return {}
    return {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=False)}


def _guess(function: Any, source: Any) -> str:
    """Stage to show while it runs; what it was is known afterwards."""
    captured, method = _free(function), _method(function)
    if method == "to" and "device" in captured and (captured["device"] is None or captured["device"] == source):
        return names.CONVERT
    return names.INITIALIZE if method == _EMPTY else names.CONVERT if method in _CASTS else names.TO_DEVICE


class _Apply:
    """Recording of the outermost `Module._apply`."""

    def __init__(self) -> None:
        self._before = _Before()

    def open(self, args: Args, kwargs: Kwargs) -> OpenStage | None:
        """Open the stage, unless this is a child's turn or there is nothing that could move."""
        if self._before.inside or not recorder.active:
            return None
        module, function = args[0], argument(args, kwargs, 1, "fn")
        survey = _Survey(module)
        if not survey:
            return None

        def describe(stage: OpenStage) -> None:
            stage.module = module
            stage.library = "torch"

        stage = recorder.open_stage(_guess(function, survey.source()), describe)
        if stage is not None:
            pinned, events = safely(survey.pinned), safely(_Events.begin, _free(function).get("device"))
            self._before.__dict__["kept"] = (survey, function, pinned, events)
            self._before.inside = True
        return stage

    def close(self, frame: Any, result: Any, error: BaseException | None, args: Args, kwargs: Kwargs) -> None:
        """Close it, named by what happened to the module."""
        end = time.perf_counter_ns()
        self._before.inside = False
        survey, function, pinned, events = self._before.__dict__.pop("kept")
        safely(_changed, frame, survey, function, events)
        if pinned is not None and frame.name == names.TO_DEVICE:
            frame.attributes[names.HOST_MEMORY_PINNED] = pinned
        if error is not None:
            frame.cancelled = False  # a failed move is shown, whatever had moved by then
        recorder.close_stage(frame, error, end)


def _changed(stage: OpenStage, survey: _Survey, function: Any, events: _Events | None) -> None:
    moved, cast, made, device, dtype = survey.compare()
    if device is not None and _method(function) == _EMPTY:
        stage.name = names.INITIALIZE  # memory on the device, into which nothing was copied
        stage.attributes[names.DEVICE_TYPE] = device.type
    elif device is not None:
        stage.name = names.TO_DEVICE
        stage.size = moved
        stage.attributes[names.DEVICE_TYPE] = device.type
        if device.index is not None:
            stage.attributes[names.DEVICE_INDEX] = device.index
        if events is not None and device.type == "cuda":
            done = events.end(stage)
            stage.deferred = bool(_free(function).get("non_blocking")) and not done
    elif dtype is not None:
        stage.name = names.CONVERT
        stage.size = cast
        stage.attributes[names.DTYPE] = str(dtype).removeprefix("torch.")
    elif made:
        stage.name = names.INITIALIZE
    else:
        stage.cancelled = True  # it was where it should be: no stage


class _Events:
    """CUDA events around a move, to be read when they have happened; never waited for."""

    def __init__(self, cuda: Any, stream: Any) -> None:
        self._begun = cuda.Event(enable_timing=True)
        self._ended = cuda.Event(enable_timing=True)
        self._stream = stream
        self._begun.record(stream)

    @classmethod
    def begin(cls, device: Any) -> _Events | None:
        """Record the first event on the stream of *device* on which it will copy, if CUDA is in use and no graph is being captured."""
        cuda = _torch().cuda
        if not cuda.is_initialized() or cuda.is_current_stream_capturing() or getattr(device, "type", "cuda") != "cuda":
            return None
        return cls(cuda, cuda.current_stream(device))

    def end(self, stage: OpenStage) -> bool:
        """Record the second; whether the copies were done when the call returned."""
        self._ended.record(self._stream)
        if self._ended.query():
            stage.attributes[names.DEVICE_TIME] = self._begun.elapsed_time(self._ended) / 1e3
            return True
        stage.load.later.append(self._read)
        return False

    def _read(self, load: OpenLoad) -> None:
        if self._ended.query():
            taken = self._begun.elapsed_time(self._ended) / 1e3
            load.attributes[names.DEVICE_TIME] = load.attributes.get(names.DEVICE_TIME, 0.0) + taken


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
        aside=_compiling,
        why="state dict into module; with mapped tensors the disk is read here",
    ),
    Target(
        module="torch.nn.modules.module",
        attribute="Module._apply",
        kind=Kind.REPLACE,
        replace=lambda original: recorded(original, _Apply(), _compiling()),
        why="where `.to()`, `.cuda()`, `.half()` and their like end",
    ),
    _initialize("cuda"),
    _initialize("xpu"),
)
