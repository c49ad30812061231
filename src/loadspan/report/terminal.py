"""A waterfall as lines of text, for a given width, with or without color."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadspan import names, units
from loadspan.report.text import BOLD, DIM, RED, YELLOW, Piece, cells, clean, join, left, paragraph, right, wrap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadspan.report.row import Interval, Row
    from loadspan.report.timeline import Waterfall

NARROWEST = 60
_INDENT = "  "
_LABEL, _SECONDS, _SIZE, _THROUGHPUT = len(names.LOAD_STATE_DICT), 8, 7, 9  # least widths, so that the columns of several loads agree
_LONGEST_LABEL = 26
_LONGEST_NAME = 40
_DEEPEST = 5  # levels that are indented
_FACTS_BESIDE = 56  # columns left of bar and facts from which they share a line
_NARROWEST_BAR, _WIDEST_BAR = 6, 60
_LONGEST_NUMBER = 12  # a hostile one may have 300 digits

# One color per stage, of the sixteen that every theme defines.
_COLORS = {
    names.DOWNLOAD: "34",
    names.READ: "36",
    names.DECRYPT: "35",
    names.DESERIALIZE: "33",
    names.INITIALIZE: "94",
    names.LOAD_STATE_DICT: "32",
    names.CONVERT: "95",
    names.MERGE_LORA: "93",
    names.TO_DEVICE: "92",
    names.COMPILE: "96",
    names.CACHE: "37",
    names.OWN: "90",
    names.OTHER: "90",
}


@dataclass(frozen=True, slots=True)
class Look:
    """How to draw: *width* in columns, *color* as escape sequences, *blocks* where the output can show more than ASCII."""

    width: int = 80
    color: bool = False
    blocks: bool = True


@dataclass(frozen=True, slots=True)
class _Columns:
    label: int
    bar: int
    seconds: int
    size: int
    throughput: int
    facts: int
    """0: the facts have lines of their own, below."""


def lines(waterfall: Waterfall, look: Look) -> list[str]:
    """All lines of one load: header, stages, other."""
    width = max(look.width, NARROWEST)
    columns = _columns(waterfall.rows, width)
    found = _header(waterfall, width)
    shown = {row.error for row in waterfall.rows if row.error}
    if waterfall.failure and waterfall.failure not in shown:
        found += [[(_INDENT, ""), *line] for line in wrap([(clean(waterfall.failure), RED)], width - 2)]
    if waterfall.facts:
        found += [[(_INDENT, ""), *line] for line in wrap([(clean(fact), DIM) for fact in waterfall.facts], width - 2)]
    for index, row in enumerate(waterfall.rows):
        below = waterfall.rows[index + 1] if index + 1 < len(waterfall.rows) else None
        inherited = below is not None and below.depth > row.depth and below.error == row.error
        lost = row.error is not None or (row.running and waterfall.died)
        found += _row(row, columns, look, lost=lost, error=None if inherited else row.error)
    for known, sentence in waterfall.findings:
        found += finding(clean(known), clean(sentence), width)
    return [join(line, color=look.color) for line in found]


def headline(waterfall: Waterfall, look: Look) -> str:
    """The load in one line."""
    return join(_header(waterfall, 1 << 16)[0], color=look.color)


def summary(waterfalls: list[Waterfall], look: Look) -> list[str]:
    """One line per load, in columns."""
    names_of = [clean(waterfall.name or names.LOAD_SPAN) for waterfall in waterfalls]
    label = min(max(map(cells, names_of), default=0), _LONGEST_NAME)
    found = []
    for name, waterfall in zip(names_of, waterfalls, strict=True):
        seconds = units.seconds(waterfall.duration) if waterfall.duration is not None else ""
        lost = waterfall.failure is not None or waterfall.died
        pieces = [(_INDENT, ""), (left(name, label), RED if lost else ""), (right(seconds, _SECONDS + 4), BOLD), ("  ", "")]
        details = wrap(_details(waterfall), max(look.width, NARROWEST) - label - _SECONDS - 8)
        found.append(join([*pieces, *(details[0] if details else [])], color=look.color))
    return found


def _header(waterfall: Waterfall, width: int) -> list[list[Piece]]:
    bad = waterfall.failure is not None or waterfall.died
    pieces: list[Piece] = [(names.LOAD_SPAN, f"{BOLD};{RED}" if bad else BOLD)]
    if waterfall.name:
        pieces.append((clean(waterfall.name), BOLD))
    if waterfall.duration is not None:
        pieces.append((units.seconds(waterfall.duration), BOLD))
    first, *rest = wrap([*pieces, *_details(waterfall)], width)
    return [first, *([(_INDENT, ""), *line] for line in rest)]


def _details(waterfall: Waterfall) -> list[Piece]:
    """What is known of the load beyond name and duration."""
    pieces: list[Piece] = []
    if waterfall.ending:
        pieces.append((clean(waterfall.ending), RED if waterfall.died else ""))
    if waterfall.size is not None and not waterfall.ending:  # the ending says how far it came
        pieces.append((units.size(waterfall.size), ""))
    if waterfall.coverage is not None:
        pieces.append((f"coverage {100 * waterfall.coverage:.1f} %", ""))
    if waterfall.notes:
        pieces.append((f"({clean(', '.join(waterfall.notes))})", RED if waterfall.failure else DIM))
    return pieces


def finding(known: str, sentence: str, width: int) -> Iterator[list[Piece]]:
    """`! cache-cold: Keep ...`, below the rows, where the eye ends up."""
    first, *rest = paragraph(f"{known}: {sentence}", width - 4)
    head = first[: len(known) + 1] if first.startswith(f"{known}:") else ""
    yield [("  ! ", YELLOW), (head, BOLD), (first[len(head) :], "")]
    for line in rest:
        yield [("    ", ""), (line, "")]


def _cells_of(row: Row) -> tuple[str, str, str]:
    """The row's texts for seconds, size and throughput; unknown is empty."""
    return (
        units.seconds(row.duration) if row.duration is not None else "",
        units.size(row.size) if row.size is not None else "",
        units.throughput(row.throughput) if row.throughput is not None else "deferred" if row.deferred else "",
    )


def _columns(rows: tuple[Row, ...], width: int) -> _Columns:
    texts = [_cells_of(row) for row in rows]
    seconds, size, throughput = (
        max(least, *(min(len(text[column]), _LONGEST_NUMBER) for text in texts), least)
        for column, least in enumerate((_SECONDS, _SIZE, _THROUGHPUT))
    )
    numbers = 2 + seconds + 2 + size + 2 + throughput
    label = max([_LABEL, *(2 * min(row.depth, _DEEPEST) + cells(clean(row.label)) for row in rows)])
    label = max(min(label, _LONGEST_LABEL, width - numbers - _NARROWEST_BAR - 4), 1)
    rest = width - (2 + label + 2 + numbers)
    if rest < _FACTS_BESIDE:
        return _Columns(label, min(rest, _WIDEST_BAR), seconds, size, throughput, 0)
    bar = min(rest * 2 // 5, _WIDEST_BAR)
    return _Columns(label, bar, seconds, size, throughput, rest - bar - 2)


def _row(row: Row, columns: _Columns, look: Look, *, lost: bool, error: str | None) -> Iterator[list[Piece]]:
    """The lines of one row: *lost* paints it red, *error* is told below it."""
    color = _COLORS.get(row.label, "")
    seconds, size, throughput = _cells_of(row)
    line: list[Piece] = [
        (_INDENT, ""),
        (
            left("  " * min(row.depth, _DEEPEST) + clean(row.label), columns.label),
            RED if lost else BOLD if row.depth == 0 and color else "",
        ),
        ("  ", ""),
        *(_curve(row.curve, columns.bar, look) if row.curve else _bar(row.bars, columns.bar, RED if lost else color, look)),
        ("  ", ""),
        (right(seconds, columns.seconds), BOLD),
        ("  ", ""),
        (right(size, columns.size), ""),
        ("  ", ""),
        (right(throughput, columns.throughput), DIM if row.deferred and not row.throughput else ""),
    ]
    facts: list[Piece] = [(clean(fact), DIM) for fact in row.facts]
    if columns.facts:
        indent = 2 + columns.label + 2 + columns.bar + 2 + columns.seconds + 2 + columns.size + 2 + columns.throughput + 2
        first, *rest = wrap(facts, columns.facts) or [[]]
        yield [*line, ("  ", ""), *first]
    else:
        indent = 2 + columns.label + 2
        rest = wrap(facts, max(look.width, NARROWEST) - indent)
        yield line
    for more in rest:
        yield [(" " * indent, ""), *more]
    if error is not None:
        indent = 2 + columns.label + 2
        yield [(" " * indent, ""), *wrap([(clean(error), RED)], max(look.width, NARROWEST) - indent)[0]]


def _bar(bars: tuple[Interval, ...], width: int, color: str, look: Look) -> list[Piece]:
    """The bar in half columns; the shortest interval still gets one."""
    filled: set[int] = set()
    for start, end in bars:
        first = min(int(start * 2 * width), 2 * width - 1)
        filled.update(range(first, max(first + 1, round(end * 2 * width))))
    if not bars:
        return [(" " * width, "")]
    drawn = [(2 * column in filled, 2 * column + 1 in filled) for column in range(width)]
    if not look.blocks:
        return [("".join("#" if any(halves) else "-" for halves in drawn), "")]
    pieces: list[Piece] = []
    for halves in drawn:
        text, style = _BLOCKS[halves], color if any(halves) else DIM
        if pieces and pieces[-1][1] == style:
            pieces[-1] = (pieces[-1][0] + text, style)
        else:
            pieces.append((text, style))
    return pieces


def _curve(points: tuple[Interval, ...], width: int, look: Look) -> list[Piece]:
    """The rate at which *points* grow, a column for each part of the view, as heights of the highest."""
    reached = [_at(points, column / width) for column in range(width + 1)]
    rates = [after - before for before, after in itertools.pairwise(reached)]
    highest = max(rates)
    levels = _LEVELS if look.blocks else _ASCII_LEVELS
    return [("".join(levels[_level(rate, highest, len(levels))] for rate in rates), "")]


def _level(rate: float, highest: float, levels: int) -> int:
    """0 for nothing; the least there is for anything at all."""
    return 0 if rate <= 0 else min(levels - 1, max(1, round(rate / highest * (levels - 1))))


def _at(points: tuple[Interval, ...], place: float) -> float:
    """The curve's value at a place between its points."""
    before = points[0]
    for after in points[1:]:
        if after[0] >= place:
            share = (place - before[0]) / (after[0] - before[0])
            return before[1] + max(0.0, share) * (after[1] - before[1])
        before = after
    return before[1]


_LEVELS, _ASCII_LEVELS = "·▁▂▃▄▅▆▇█", " .:-=+*#"
_BLOCKS = {(True, True): "█", (True, False): "▌", (False, True): "▐", (False, False): "·"}
