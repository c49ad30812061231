"""What a loader returned or raised, as lines that are equal only where every bit is: compared with and without loadspan."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

_PLAIN = (str, int, float, complex, bool, bytes, type(None))
_TELLING = ("torch.dtype", "torch.device", "torch.layout", "pathlib.PosixPath")
"""Types whose `repr` says all there is."""
_CLOSED = ("module", "Logger", "Thread", "Lock", "RLock", "_RLock", "Context")
"""Types that lead to the whole program."""
_DEEPEST = 6
_MOST = 50_000


def of(thing: Any) -> list[str]:
    """
    A line for each part of *thing*: arrays by type, shape, layout and hash, modules by what hangs on them, errors with their causes.

    Objects met twice are named by their first place: weights that are tied and storages that are shared have to stay so.
    """
    seen = _Seen()
    seen.look("result", thing, 0)
    return seen.lines


class _Seen:
    """The lines, and where each object and storage was met first."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._objects: dict[int, tuple[str, Any]] = {}
        self._storages: dict[int, str] = {}

    def look(self, place: str, thing: Any, depth: int) -> None:
        """Add the lines of *thing*, which is at *place*."""
        if isinstance(thing, _PLAIN):
            self._say(place, repr(thing))
        elif id(thing) in self._objects:
            self._say(place, f"is {self._objects[id(thing)][0]}")
        elif len(self.lines) < _MOST:
            self._objects[id(thing)] = place, thing  # kept alive: another object must not get its identity
            self._look_into(place, thing, depth)

    def _say(self, place: str, what: str) -> None:
        self.lines.append(f"{place} {what}")

    def _look_into(self, place: str, thing: Any, depth: int) -> None:
        array = self._array(thing)
        if array is not None:
            self._say(place, array)
            self._carried(place, thing, depth)
        elif _kind(thing) in _TELLING:
            self._say(place, repr(thing))
        elif isinstance(thing, BaseException):
            self._error(place, thing)
        elif hasattr(thing, "named_modules") and hasattr(thing, "state_dict"):
            self._module(place, thing)
        elif isinstance(thing, type) or callable(getattr(thing, "__get__", None)):
            self._say(place, f"{_kind(thing)} {getattr(thing, '__qualname__', '')}")
        elif isinstance(thing, AbstractSet):
            self._say(place, f"{_kind(thing)} {sorted(map(repr, thing)) if all(isinstance(one, _PLAIN) for one in thing) else len(thing)}")
        elif depth >= _DEEPEST or type(thing).__name__ in _CLOSED:
            self._say(place, _kind(thing))
        else:
            self._parts(place, thing, depth)

    def _parts(self, place: str, thing: Any, depth: int) -> None:
        self._say(place, _kind(thing))
        if isinstance(thing, Mapping):
            parts = [(f"[{key!r}]" if isinstance(key, _PLAIN) else f"[{_kind(key)}]", value) for key, value in thing.items()]
        elif isinstance(thing, list | tuple):
            parts = [(f"[{index}]", value) for index, value in enumerate(thing)]
        elif callable(getattr(thing, "get_weights", None)):
            parts = [(f".get_weights()[{index}]", value) for index, value in enumerate(thing.get_weights())]
        else:
            parts = [(f".{name}", value) for name, value in sorted(getattr(thing, "__dict__", {}).items())]
        for name, value in parts:
            self.look(f"{place}{name}", value, depth + 1)

    def _error(self, place: str, error: BaseException) -> None:
        self._say(place, f"raises {_kind(error)} {error} {getattr(error, '__notes__', [])} {error.__suppress_context__}")
        for name, other in (("cause", error.__cause__), ("context", error.__context__)):
            if other is not None:
                self.look(f"{place}.{name}", other, 0)

    def _module(self, place: str, module: Any) -> None:
        for name, child in module.named_modules(remove_duplicate=False):
            hooks = [len(child._forward_pre_hooks), len(child._forward_hooks)]  # noqa: SLF001 - no other way to them
            self._say(f"{place}.{name}", f"{_kind(child)} {child.training} {hooks} {sorted(vars(child))}")
            for holder in (child._parameters, child._buffers):  # noqa: SLF001 - those that are not saved and those that are tied too
                for key, tensor in holder.items():
                    self.look(f"{place}.{name}.{key}", tensor, 0)
        config = getattr(module, "config", None)
        if callable(getattr(config, "to_dict", None)):
            self.look(f"{place}.config", config.to_dict(), 0)

    def _carried(self, place: str, thing: Any, depth: int) -> None:
        """What a tensor of a class of its own is made of, or carries: values and scales of quantized ones."""
        if hasattr(thing, "__tensor_flatten__"):
            named = {name: getattr(thing, name) for name in thing.__tensor_flatten__()[0]}
            parts = {name: part for name, part in named.items() if hasattr(part, "dtype")}  # a sharded one names its device mesh, too
        elif _kind(thing).startswith(("torch.", "numpy.")):
            return
        else:
            parts = {name: value for name, value in vars(thing).items() if not hasattr(value, "named_modules")}
        for name, value in parts.items():
            self.look(f"{place}.{name}", value, depth + 1)

    def _array(self, thing: Any) -> str | None:
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if torch is not None and isinstance(thing, torch.Tensor):
            return self._tensor(thing, torch, whole=True)
        if numpy is not None and hasattr(thing, "__array__") and hasattr(thing, "dtype"):
            data = numpy.ascontiguousarray(numpy.asarray(thing))
            return f"{_kind(thing)} {data.dtype} {data.shape} {_hash(data.tobytes())}"
        return None

    def _tensor(self, tensor: Any, torch: Any, *, whole: bool = False) -> str:
        plain = tensor.to_local().detach() if hasattr(tensor, "to_local") else tensor.detach()
        about = f"{_kind(tensor)} {plain.dtype} {tuple(tensor.shape)} {plain.device} {plain.layout} {tensor.requires_grad}"
        if plain.device.type == "meta" or hasattr(plain, "__tensor_flatten__"):
            return about
        if plain.layout != torch.strided:
            return f"{about} {self._tensor(plain.to_dense(), torch)}"
        if plain.is_quantized:
            return f"{about} {plain.q_scale()} {plain.q_zero_point()} {self._tensor(plain.int_repr(), torch)}"
        if whole and plain.numel() and plain.untyped_storage().data_ptr():  # a part made here is gone soon, and another gets its place
            first = self._storages.setdefault(plain.untyped_storage().data_ptr(), len(self._storages))
            about += f" {plain.stride()} of storage {first} at {plain.storage_offset()}"
        data = plain.to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return f"{about} {_hash(data)}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _kind(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
