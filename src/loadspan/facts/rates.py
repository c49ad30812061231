"""What a probe found: a rate, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

STORAGE, CACHE, MIXED, MEMORY, UNKNOWN = "storage", "page cache", "storage and page cache", "memory", "unknown"


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes that moved and the seconds that they took, both measured."""

    probe: str
    size: int
    """Bytes."""
    seconds: float
    depth: int = 1
    """Threads that had a request under way."""
    block: int | None = None
    """Bytes of one request."""
    verified: bool | None = None
    """Of a read: True where the kernel counted the bytes as coming from storage, False where not, None where it cannot tell. Else True."""
    source: str = UNKNOWN
    """Where the bytes came from: one of the names above."""
    note: str | None = None

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.size / self.seconds


@dataclass(frozen=True, slots=True)
class Skipped:
    """A probe that found no rate, and why."""

    probe: str
    reason: str
    depth: int = 1


Outcome = Rate | Skipped
