"""The throughput curve of a load: how far it had come at some moments, at most 120 of them however long it took."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Mapping

_PAUSE = 1.0  # seconds
MOST = 120
"""Points of one curve: what a terminal or a page can show."""


class Point(NamedTuple):
    """How far a load had come at one moment. All counts are from its start; None where the kernel does not tell."""

    at: float
    """Seconds from the start of the load."""
    size: int
    read: int | None = None
    storage_read: int | None = None
    disks: Mapping[str, int] = MappingProxyType({})


class Curve:
    """
    Points of one load. They are cumulative, so that leaving some out loses resolution and nothing else.

    Their distance doubles whenever they become too many. It is kept in seconds, not in ticks: the sampler stands still while the host
    holds the interpreter lock.
    """

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._last: Point | None = None
        self._distance = 0.0
        self._json = "{}"
        self._told = -_PAUSE

    def add(self, point: Point) -> None:
        """Take the point that comes next in time."""
        if self._last is not None and point.at <= self._last.at:
            return
        self._last = point
        if self._points and point.at - self._points[-1].at < self._distance:
            return
        self._points.append(point)
        if len(self._points) == MOST:
            self._distance = 1.9 * (point.at - self._points[0].at) / (MOST - 1)
            del self._points[1::2]

    def as_json(self) -> str:
        """The attributes as JSON, as they were at most a second ago: it takes 0.2 ms, and is asked for five times a second."""
        if self._last is not None and self._last.at - self._told >= _PAUSE:
            self._told = self._last.at
            self._json = json.dumps(self.attributes())
        return self._json

    def attributes(self) -> dict[str, Any]:
        """The curve as lists of equal length; empty where it has no more than its end. A list with an unknown value is left out."""
        points = self._points
        if self._last is not None and points and points[-1] is not self._last:
            points = [*points, self._last]
        if len(points) > 1 and round(points[-2].at, 3) == round(points[-1].at, 3):
            points = [*points[:-2], points[-1]]  # the sampler came just before the end
        if len(points) < 2:  # noqa: PLR2004 - a beginning and an end
            return {}
        found: dict[str, Any] = {
            names.CURVE_TIME: tuple(round(point.at, 3) for point in points),
            names.CURVE_SIZE: tuple(point.size for point in points),
            names.CURVE_READ: tuple(point.read for point in points),
            names.CURVE_STORAGE_READ: tuple(point.storage_read for point in points),
        }
        for disk in sorted({disk for point in points for disk in point.disks}):
            # A disk that was met later had delivered nothing for this load before.
            found[names.curve_of_disk(disk)] = tuple(point.disks.get(disk, 0) for point in points)
        return {name: values for name, values in found.items() if None not in values}
