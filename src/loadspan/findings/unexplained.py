"""Time in no stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import names, units
from loadspan.findings.rule import Rule, Told, part

if TYPE_CHECKING:
    from loadspan.model import Load

COVERED = 0.9
"""Share of a load in stages from which they explain it."""

LONG = 1.0
"""Seconds in no stage up to which it is not worth finding out: a tenth of a load that is short anyway."""

_FRAMES = 3
_OTHER = names.partition(names.OTHER)


def _unexplained(load: Load, seconds: float, coverage: float, other: float) -> Told | None:
    if coverage >= COVERED or other <= LONG:
        return None
    frames = load.texts(names.OTHER_FRAMES)[:_FRAMES]
    seen = f"; what ran there: {', '.join(frames)}" if frames else ""
    return Told(f"Wrap what ran in no stage with loadspan.stage: {part(other, seconds)} were in none{seen}.", other)


RULES = (
    Rule(
        id="unexplained",
        when=f"stages cover less than {units.share(COVERED)} of the load, and it spent more than {units.seconds(LONG)} in none",
        mechanism="What runs in no known stage is the program's own work, or that of a library that loadspan does not know.",
        needs=(names.COVERAGE, _OTHER),
        uses=(names.OTHER_FRAMES,),
        check=_unexplained,
    ),
)
