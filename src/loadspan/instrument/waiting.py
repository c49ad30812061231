"""Spans that are still to be made: each takes a quarter of a millisecond, which is not to be the load's that is being watched."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from loadspan.guard import safely

if TYPE_CHECKING:
    from collections.abc import Callable


class Waiting:
    """Spans of frames that have ended, in that order."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._making = threading.RLock()  # a signal may close a load in the middle of it

    def add(self, make: Callable[[], None]) -> None:
        """Have a span made by *make*, after those before it."""
        self._waiting.append(make)

    def deliver(self) -> None:
        """Make the spans now."""
        with self._making:
            while self._waiting:
                safely(self._waiting.popleft())  # one that fails must not cost those after it
