"""
What a recorded load is, once it is recorded: plain data between the trace file and every view of it.

Times are nanoseconds since the epoch, as OpenTelemetry writes them; sizes are bytes; durations seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Value = str | bool | int | float | tuple[str, ...] | tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A time span with attributes and children. `end` is None while it is open."""

    name: str
    span_id: str
    parent_id: str | None
    start: int
    end: int | None
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str | None = None
    """Message of the exception that ended it."""
    children: tuple[Span, ...] = ()

    @property
    def duration(self) -> float | None:
        """Seconds from start to end, None while open."""
        return None if self.end is None else (self.end - self.start) / 1e9

    @property
    def size(self) -> int | None:
        """Bytes it brought or transformed, None where that is not known."""
        size = self.number(names.SIZE)
        return int(size) if size is not None and size >= 0 else None

    def number(self, name: str) -> float | None:
        """Attribute *name* if it is a number."""
        value = self.attributes.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def text(self, name: str) -> str | None:
        """Attribute *name* if it is text."""
        value = self.attributes.get(name)
        return value if isinstance(value, str) else None

    def texts(self, name: str) -> tuple[str, ...]:
        """Attribute *name* if it is a list of texts, else nothing."""
        value = self.attributes.get(name)
        return tuple(item for item in value if isinstance(item, str)) if isinstance(value, tuple) else ()

    def numbers(self, name: str) -> tuple[float, ...]:
        """Attribute *name* if it is a list of numbers, else nothing."""
        value = self.attributes.get(name)
        return tuple(item for item in value if isinstance(item, int | float)) if isinstance(value, tuple) else ()

    def walk(self) -> Iterator[Span]:
        """This span and everything below it, parents first."""
        # Not recursive: a hostile trace may be deeper than Python's stack.
        todo = [self]
        while todo:
            span = todo.pop()
            yield span
            todo.extend(reversed(span.children))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Span):
    """One stage of a load: a call, or the tally of many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStage:
    """A stage that was running when the state file was last written."""

    name: str
    size: int | None
    file_size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Span):
    """One load: the root and all under it."""

    trace_id: str
    pid: int | None
    open_stages: tuple[OpenStage, ...] = ()
    """What ran when the process died; empty for a load that ended."""

    @property
    def stages(self) -> Iterator[Stage]:
        """All stages, nested ones and those of inner loads included."""
        return (span for span in self.walk() if isinstance(span, Stage))

    @property
    def partition(self) -> dict[str, float]:
        """Exclusive seconds per stage and `other`, in stage order; empty for a load that never ended."""
        found = {stage: self.number(names.partition(stage)) for stage in names.PARTS}
        return {stage: value for stage, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What to do about a load, and why."""

    id: str
    severity: Literal["major", "minor", "notice"]
    """By the seconds: `major` and `minor` for a large or small share of the load, `notice` where they are not known."""
    sentence: str
    """Advice and its evidence."""
    mechanism: str
    """Why it costs time."""
    evidence: tuple[tuple[str, Value], ...]
    """Attributes of the load that it was concluded from, and their values."""
    seconds: float | None = None
    """Measured seconds at stake: the most that following the advice can save. None where that was not measured."""
