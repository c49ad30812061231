"""Which load a call is part of: a loader that calls another of its library for the same model makes one load, not two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import names
from loadspan.instrument.live import recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.instrument.frames import OpenLoad, OpenStage
    from loadspan.instrument.patching import Args, Kwargs


OPENS = 1 << 20
"""Bytes from which a payload, a file or a segment is as large as weights, and may open an implicit load."""


def around() -> OpenLoad | None:
    """The explicit load that a call made here would be part of."""
    frame = recorder.frame() if recorder.loads else None
    return frame.load if frame is not None and frame.load.explicit else None


def by(library: str) -> OpenLoad | None:
    """The load that a call made here would be part of, if *library* opened it."""
    load = around()
    return load if load is not None and load.attributes.get(names.LOADER) == library else None


def inside(library: str) -> Callable[[Args, Kwargs], bool]:
    """`when` of a row: whether a call is inside a load of *library*."""
    return lambda args, kwargs: by(library) is not None


def outermost(library: str) -> Callable[[Args, Kwargs], bool]:
    """`when` of a row: whether a call is not inside a load of *library*."""
    return lambda args, kwargs: by(library) is None


def same(library: str, name: str | None) -> bool:
    """Whether this is inside a load by *library* of the model *name*, or of one that neither has named."""
    load = by(library)
    return load is not None and (name is None or load.name in (None, name))


def during(args: Args, kwargs: Kwargs) -> bool:
    """`when` of a row: whether any load is open."""
    return bool(recorder.loads)


def part(args: Args, kwargs: Kwargs) -> bool:
    """`when` of a row: whether a call is part of an explicit load. By itself, making a tokenizer or a module loads no model."""
    return recorder.active and around() is not None


def made(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    """`describe` of a constructor, of a method or of a class method: the class of what is made."""
    kind = args[0] if isinstance(args[0], type) else type(args[0])
    stage.attributes[names.MADE] = kind.__qualname__
