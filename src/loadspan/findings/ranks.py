"""
What the processes of a group show only together: which of them was late, and what each of them read again.

A process knows its own load alone, so these rules run where the loads of all are read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING

from loadspan import names, units
from loadspan.findings.rule import NOTABLE, Rule, Told, part, usable
from loadspan.model import Finding, Load, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STRAGGLES = 0.25
"""Share of its load that a rank has to be behind the others: on a busy machine ranks differ by less than that of themselves."""

HALF_READ = 0.5
"""Share of a file from which a rank has read it, and not only its part of it."""

LONG = 1.0
"""Seconds from which the slowest rank's load is worth advice."""

_LARGEST_GROUP = 1 << 20
_FROM_FILES = (names.READ, names.DESERIALIZE, names.DECRYPT)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file, or several of one stage, that more than one rank read."""

    path: str
    count: int
    size: int | None
    """Of the file itself."""
    read: dict[int, int]
    """Bytes by rank."""

    @property
    def name(self) -> str:
        """`model.safetensors`, `model-00001.safetensors and 3 others`."""
        name = self.path.rstrip("/").rpartition("/")[2] or self.path
        return name if self.count < 2 else f"{name} and {self.count - 1} {'other' if self.count == 2 else 'others'}"  # noqa: PLR2004 - singular

    @property
    def total(self) -> int:
        """Bytes of all ranks."""
        return sum(self.read.values())


@dataclass(frozen=True)
class Group:
    """The same load on several ranks, by rank. All have ended."""

    loads: dict[int, Load]
    world_size: int

    @property
    def name(self) -> str | None:
        """The model's, where all say the same."""
        found = {load.text(names.MODEL_NAME) for load in self.loads.values()}
        return found.pop() if len(found) == 1 else None

    @cached_property
    def seconds(self) -> dict[int, float]:
        """How long each rank took."""
        return {rank: load.duration or 0.0 for rank, load in self.loads.items()}

    @cached_property
    def slowest(self) -> int:
        """Its rank."""
        return max(self.seconds, key=lambda rank: self.seconds[rank])

    @cached_property
    def usual(self) -> float:
        """Seconds of the others, their median."""
        return median(seconds for rank, seconds in self.seconds.items() if rank != self.slowest)

    @property
    def excess(self) -> float:
        """Seconds by which the slowest is behind the others."""
        return self.seconds[self.slowest] - self.usual

    @cached_property
    def longer(self) -> list[tuple[str, float]]:
        """Stages (or `other`) in which the slowest rank was longer than the others are, and by how many seconds; the most first."""
        mine = self.loads[self.slowest].partition
        others = [load.partition for rank, load in self.loads.items() if rank != self.slowest]
        more = [(stage, seconds - median(other.get(stage, 0.0) for other in others)) for stage, seconds in mine.items()]
        return sorted((item for item in more if item[1] >= NOTABLE * self.excess > 0), key=lambda item: -item[1])

    @cached_property
    def files(self) -> list[File]:
        """Files that several ranks read, the most bytes first."""
        found: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
        sizes: dict[tuple[str, int], int] = {}
        for rank, load in self.loads.items():
            for key, read, size in _read_by(load):
                found[key][rank] = found[key].get(rank, 0) + read
                if size is not None:
                    sizes[key] = size
        files = [File(path=path, count=count, size=sizes.get((path, count)), read=read) for (path, count), read in found.items()]
        return sorted((file for file in files if len(file.read) > 1), key=lambda file: -file.total)


def _read_by(load: Load) -> Iterator[tuple[tuple[str, int], int, int | None]]:
    """Path and number of files, bytes and size of each file that *load* read. What read inside a call that reads is told by that call."""
    read: dict[str, Counter[tuple[str, int]]] = {names.READ: Counter(), names.DESERIALIZE: Counter()}
    sizes: dict[tuple[str, int], int] = {}
    for span in load.walk():
        path, size = span.text(names.FILE_PATH), span.size
        if not isinstance(span, Stage) or span.name not in read or path is None or not size:
            continue
        key = path, int(usable(span.number(names.FILE_COUNT)) or 1)
        read[span.name][key] += size
        if (whole := usable(span.number(names.FILE_SIZE))) is not None:
            sizes[key] = int(whole)
    for key in {**read[names.READ], **read[names.DESERIALIZE]}:
        yield key, read[names.READ].get(key) or read[names.DESERIALIZE][key], sizes.get(key)


def groups(loads: Iterable[Load]) -> list[Group]:
    """The groups among *loads* and the loads in them: what each rank loaded as its first, its second, ... of a name belongs together."""
    ranked: dict[tuple[str | None, int, str | None], dict[int, dict[int | None, list[Load]]]] = {}
    for load in sorted((load for top in loads for load in _of_ranks(top)), key=lambda load: load.start):
        rank, size = int(load.number(names.RANK) or 0), int(load.number(names.WORLD_SIZE) or 0)
        of_group = ranked.setdefault((load.text(names.LOAD_ID), size, load.text(names.MODEL_NAME)), {})
        of_group.setdefault(rank, {}).setdefault(load.pid, []).append(load)
    found = []
    for (_, size, _), ranks in ranked.items():
        places: dict[tuple[int, int], dict[int, Load]] = defaultdict(dict)
        for rank, processes in ranks.items():
            # A launcher that starts all anew after a failure has several processes of a rank, one after the other.
            for attempt, theirs in enumerate(processes.values()):
                for number, load in enumerate(theirs):
                    places[attempt, number][rank] = load
        found += [Group(dict(sorted(members.items())), size) for members in places.values() if len(members) > 1]
    return sorted(found, key=lambda group: min(load.start for load in group.loads.values()))


def _of_ranks(top: Load) -> Iterator[Load]:
    """Loads that ended, of a process of a group, and in no other load of that process."""
    for span in top.walk():
        if isinstance(span, Load) and span.duration and span.attributes.get(names.INNER) is not True:
            rank, size = usable(span.number(names.RANK)), usable(span.number(names.WORLD_SIZE))
            if rank is not None and size is not None and rank < size <= _LARGEST_GROUP:
                yield span


def find(group: Group) -> list[Finding]:
    """Findings of a group."""
    return [_as_finding(rule, told, group) for rule in RULES if (told := rule.check(group)) is not None]


def _as_finding(rule: Rule, told: Told, group: Group) -> Finding:
    return Finding(
        id=rule.id,
        severity="notice" if told.seconds is None else "major" if told.seconds >= STRAGGLES * group.seconds[group.slowest] else "minor",
        sentence=told.sentence,
        mechanism=rule.mechanism,
        evidence=((names.RANK, group.slowest), (names.WORLD_SIZE, group.world_size)),
        seconds=told.seconds,
    )


def _straggler(group: Group) -> Told | None:
    took = group.seconds[group.slowest]
    if took < LONG or group.excess < STRAGGLES * took:
        return None
    more = [f"{units.seconds(seconds)} more in {'no stage' if stage == names.OTHER else stage}" for stage, seconds in group.longer[:2]]
    where = f": {' and '.join(more)}" if more else ""
    return Told(
        f"Look at rank {group.slowest}, for which the others wait: its load took {units.seconds(took)}, "
        f"the median of the other {len(group.loads) - 1} is {units.seconds(group.usual)}{where}.",
        group.excess,
    )


def _read_by_ranks(group: Group) -> Told | None:
    slowest = group.loads[group.slowest]
    took = sum(slowest.partition.get(stage, 0.0) for stage in _FROM_FILES)
    whole = group.seconds[group.slowest]
    again = [file for file in group.files if file.size and sum(read >= HALF_READ * file.size for read in file.read.values()) > 1]
    if not again or whole < LONG or took < NOTABLE * whole:
        return None
    files = f"{again[0].name}" + (f" and {len(again) - 1} more" if len(again) > 1 else "")
    ranks = max(len(file.read) for file in again)
    size, total = sum(file.size or 0 for file in again), sum(file.total for file in again)
    return Told(
        f"Have one rank read {files} and hand the weights to the others, or let each read only its part: {ranks} ranks read "
        f"{units.size(total)} in all where the files have {units.size(size)}, and the slowest rank spent {part(took, whole)} on it."
    )


RULES = (
    Rule(
        id="straggler",
        when=f"the slowest rank's load took {units.seconds(LONG)} or more, and at least {units.share(STRAGGLES)} of it more than the "
        "median of the other ranks",
        mechanism="A group goes on when its last rank has loaded: the time of all others until then is lost.",
        needs=(),
        uses=(names.RANK, names.WORLD_SIZE, names.LOAD_ID),
        check=_straggler,
    ),
    Rule(
        id="file-read-by-ranks",
        when=f"several ranks each read at least {units.share(HALF_READ)} of the same file, and the slowest spent at least "
        f"{units.share(NOTABLE)} of a load of {units.seconds(LONG)} or more with read, decrypt and deserialize",
        mechanism="Storage, or the page cache, delivers the same bytes once for each rank, which share its rate; each rank decrypts or "
        "parses them again.",
        needs=(),
        uses=(names.RANK, names.WORLD_SIZE, names.LOAD_ID, names.FILE_PATH, names.FILE_SIZE, names.SIZE),
        check=_read_by_ranks,
    ),
)
"""Rules of groups: `check` is given the group."""
