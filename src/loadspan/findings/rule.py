"""What a rule is, and how rules read a load: only values that a measurement can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from loadspan import units

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.model import Load

NOTABLE = 0.1
"""Share of a load from which a part of it is worth acting on: two runs of the same load differ by that much of themselves."""

_LARGEST = float(1 << 63)  # of what OpenTelemetry can carry
_DIGITS = 9  # of a second, as they are stored: a rule must say the same of what was just measured and of what was stored of it


class Told(NamedTuple):
    """What a rule has to say."""

    sentence: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that can be wrong with a load."""

    id: str
    when: str
    """What must be true."""
    mechanism: str
    """Why it costs time, in a sentence."""
    needs: tuple[str, ...]
    """Numbers that `check` is given, after the load and its seconds; where one is absent the rule is silent."""
    uses: tuple[str, ...] = ()
    """What else it looks at."""
    check: Callable[..., Told | None]
    of_short: bool = False
    """Whether it has something to say of loads that are too short to be worth advice."""


def usable(value: float | None) -> float | None:
    """*value* if it can be a size, a count, a share or a time."""
    return round(value, _DIGITS) if value is not None and 0 <= value < _LARGEST else None


def number(load: Load, name: str) -> float | None:
    """Attribute *name* if it is a number that was measured: a hostile trace may have any."""
    return usable(load.number(name))


def part(seconds: float, whole: float) -> str:
    """`6.20 s of 10.0 s`."""
    return f"{units.seconds(seconds)} of {units.seconds(whole)}"


def times(count: float) -> str:
    """`once`, `1 234 times`."""
    return "once" if count == 1 else f"{units.count(count)} times"
