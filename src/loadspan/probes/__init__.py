"""
Measurements of what this machine can do: how fast its storage reads, one core decrypts, memory is copied to a device.

Only `loadspan check --measure` does this. A probe is bounded in seconds and bytes, says beforehand what it will do, and its result is
bytes and seconds that were measured, or the reason why there are none. Nothing here is imported while a load is recorded or shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from loadspan.facts.rates import Outcome, Rate, Skipped

__all__ = ["Bounds", "Outcome", "Plan", "Progress", "Rate", "Skipped", "Step"]

Progress = Callable[[str, int, int], None]
"""Called about ten times a second with what runs, the bytes that moved so far, and how many they will be at most."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far one probe goes: seconds, bytes."""

    seconds: float = 10.0
    size: int = 4 << 30


@dataclass(frozen=True, slots=True)
class Step:
    """One probe of a plan."""

    probe: str
    size: int
    """Bytes at most."""
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be measured. Nothing was read, written or imported to make it; `run` does it, and yields an outcome for each step."""

    lines: tuple[str, ...]
    """What it will do, for people."""
    steps: tuple[Step, ...]
    run: Callable[[Progress], Iterator[Outcome]]


def silent(what: str, done: int, most: int) -> None:
    """Progress that nobody looks at."""


def installed(library: str) -> bool:
    """Whether *library* can be imported, as far as that shows without importing it."""
    try:
        return find_spec(library) is not None
    except (ImportError, ValueError):  # somebody put None, or a module without a spec, in its place
        return False


def first_line(error: BaseException) -> str:
    """The first line of what *error* says, short and printable."""
    lines = str(error).strip().splitlines()
    return "".join(letter for letter in (lines[0] if lines else type(error).__name__) if letter.isprintable())[:200]
