"""Which load a call is part of: a loader that calls another of its library for the same model makes one load, not two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import names
from loadspan.instrument.live import recorder

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad


def around() -> OpenLoad | None:
    """The explicit load that a call made here would be part of."""
    frame = recorder.frame() if recorder.loads else None
    return frame.load if frame is not None and frame.load.explicit else None


def same(library: str, name: str | None) -> bool:
    """Whether this is inside a load by *library* of the model *name*, or of one that neither has named."""
    load = around()
    return load is not None and load.attributes.get(names.LOADER) == library and (name is None or load.name in (None, name))
