"""
torch: moves and casts of modules.

Every one ends in `Module._apply`, which recurses into children: its outermost call is the stage. What it did is read off the module,
before and after: `fn` is opaque, and `.to()` may move nothing at all. `Tensor.to` is on the inference path and is left alone.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.calls import recorded
from loadspan.instrument.destination import Destination, arrived, settled
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets.survey import META, Survey
from loadspan.instrument.targets.torch import compiling

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_EMPTY = "to_empty"
_CASTS = ("half", "float", "double", "bfloat16", "type")


def _torch() -> Any:
    return sys.modules["torch"]


class _Before(threading.local):
    inside = False


class _Within(threading.local):
    calls = 0


within = _Within()
"""Open calls of this thread in which moves of modules are part of the work, thousands of them: none is recorded, nor looked at."""


_OF_TORCH = "torch.nn.modules.module"


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
        if self._before.inside or within.calls or not recorder.active:
            return None
        module, function = args[0], argument(args, kwargs, 1, "fn")
        survey = Survey(module)
        if not survey:
            return None

        name = _guess(function, survey.source())

        def describe(stage: OpenStage) -> None:
            stage.module = module
            stage.library = "torch"
            if name == names.TO_DEVICE:
                stage.destination = _destination(function)

        stage = recorder.open_stage(name, describe)
        if stage is not None:
            if name == names.TO_DEVICE:
                _describe_source(stage, survey)
            self._before.__dict__["kept"] = (survey, function, safely(_Events.begin, _free(function).get("device")))
            self._before.inside = True
        return stage

    def close(self, frame: Any, result: Any, error: BaseException | None, args: Args, kwargs: Kwargs) -> None:
        """Close it, named by what happened to the module."""
        end = time.perf_counter_ns()
        self._before.inside = False
        survey, function, events = self._before.__dict__.pop("kept")
        safely(_changed, frame, survey, function, events, error)
        if frame.name != names.TO_DEVICE:
            for attribute in (names.HOST_MEMORY_PINNED, names.HOST_MEMORY_NUMA_NODE):
                frame.attributes.pop(attribute, None)
        if error is not None:
            frame.cancelled = False  # a failed move is shown, whatever had moved by then
        recorder.close_stage(frame, error, end)


def _describe_source(stage: OpenStage, survey: Survey) -> None:
    """Where the bytes are that will be copied."""
    pinned, node = safely(survey.pinned), safely(survey.host_node)
    if pinned is not None:
        stage.attributes[names.HOST_MEMORY_PINNED] = pinned
    if node is not None:
        stage.attributes[names.HOST_MEMORY_NUMA_NODE] = node


def _destination(function: Any) -> Destination | None:
    """The device that a closure of torch's will bring tensors to, as far as it can be told beforehand."""
    device = _free(function).get("device")
    kind, index = getattr(device, "type", None), getattr(device, "index", device if isinstance(device, int) else None)
    if kind is None and device is not None and not isinstance(device, int):
        return None
    kind = kind or _method(function)  # `.cuda(1)`: the method has the name of the device
    return settled(Destination(kind, index)) if kind not in ("to", "cpu", META) else None


def _changed(stage: OpenStage, survey: Survey, function: Any, events: _Events | None, error: BaseException | None) -> None:
    change = survey.compare(alike=error is None and getattr(function, "__module__", None) == _OF_TORCH)
    device = change.device
    destination, stage.destination = stage.destination, None
    if device is not None and _method(function) == _EMPTY:
        stage.name = names.INITIALIZE  # memory on the device, into which nothing was copied
        stage.attributes[names.DEVICE_TYPE] = device.type
    elif device is not None:
        stage.name = names.TO_DEVICE
        stage.size = change.moved
        stage.attributes |= change.of_copies()
        stage.attributes[names.DEVICE_TYPE] = device.type
        stage.destination = arrived(destination, device)
        if events is not None and device.type == "cuda":
            done = events.end(stage)
            stage.deferred = bool(_free(function).get("non_blocking")) and not done
    elif change.dtype is not None:
        stage.name = names.CONVERT
        stage.size = change.cast
        stage.attributes[names.DTYPE] = str(change.dtype).removeprefix("torch.")
    elif change.made:
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


ROWS = (
    Target(
        module="torch.nn.modules.module",
        attribute="Module._apply",
        kind=Kind.REPLACE,
        replace=lambda original: recorded(original, _Apply(), compiling()),
        why="where `.to()`, `.cuda()`, `.half()` and their like end",
    ),
)
