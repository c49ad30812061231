"""
accelerate: what an offloaded model brings at every forward.

Its hooks fetch the weights of a module right before it runs, from memory or from files, and let go of them afterwards. Nothing is patched
that runs for each tensor: what a module brings is known beforehand, so its hook is timed, and the bytes are added. All forwards of a model
are one load. Inside a load that is declared, for example a first forward that warms up, they are a stage of that.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.continuing import Continuing, register
from loadspan.instrument.destination import named, settled
from loadspan.instrument.frames import OpenLoad, current
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Kind, Target
from loadspan.instrument.targets import tensors
from loadspan.instrument.targets.torch import compiling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LIBRARY = "accelerate"
_HOST = ("cpu", "meta", "disk")

_muted = OpenLoad(0, 0, explicit=True, parent=None)
_muted.muted = True  # what is called in a hook is counted by it


@dataclass(slots=True)
class _Hook:
    """What one hook brings at each forward."""

    size: int
    row: Target
    model: _Model
    leads: int
    """1 of the first of its model, whose calls are the forwards."""
    owner: weakref.ref[Any]


class _Model:
    """What the hooks of one model have brought in one stage."""

    def __init__(self, row: Target, described: dict[str, Any]) -> None:
        self.row = row
        self.counted = Continuing(row.stage, described)
        self.wanted = True
        """Whether anybody records; asked at each forward."""

    def begin(self) -> None:
        """A forward begins."""
        self.wanted = recorder.recording()
        counted = self.counted
        if self.wanted and not counted.listed:
            with recorder.lock:
                register(recorder.repetitions).add(counted)
            recorder.on_open()


_hooks: dict[int, _Hook] = {}
"""By id: a dictionary of weak references takes four times as long."""
_models: dict[tuple[int, str], weakref.ref[_Model]] = {}


def _row(stage: str) -> Target:
    return Target(
        module=_LIBRARY,
        attribute="",
        kind=Kind.FINE,
        stage=stage,
        destination=lambda args, kwargs: settled(named(getattr(args[0], "execution_device", None))),
        why="weights of a module, right before it runs",
    )


_ROWS = {stage: _row(stage) for stage in (names.READ, names.DESERIALIZE, names.TO_DEVICE)}


def _device(hook: Any) -> str:
    """Type of the device that a module runs on."""
    device = hook.execution_device
    if isinstance(device, int):
        there = settled(named(device))
        return there.kind if there is not None else "cuda"
    return str(device).partition(":")[0] if device is not None else "cpu"


def _names(hook: Any, module: Any) -> Iterator[tuple[str, Any]]:
    yield from module.named_parameters(recurse=hook.place_submodules)
    if hook.offload_buffers:
        yield from module.named_buffers(recurse=hook.place_submodules)


def _look(hook: Any, module: Any) -> _Hook:
    """What *hook* will bring: known once, since weights do not change their size."""
    given, prefix = hook.weights_map, ""
    if hasattr(given, "dataset") and hasattr(given, "prefix"):
        given, prefix = given.dataset, given.prefix
    index, memory = getattr(given, "index", None) or {}, getattr(given, "state_dict", None)
    here = memory if isinstance(memory, dict) else {}
    size, stage, device = 0, names.TO_DEVICE, _device(hook)
    for name, tensor in _names(hook, module):
        key = prefix + name
        place = index.get(key) if key not in here else None
        if place is None and device in _HOST:
            continue  # it is where it has to be
        if place is not None:
            stage = names.DESERIALIZE if place.get("safetensors_file") else names.READ
        size += tensors.size(tensor)
    known = _models.get((id(given), stage))
    model = known() if known is not None else None
    leads = int(bool(size) and model is None)
    if model is None:
        described = {names.LOADER: _LIBRARY} | ({} if device in _HOST else {names.DEVICE_TYPE: device})
        model = _Model(_ROWS[stage], described)
        if size:
            _models[id(given), stage] = weakref.ref(model)
    own = id(hook)
    return _Hook(size, _ROWS[stage], model, leads, weakref.ref(hook, lambda _: _hooks.pop(own, None)))


def _known(hook: Any, module: Any) -> _Hook:
    found = _hooks[id(hook)] = _look(hook, module)
    for key in [key for key, model in _models.items() if model() is None]:
        del _models[key]
    return found


def _declared() -> Any:
    """The load or stage that is open here and was declared, if any: this is part of it, then."""
    return None if current.get() is _muted else recorder.frame()


def _in_declared(known: _Hook, hook: Any, call: Callable[[], Any]) -> Any:
    """`call()` as part of a load that was declared."""
    fine = safely(recorder.begin_fine, known.row.stage, known.row, (hook,))
    if fine is None:
        return call()
    token = current.set(_muted)
    try:
        result = call()
    except BaseException as error:
        current.reset(token)
        safely(recorder.end_fine, fine, None, error)
        raise
    current.reset(token)
    safely(recorder.end_fine, fine, known.size)
    return result


def _replace_align(original: Callable[..., Any]) -> Callable[..., Any]:
    aside = compiling()
    clock, enter, leave = time.perf_counter_ns, current.set, current.reset

    @functools.wraps(original)
    def pre_forward(self: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.offload or not recorder.active or (aside is not None and aside()):
            return original(self, module, *args, **kwargs)
        known = _hooks.get(id(self))
        if known is None or known.owner() is not self:
            known = safely(_known, self, module)
        if known is None or not known.size:
            return original(self, module, *args, **kwargs)
        if recorder.loads and safely(_declared):
            return _in_declared(known, self, lambda: original(self, module, *args, **kwargs))
        model = known.model
        if known.leads:
            safely(model.begin)
        if not model.wanted:
            return original(self, module, *args, **kwargs)
        token, begun = enter(_muted), clock()
        try:
            result = original(self, module, *args, **kwargs)
        finally:
            end = clock()
            leave(token)
        model.counted.add(known.leads, begun, end, end - begun, known.size)
        return result

    return pre_forward


# Whole models that go to a device and back


class _Moving(threading.local):
    nested = 0
    """Nanoseconds of moves inside the one that runs."""


_moving = _Moving()
_whole: weakref.WeakKeyDictionary[Any, _Model] = weakref.WeakKeyDictionary()


def _there(module: Any, device: Any) -> bool:
    """Whether *module* is on *device*; asked as accelerate does, at every forward."""
    first = next(module.parameters(), None)
    return first is None or first.device == device


def _away(module: Any, device: Any) -> int:
    """Bytes of *module* that are not on *device*."""
    kind = str(device).partition(":")[0]
    found = [tensor for part in (module.parameters(), module.buffers()) for tensor in part]
    return tensors.sizes([tensor for tensor in found if tensor.device.type != kind])


def _moved(module: Any, size: int, count: int, begun: int, end: int, busy: int) -> None:
    model = _whole.get(module)
    if model is None:
        model = _whole[module] = _Model(_ROWS[names.TO_DEVICE], {names.LOADER: _LIBRARY, names.MODEL_NAME: type(module).__name__})
    model.begin()
    model.counted.add(count, begun, end, busy, size)


def _move(module: Any, device: Any, count: int, call: Callable[[], Any]) -> Any:
    """`call()`, which moves *module* to *device*; counted unless a load is declared, whose stage it is then."""
    if not recorder.active or not recorder.recording() or (recorder.loads and safely(_declared)):
        return call()
    size = safely(_away, module, device)
    if not size:
        return call()
    outer, _moving.nested = _moving.nested, 0
    token, begun = current.set(_muted), time.perf_counter_ns()
    try:
        result = call()
    finally:
        end = time.perf_counter_ns()
        current.reset(token)
        inner, _moving.nested = _moving.nested, outer + end - begun
    safely(_moved, module, size, count, begun, end, end - begun - inner)
    return result


def _replace_into(original: Callable[..., Any]) -> Callable[..., Any]:
    aside = compiling()

    @functools.wraps(original)
    def pre_forward(self: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        if (aside is not None and aside()) or safely(_there, module, self.execution_device):
            return original(self, module, *args, **kwargs)
        return _move(module, self.execution_device, 1, lambda: original(self, module, *args, **kwargs))

    return pre_forward


def _replace_out(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def offload(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _move(self.model, "cpu", 0, lambda: original(self, *args, **kwargs))

    return offload


def _hook(attribute: str, replace: Callable[[Any], Any], why: str) -> Target:
    return Target(module="accelerate.hooks", attribute=attribute, kind=Kind.REPLACE, replace=replace, why=why)


ROWS = (
    _hook("AlignDevicesHook.pre_forward", _replace_align, "an offloaded module gets its weights"),
    _hook("CpuOffload.pre_forward", _replace_into, "a whole model goes to the device before it runs"),
    _hook("UserCpuOffloadHook.offload", _replace_out, "and back"),
)
