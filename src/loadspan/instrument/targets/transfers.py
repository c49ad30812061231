"""
What downloads of all libraries have in common.

Servers fetch small things all day. A download opens a load only if what it is about may be weights by its name, and the load is forgotten
if less came than weights have.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loadspan import names
from loadspan.instrument.frames import OpenLoad, OpenStage, current

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENS = 16 << 20
"""Bytes from which something that comes from somewhere may be weights, as of files that are read."""

_WEIGHTS = re.compile(
    r"\.(\d+|safetensors|bin|gguf|ggml|pt|pth|ckpt|onnx|msgpack|h5|keras|np[yz]|nemo|tensors|pkl|pickle|joblib|tflite|engine|plan|xml"
    r"|enc|aes|age|gpg|tar|t?gz|zip|zst|xz|lz4)",
    re.IGNORECASE,
)


def stage_of(frame: OpenStage | OpenLoad) -> OpenStage:
    """*frame*, which is a stage."""
    return frame  # type: ignore[return-value] # rows of downloads are stages


def may_be_weights(place: Any) -> bool:
    """Whether a path, key or address may be weights by its name: what has no ending may be anything."""
    if not isinstance(place, str | os.PathLike):
        return False
    ending = os.path.splitext(urlsplit(os.fspath(place)).path)[1]  # noqa: PTH122 - no Path object on the recording side
    return not ending or _WEIGHTS.fullmatch(ending) is not None


def around(name: str) -> Iterator[OpenStage]:
    """Open stages *name* of this context, the innermost first."""
    frame: OpenLoad | OpenStage | None = current.get()
    while frame is not None:
        if isinstance(frame, OpenStage) and frame.name == name:
            yield frame
        frame = frame.parent


def missed() -> None:
    """A download begins: what looked for it in a cache has not found it there."""
    for lookup in around(names.CACHE):
        lookup.attributes[names.CACHE_HIT] = False


def arrived(size: int) -> None:
    """So many bytes came, which go into the caches that were asked."""
    for lookup in around(names.CACHE):
        with lookup.load.lock:
            lookup.add(size)


def host(url: Any) -> dict[str, Any]:
    """The server of an address, as an attribute."""
    found = urlsplit(url).hostname if isinstance(url, str) else None
    return {names.SERVER_ADDRESS: found} if found else {}


def forget_small(stage: OpenStage) -> None:
    """Forget a download that opened a load of its own, if it was too small for one."""
    load = stage.load
    alone = not load.explicit and load.start == stage.start and stage.parent is load
    if alone and (stage.size_known or 0) < OPENS:
        stage.cancelled = True
