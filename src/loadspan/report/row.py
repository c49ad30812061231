"""One line of a waterfall."""

from __future__ import annotations

from dataclasses import dataclass

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the waterfall. `start` and durations in seconds, `bars` as shares of the view from 0 to 1."""

    label: str
    depth: int = 0
    bars: tuple[Interval, ...] = ()
    start: float | None = None
    duration: float | None = None
    exclusive: float | None = None
    size: int | None = None
    throughput: float | None = None
    deferred: bool = False
    running: bool = False
    facts: tuple[str, ...] = ()
    error: str | None = None
    curve: tuple[Interval, ...] = ()
    """Instead of bars: points of a growing number of bytes, as shares of the view and of the last of them."""
