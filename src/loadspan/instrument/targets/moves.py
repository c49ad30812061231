"""
torch: moves and casts of modules.

Every one ends in `Module._apply`, which recurses into children: its outermost call is the stage. What it did is read off the module,
before and after: `fn` is opaque, and `.to()` may move nothing at all. `Tensor.to` is on the inference path and is left alone.
"""

from __future__ import annotations

import sys
import threading
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.calls import recorded
from loadspan.instrument.destination import Destination, arrived, settled
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import tensors
from loadspan.instrument.targets.torch import compiling

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.instrument.frames import OpenLoad, OpenStage

_Kind = tuple[Any, Any]
"""Device and type of a tensor."""

_Seen = tuple[Any, Any, int]
"""Device, type and bytes of a tensor."""

_KIND, _SEEN = attrgetter("device", "dtype"), attrgetter("device", "dtype", "nbytes")
_META = "meta"
_BIG = 1 << 20  # bytes from which a tensor is asked where its pages are
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


@dataclass(slots=True)
class _Change:
    """What a call did to the tensors of a module."""

    copies: dict[int, int] = field(default_factory=dict)
    """How many tensors of each size went to another device: a model has few sizes, however many tensors."""
    cast: int = 0
    """Bytes of those that were cast where they are."""
    made: int = 0
    """Tensors that were given memory."""
    device: Any = None
    """Where the first that moved is now."""
    dtype: Any = None
    """What the first that was cast is now."""

    def count(self, old: _Kind, new: _Seen, number: int) -> None:
        """Count so many tensors that were *old* and are *new*."""
        device, dtype, size = new
        if device == old[0]:
            if dtype != old[1] and device.type != _META:
                self.cast += number * size
                self.dtype = self.dtype or dtype
        elif device.type == _META:
            pass
        elif old[0].type == _META:
            self.made += number
        else:
            self.copies[size] = self.copies.get(size, 0) + number
            self.device = self.device or device

    def of_copies(self) -> dict[str, Any]:
        """Number and size of the copies."""
        ordered, count = sorted(self.copies), sum(self.copies.values())
        passed = accumulate(self.copies[size] for size in ordered)
        return {
            names.COPY_COUNT: count,
            names.COPY_SIZE_MIN: ordered[0],
            names.COPY_SIZE_MEDIAN: next(size for size, below in zip(ordered, passed, strict=True) if 2 * below > count),
            names.COPY_SIZE_MAX: ordered[-1],
        }

    @property
    def moved(self) -> int:
        """Bytes that went to another device."""
        return sum(size * count for size, count in self.copies.items())


class _Survey:
    """
    Devices and types of a module's parameters and buffers, in the order of a walk.

    Each tensor is touched once before and once after: it lies where nothing else was read, and that costs more than what is done with
    it. A number a tensor is kept: 20 000 objects of ours would set off a garbage collection that costs more than all the rest.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        numbers: dict[_Kind, int] = {}
        self._before = array("I", [numbers.setdefault(kind, len(numbers)) for kind in map(_KIND, self._walk())])
        self._kinds = list(numbers)
        """What a number stands for."""

    def _walk(self) -> list[Any]:
        # The public iterators take ten times as long.
        holders = [holder for child in self._module.modules() for holder in (child._parameters, child._buffers)]  # noqa: SLF001 - as said
        return [tensor for holder in holders for tensor in holder.values() if tensor is not None]

    def __bool__(self) -> bool:
        return bool(self._before)

    def pinned(self) -> bool | None:
        """Whether the first tensor in host memory is page-locked; None where asking would set up a device."""
        if not _torch().cuda.is_initialized():
            return None
        found = next((tensor for tensor in self._walk() if tensor.device.type == "cpu"), None)
        return bool(tensors.plain(found)[0].is_pinned()) if found is not None else None

    def host_node(self) -> int | None:
        """NUMA node that holds the pages of the first big tensor in host memory; None where they are on several, or it is not known."""
        from loadspan.facts import numa  # with the first move, as everything that reads the machine

        found = next((tensor for tensor in self._walk() if tensor.device.type == "cpu" and tensors.size(tensor) >= _BIG), None)
        pages = numa.node_of_pages((first := tensors.plain(found)[0]).data_ptr(), tensors.size(first)) if found is not None else None
        return next(iter(pages)) if pages is not None and len(pages) == 1 else None

    def source(self) -> Any:
        """Device of the first tensor that is not meta."""
        return next((device for device, _ in self._kinds if device.type != _META), None)

    def compare(self) -> _Change:
        """What happened to the tensors since."""
        found = self._walk()
        try:
            quick = all(tensors.PLAIN[kind] for kind in set(map(type, found)))
            after, seen = _numbered(map(_SEEN, found) if quick else map(_seen, found))
        except (RuntimeError, ValueError):  # one of them has no size of its own: it is sparse
            after, seen = _numbered(map(_seen, found))
        numbers = Counter(zip(self._before, after, strict=False))
        for place in _again(array("Q", map(id, found))):  # weights that are tied are moved once
            if place < len(self._before):
                numbers[self._before[place], after[place]] -= 1
        change = _Change()
        for (old, new), number in numbers.items():
            if number:
                change.count(self._kinds[old], seen[new], number)
        return change


def _seen(tensor: Any) -> _Seen:
    """What `_SEEN` gets, of any tensor."""
    return tensor.device, tensor.dtype, tensors.size(tensor)


def _numbered(found: Iterable[_Seen]) -> tuple[array[int], list[_Seen]]:
    """A number for each of *found*, and what the numbers stand for: there are few different ones."""
    numbers: dict[_Seen, int] = {}
    return array("I", [numbers.setdefault(seen, len(numbers)) for seen in found]), list(numbers)


def _again(identities: array[int]) -> list[int]:
    """Places at which an identity was met before: weights that are tied."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and identities:  # it makes no array of nothing
        found = numpy.frombuffer(identities, numpy.uint64)
        order = numpy.argsort(found, kind="stable")
        ordered = found[order]
        return order[1:][ordered[1:] == ordered[:-1]].tolist()  # type: ignore[no-any-return] # numpy is not imported here
    met, again = set[int](), []
    for place, identity in enumerate(identities):
        if identity in met:
            again.append(place)
        met.add(identity)
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
        if self._before.inside or within.calls or not recorder.active:
            return None
        module, function = args[0], argument(args, kwargs, 1, "fn")
        survey = _Survey(module)
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
        safely(_changed, frame, survey, function, events)
        if frame.name != names.TO_DEVICE:
            for attribute in (names.HOST_MEMORY_PINNED, names.HOST_MEMORY_NUMA_NODE):
                frame.attributes.pop(attribute, None)
        if error is not None:
            frame.cancelled = False  # a failed move is shown, whatever had moved by then
        recorder.close_stage(frame, error, end)


def _describe_source(stage: OpenStage, survey: _Survey) -> None:
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
    return settled(Destination(kind, index)) if kind not in ("to", "cpu", _META) else None


def _changed(stage: OpenStage, survey: _Survey, function: Any, events: _Events | None) -> None:
    change = survey.compare()
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
