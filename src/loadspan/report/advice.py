"""What to do about a load, as it was told when the load ended; else as the same rules tell it now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import findings, names

if TYPE_CHECKING:
    from loadspan.model import Load

_MOST, _LONGEST = 20, 1024  # of a hostile trace; ours are fewer and shorter


def of_load(load: Load) -> tuple[tuple[str, str], ...]:
    """Id and sentence of each finding of an outermost load."""
    recorded = [(known, text[:_LONGEST]) for known in load.texts(names.FINDINGS)[:_MOST] if (text := load.text(names.finding(known)))]
    return tuple(recorded or [(found.id, found.sentence) for found in findings.find(load)])
