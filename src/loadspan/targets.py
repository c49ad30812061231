"""
Rows for a library that loadspan does not know: what to wrap, and how to read path, bytes and device out of a call.

A distribution brings rows by an entry point of the group `loadspan_targets`, whose name is the module that they wait for:

    [project.entry-points.loadspan_targets]
    acme = "acme_loadspan:ROWS"

It gives an iterable of `Target`, or a function of no arguments that returns one. It is looked at once `acme` has been imported and
loads are recorded, never before: it may import `acme`, and costs nothing where nobody does. What fails in it is told in one warning.

Everything here is stable; nothing else of the recording side is.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadspan import names
from loadspan.api import Handle
from loadspan.guard import safely
from loadspan.instrument.patching import argument

__all__ = ["Args", "Call", "Describe", "Kind", "Kwargs", "Measure", "Target", "argument"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class Kind(enum.Enum):
    """How the calls of a function are recorded."""

    ROOT = "a load of its own"
    COARSE = "a stage, one span each"
    FINE = "a stage, per tensor or per chunk: counted, one span for all"


class Call(Handle):
    """A call of a wrapped function: `add` and `set` say of it what they say of `with loadspan.stage(...) as stage`."""

    __slots__ = ()

    def uses(self, *things: Any) -> None:
        """Say what it works on (modules, tensors, buffers): where nobody declares loads, a load is known again by them."""
        safely(self._take, "things", things)

    def makes(self, *things: Any) -> None:
        """Say what it made: the call that uses them later belongs to the same load."""
        safely(self._take, "outputs", things)

    def _take(self, kind: str, things: tuple[Any, ...]) -> None:
        frame = self._frame
        if frame is None:
            return
        for thing in things:
            if kind == "things" and hasattr(type(thing), "load_state_dict"):
                frame.module = thing
            else:
                getattr(frame, kind).append(thing)


Describe = Callable[[Call, Args, Kwargs], None]
Measure = Callable[[Call, Any, Args, Kwargs], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """
    One function to wrap.

    Callbacks get the positional and keyword arguments of the call (a method's first is the object) and must not change them. One that
    fails is told of in one warning; the call and its result are the host's own all the same.

    Raises:
        ValueError: the fields do not go together.
    """

    module: str
    """Module that has it: `acme.loader`. Nothing is imported: the row waits for it."""
    attribute: str
    """Dotted path in the module: `load` or `Model.read_weights`. Where a version of the library has none, the row is skipped."""
    why: str
    """What is called there, for whoever reads the rows."""
    kind: Kind = Kind.COARSE
    stage: str = ""
    """One of the stage names; of a root none."""
    describe: Describe | None = None
    """Before the call (not of a fine one): what the arguments tell."""
    measure: Measure | None = None
    """After a call (not a fine one) that returned: what the result tells."""
    when: Callable[[Args, Kwargs], bool] | None = None
    """Whether a call is of interest. Asked first, each time: it must cost next to nothing."""
    size: Callable[[Any, Args, Kwargs], int | None] | None = None
    """Of a fine call: bytes, from result and arguments."""
    path: Callable[[Args, Kwargs], str | None] | None = None
    """Of a fine call: the file."""
    format: str | None = None
    """Of fine calls: format of the file."""
    deferred: bool = False
    """Of fine calls: whether the bytes arrive later (a mapped file, a lazy reader), so that no throughput is shown."""

    def __post_init__(self) -> None:
        wrong = None
        if self.kind is Kind.ROOT and self.stage:
            wrong = "a root is a load and no stage"
        elif self.kind is not Kind.ROOT and self.stage not in names.STAGES:
            wrong = f"{self.stage!r} is not a stage. Use one of: {', '.join(names.STAGES)}"
        elif self.kind is Kind.FINE and (self.describe or self.measure):
            wrong = "fine calls are counted: they have `size` and `path`, not `describe` and `measure`"
        elif self.kind is not Kind.FINE and (self.size or self.path or self.format or self.deferred):
            wrong = "`size`, `path`, `format` and `deferred` are of fine calls: say it in `describe` or `measure`"
        if wrong:
            raise ValueError(f"loadspan: row {self.module}.{self.attribute}: {wrong}.")
