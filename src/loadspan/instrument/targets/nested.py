"""Whether a call is part of a load that its own library has opened: such a call is no load of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import names
from loadspan.instrument.live import recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.instrument.patching import Args, Kwargs


def inside(library: str) -> bool:
    """Whether the nearest open load that was declared is one of *library*."""
    frame = recorder.frame()
    return frame is not None and frame.load.explicit and frame.load.attributes.get(names.LOADER) == library


def outermost(library: str) -> Callable[[Args, Kwargs], bool]:
    """A row's `when`: the call is not inside a load of *library*."""
    return lambda args, kwargs: not inside(library)
