"""The throughput curve of a load as a row of its waterfall."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from loadspan import names, units
from loadspan.report.row import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadspan.model import Load

_SHORTEST = 0.5  # seconds
_FEWEST = 5  # points
_FLOWING = 4  # steps in which something came
_WORTH_SHOWING = 0.1  # share of the load's bytes

_SERIES = ((names.CURVE_STORAGE_READ, "from storage"), (names.CURVE_READ, "through read()"))


def rows(load: Load, end: int) -> Iterator[Row]:
    """
    The curve of what came from storage, else of what read() returned; none for a short load, or where neither explains its bytes.

    *end*: of the view, nanoseconds since the epoch.
    """
    times, seconds = load.numbers(names.CURVE_TIME), (end - load.start) / 1e9
    if seconds < _SHORTEST or len(times) < _FEWEST or any(after <= before for before, after in itertools.pairwise(times)):
        return
    for name, label in _SERIES:
        values = load.numbers(name)
        if len(values) != len(times) or any(after < before for before, after in itertools.pairwise(values)):
            continue
        total = values[-1] - values[0]
        if total <= 0 or total < _WORTH_SHOWING * (load.size or 0):
            continue
        steps = zip(times, times[1:], values, values[1:], strict=False)
        if sum(after > before for before, after in itertools.pairwise(values)) < _FLOWING:
            continue  # a stage tells the rate of a moment better
        peak = max((after - before) / (stop - start) for start, stop, before, after in steps)
        points = tuple((min(at / seconds, 1.0), (value - values[0]) / total) for at, value in zip(times, values, strict=True))
        yield Row(label=label, size=int(total), curve=points, facts=(f"peak {units.throughput(peak)}",))
        return
