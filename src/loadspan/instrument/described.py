"""What targets and the public API may say of a load or a stage, and how little of the host's objects is enough to know them again."""

from __future__ import annotations

import os
import re
import sys
import weakref
from typing import TYPE_CHECKING, Any

from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.instrument.failure import Failure
    from loadspan.instrument.tally import Tally

_SAMPLE = 16
_SNAPSHOT = re.compile(r"[/\\]models--([^/\\]+)[/\\]snapshots[/\\][^/\\]+$")
"""A model in the local cache of the hub: the last part of its path is a revision."""


def sample(objects: Iterable[Any]) -> list[Any]:
    """At most sixteen of *objects*, spread evenly: enough to recognize a state dict of 20 000 tensors."""
    found = list(objects)
    return found if len(found) <= _SAMPLE else [found[index * len(found) // _SAMPLE] for index in range(_SAMPLE)]


def model_name(source: Any) -> str | None:
    """
    What to call a model that a program names by *source*: its id on a hub, else the last part of its path or address.

    Nothing is looked up: what could be an id (`org/name`) is taken for one.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    name = os.fsdecode(source)
    if name.count("/") <= 1 and not name.startswith(("/", ".", "~", "\\")):
        return name or None
    path = os.path.abspath(name)  # noqa: PTH100 - no Path object on the recording side
    snapshot = _SNAPSHOT.search(path)
    return snapshot[1].replace("--", "/") if snapshot is not None else os.path.basename(path)  # noqa: PTH119 - as above


def lasting(thing: Any) -> Any:
    """
    What may be referred to weakly for *thing*: of a tensor its storage, because torch refuses to swap tensors that are referred to weakly.

    That it refuses makes `.to()` of a quantized model raise, and lets peft swap adapters in another way. Before torch could swap tensors,
    a storage was a new object each time. None for a tensor without a storage, for example a sparse one.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(thing, torch.Tensor) or not hasattr(torch.utils, "swap_tensors"):
        return thing
    try:
        return thing.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None


def reference(thing: Any) -> weakref.ref[Any] | None:
    """A weak reference by which *thing* is known as long as it lives, None where its type has none."""
    there = lasting(thing)
    try:
        return None if there is None else weakref.ref(there)
    except TypeError:
        return None


class Described:
    """What targets and the public API may say of a load or a stage."""

    __slots__ = ("attributes", "failure", "module", "outputs", "paths", "size", "tallies", "things")

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self.attributes: dict[str, Any] = {}
        self.paths: dict[str, None] = {}
        self.size: int | None = None
        self.module: Any = None
        """Module this call works on, held only while it is open."""
        self.things: list[Any] = []
        """Tensors, buffers or file objects this call works on, held only while it is open."""
        self.outputs: list[Any] = []
        """Objects this call made, held only while it is open."""
        self.failure: Failure | None = None
        """What is kept of the exception that came last out of something inside it."""

    def let_go(self) -> None:
        """Keep nothing of the host's: contexts that were copied while it was open keep this frame for as long as they live."""
        self.module = None
        self.things, self.outputs = [], []
        self.tallies = {}  # each knows this frame: a program that collects no garbage would keep them all

    def file(self, path: Any, file_format: str | None = None) -> None:
        """Say that the call is about the file *path* (text, bytes or PathLike; anything else is ignored)."""
        if isinstance(path, str | bytes | os.PathLike):
            self.paths[os.fsdecode(path)] = None
        if file_format:
            self.attributes[names.FORMAT] = file_format

    def add(self, size: int) -> None:
        """Add bytes to the size."""
        self.size = (self.size or 0) + size
