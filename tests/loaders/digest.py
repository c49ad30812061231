"""What a loader returned or raised, as text that is equal only where every bit is: compared with and without loadspan."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import Any

_PLAIN = (str, int, float, complex, bool, bytes, type(None))


def of(thing: Any) -> str:
    """A line for each part of *thing*: arrays by type, shape, layout and hash, modules by state and class, errors with their causes."""
    return "\n".join(_lines("", thing, set()))


def _lines(place: str, thing: Any, above: set[int]) -> list[str]:
    if id(thing) in above:
        return [f"{place} again"]
    inside = above | {id(thing)}
    if isinstance(thing, BaseException):
        cause = thing.__cause__ or thing.__context__
        return [f"{place} raises {_kind(thing)} {thing}", *([] if cause is None else _lines(f"{place} from", cause, inside))]
    if hasattr(thing, "named_modules") and hasattr(thing, "state_dict"):
        return _module(place, thing, inside)
    if isinstance(thing, Mapping | list | tuple):
        parts = thing.items() if isinstance(thing, Mapping) else enumerate(thing)
        return [f"{place} {_kind(thing)}", *(line for key, value in parts for line in _lines(f"{place}[{key!r}]", value, inside))]
    return [f"{place} {repr(thing) if isinstance(thing, _PLAIN) else _array(thing) or _kind(thing)}"]


def _module(place: str, module: Any, inside: set[int]) -> list[str]:
    kinds = [f"{place}.{name} {_kind(child)} {child.training}" for name, child in module.named_modules()]
    return [*kinds, *_lines(f"{place}.state", dict(module.state_dict(keep_vars=True)), inside)]


def _array(thing: Any) -> str | None:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(thing, torch.Tensor):
        plain = thing.detach()
        if plain.device.type == "meta" or plain.layout != torch.strided or plain.is_quantized:
            return f"{plain.dtype} {tuple(plain.shape)} {plain.device} {plain.layout}"
        data = plain.to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return f"{plain.dtype} {tuple(plain.shape)} {plain.stride()} {plain.device} {thing.requires_grad} {_hash(data)}"
    if numpy is not None and hasattr(thing, "__array__") and hasattr(thing, "dtype"):
        data = numpy.asarray(thing)
        return f"{_kind(thing)} {data.dtype} {data.shape} {_hash(numpy.ascontiguousarray(data).tobytes())}"
    return None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _kind(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
