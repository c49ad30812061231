"""
A load as rows of a waterfall: plain data, without a width, a color or an escape sequence.

Facts are short texts; a fact that was not recorded has no text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadspan import names, units
from loadspan.model import Load
from loadspan.report import advice, curve, phrases
from loadspan.report.row import Interval, Row
from loadspan.report.tree import LAST_SEEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from loadspan.model import Span

MAX_ROWS = 40
"""Stages drawn for one load: a page of a terminal. The longest stay, the others are counted."""

_FRAMES = 3
_WORTH_A_ROW = 0.01  # share of the load


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """One load, ready to be drawn."""

    name: str | None
    duration: float | None
    size: int | None
    coverage: float | None
    notes: tuple[str, ...]
    """How the load came about: loader, implicit, ..."""
    facts: tuple[str, ...]
    """What the machine did meanwhile."""
    failure: str | None
    """Type and message of the exception that ended it."""
    ending: str | None
    """Where it was last seen, for a load that never ended."""
    died: bool
    rows: tuple[Row, ...]
    findings: tuple[tuple[str, str], ...] = ()
    """What to do about it: id and sentence."""


def waterfall(load: Load, *, running: bool = False, show_pid: bool = False) -> Waterfall:
    """
    The waterfall of *load*.

    Args:
        load: an outermost load.
        running: its process is still at it, so an absent end is no death.
        show_pid: name the process, where a run had several.
    """
    end = _end_of_view(load)
    spans = list(_nested(load))
    kept = _longest(spans)
    rows = [_row(span, depth, load.start, end) for span, depth in spans if id(span) in kept]
    rows.extend(_folded([span for span, _ in spans if id(span) not in kept]))
    rows.extend(_untold(load))
    rows.extend(_own(load))
    rows.extend(_other(load, end))
    rows.extend(curve.rows(load, end))
    return Waterfall(
        name=load.text(names.MODEL_NAME),
        duration=load.duration,
        size=load.size,
        coverage=load.number(names.COVERAGE),
        notes=tuple(phrases.notes(load, show_pid=show_pid)),
        facts=tuple(phrases.of_load(load)),
        failure=_failure(load),
        ending=_ending(load, end, running=running) if load.end is None else None,
        died=load.end is None and not running,
        rows=tuple(rows),
        findings=advice.of_load(load),
    )


def progress(size: int | None, total: int | None) -> str | None:
    """`12.3 of 20.1 GB`: the unit once if both share it; only the part where the whole is unknown."""
    if size is None or total is None or size > total:
        return None if size is None else units.size(size)
    part, whole = units.size(size), units.size(total)
    return f"{part.split()[0]} of {whole}" if part.split()[1] == whole.split()[1] else f"{part} of {whole}"


def _end_of_view(load: Load) -> int:
    """The last moment known of the load."""
    if load.end is not None:
        return load.end
    seen = load.attributes.get(LAST_SEEN)
    moments = [moment for span in load.walk() for moment in (span.start, span.end) if moment is not None]
    return max([*moments, seen] if isinstance(seen, int) else moments)


def _nested(load: Load) -> Iterator[tuple[Span, int]]:
    todo: list[tuple[Span, int]] = [(child, 0) for child in reversed(load.children)]
    while todo:
        span, depth = todo.pop()
        yield span, depth
        todo.extend((child, depth + 1) for child in reversed(span.children))


def _longest(spans: list[tuple[Span, int]]) -> set[int]:
    """Identities of the spans to draw: those that are open or failed, then the longest."""

    def weight(item: tuple[Span, int]) -> tuple[bool, float]:
        span = item[0]
        return span.end is None or span.error is not None, span.duration or 0

    return {id(span) for span, _ in sorted(spans, key=weight, reverse=True)[:MAX_ROWS]}


def _folded(hidden: list[Span]) -> Iterator[Row]:
    if not hidden:
        return
    counts = Counter(span.name for span in hidden)
    facts = [f"{phrases.count(number)} {name}" for name, number in counts.most_common(4)]
    if len(counts) > len(facts):
        facts.append(f"{len(counts) - len(facts)} other names")
    leaves = [span.duration for span in hidden if span.duration is not None and not span.children]
    if leaves:
        facts.append(f"longest {units.seconds(max(leaves))}")
    yield Row(label=f"{phrases.count(len(hidden))} shorter", facts=tuple(facts))


def _seconds(span: Span) -> float | None:
    """Seconds that a stage took: of many calls, one after the other, those inside the calls, as the throughput counts them."""
    busy, duration = span.number(names.BUSY_TIME), span.duration
    calls, at_once = span.number(names.OPERATION_COUNT) or 0, span.number(names.CONCURRENCY)
    return busy if busy is not None and calls > 1 and at_once == 1 and not span.children else duration


def _row(span: Span, depth: int, origin: int, end: int) -> Row:
    """The row of one stage or inner load."""
    seconds, size = _seconds(span), span.size
    throughput = span.number(names.THROUGHPUT)
    return Row(
        label=span.name or "unnamed",
        depth=depth,
        bars=(_share(span.start, span.end if span.end is not None else end, origin, end),),
        start=(span.start - origin) / 1e9,
        duration=seconds,
        exclusive=_exclusive(span),
        size=size,
        throughput=throughput if throughput and throughput > 0 else None,
        deferred=span.attributes.get(names.DEFERRED) is True,
        running=span.end is None,
        facts=tuple(phrases.of_span(span, _exclusive(span))),
        error=_failure(span),
    )


def _share(start: int, end: int, origin: int, last: int) -> Interval:
    whole = max(last - origin, 1)
    return min(max((start - origin) / whole, 0.0), 1.0), min(max((end - origin) / whole, 0.0), 1.0)


def _gaps(children: Iterable[Span], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of start..end that no child covers."""
    reached = start
    for child in children:  # sorted by start
        if child.start > reached:
            yield reached, min(child.start, end)
        reached = max(reached, child.end if child.end is not None else end)
        if reached >= end:
            return
    if reached < end:
        yield reached, end


def _exclusive(span: Span) -> float | None:
    """Seconds that were its own: as recorded, else those in which none of its children ran."""
    if (own := span.number(names.BUSY_TIME)) is not None:
        return own
    if span.end is None:
        return None
    return sum(end - start for start, end in _gaps(span.children, span.start, span.end)) / 1e9


def _untold(load: Load) -> Iterator[Row]:
    """Stages of a load that has no spans of them, as when it stands for many: all that is known are their seconds."""
    if not load.children:
        for stage, seconds in load.partition.items():
            if stage != names.OTHER:
                yield Row(label=stage, duration=seconds, exclusive=seconds, size=load.size)


def _own(load: Load) -> Iterator[Row]:
    """What loadspan itself needed, where that is worth a row. When it did is not kept: a little around each stage."""
    seconds = load.partition.get(names.OWN, 0.0)
    if load.duration and seconds >= _WORTH_A_ROW * load.duration:
        yield Row(label=names.OWN, duration=seconds, exclusive=seconds, facts=("its own work around stages",))


def _other(load: Load, end: int) -> Iterator[Row]:
    seconds = load.number(names.partition(names.OTHER))
    if seconds is None:
        return
    drawn = seconds > 0 and (bool(load.children) or len(load.partition) == 1)  # else nobody knows when its stages ran
    gaps = [_share(start, stop, load.start, end) for start, stop in _gaps(load.children, load.start, end)] if drawn else []
    yield Row(
        label=names.OTHER,
        bars=tuple(gaps),
        duration=seconds,
        exclusive=seconds,
        facts=load.texts(names.OTHER_FRAMES)[:_FRAMES],
    )


def _failure(span: Span) -> str | None:
    kind = span.text(names.ERROR_TYPE)
    if span.error is None and kind is None:
        return None
    message = " ".join((span.error or "").split())
    # Both "ValueError" + "ValueError: boom" and "builtins.ValueError" + "boom" occur.
    short = (kind or "").rpartition(".")[2]
    if not message or not short or message.startswith(short):
        return message or kind or "failed"
    return f"{short}: {message}"


def _ending(load: Load, end: int, *, running: bool) -> str:
    """`died in read at 12.3 of 20.1 GB after 41.2 s`."""
    after = f" after {units.seconds((end - load.start) / 1e9)}"
    unfinished = [span for span in load.walk() if isinstance(span, Load) and span.end is None]
    # While it runs, only what its own process says: another one's may have been killed.
    open_now = [stage for inner in unfinished if inner.pid == load.pid or not running for stage in inner.open_stages]
    if not open_now:
        return f"{'open' if running else 'never ended, last seen'}{after}"
    stages = []
    for stage in open_now:
        moved = progress(stage.size, stage.file_size)
        stages.append(f"{stage.name} at {moved}" if moved else stage.name)
    return f"{'now' if running else 'died'} in {' and '.join(stages)}{after}"
