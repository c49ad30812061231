"""The ranks of a group in a few lines: how many, which was the slowest and why, what they read more than once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import names, units
from loadspan.findings import ranks
from loadspan.report import terminal
from loadspan.report.text import BOLD, DIM, Piece, clean, join, wrap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.findings.ranks import Group
    from loadspan.model import Load
    from loadspan.report.terminal import Look

MOST_GROUPS = 20
_FILES = 3


def lines(loads: Iterable[Load], look: Look) -> list[str]:
    """Of each group among *loads*; nothing where there is none."""
    found: list[str] = []
    groups = ranks.groups(loads)
    for group in groups[:MOST_GROUPS]:
        found += _lines(group, look)
    if len(groups) > MOST_GROUPS:
        found.append(f"{units.count(len(groups) - MOST_GROUPS)} more groups of ranks")
    return found


def _lines(group: Group, look: Look) -> list[str]:
    width = max(look.width, terminal.NARROWEST)
    known = [*wrap(_headline(group), width), *([("  ", ""), *line] for line in wrap(_files(group), width - 2))]
    for finding in ranks.find(group):
        known += terminal.finding(finding.id, clean(finding.sentence), width)
    return [join(line, color=look.color) for line in known]


def _headline(group: Group) -> list[Piece]:
    members = f"{len(group.loads)} of {group.world_size} ranks" if len(group.loads) < group.world_size else f"{group.world_size} ranks"
    pieces: list[Piece] = [(members, BOLD)]
    if group.name:
        pieces.append((clean(group.name), BOLD))
    pieces.append((f"slowest rank {group.slowest}: {units.seconds(group.seconds[group.slowest])}", BOLD))
    pieces.append((f"{units.seconds(group.excess)} over the median of the others", ""))
    more = [f"{'no stage' if stage == names.OTHER else stage} +{units.seconds(seconds)}" for stage, seconds in group.longer[:2]]
    return [*pieces, *((text, DIM) for text in more)]


def _files(group: Group) -> list[Piece]:
    files = group.files
    pieces: list[Piece] = [
        (f"{clean(file.name)} read by {len(file.read)} ranks, {units.size(file.total)} in all", "") for file in files[:_FILES]
    ]
    if len(files) > _FILES:
        rest = files[_FILES:]
        pieces.append((f"{len(rest)} more files read by several ranks, {units.size(sum(file.total for file in rest))} in all", ""))
    return pieces
