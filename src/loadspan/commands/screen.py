"""
Our share of the user's terminal: lines of progress at its bottom, apart from what the command prints.

The command writes to the same terminal without telling us, so a display that redraws above the cursor would be torn by its first line.
Instead the last rows are taken out of the scroll region, as apt does: the command's output scrolls above them, byte for byte its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

_SAVE, _RESTORE, _DOWN, _WHOLE_SCREEN, _CLEAR_LINE = "\x1b7", "\x1b8", "\x1bD", "\x1b[r", "\x1b[2K"
_FEWEST_ROWS = 10


class Screen:
    """Standard error, with up to a few rows for progress where it is a terminal that can do that."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._can_draw = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._reserved = 0
        self._size = os.terminal_size((0, 0))

    def say(self, *lines: str) -> None:
        """Print lines into the command's output. A terminal or pipe that is gone or full is not our problem to report."""
        self._write("".join(f"{line}\n" for line in lines))

    def draw(self, lines: Sequence[str]) -> None:
        """Show *lines* in the bottom rows, or give the rows back where there are none."""
        if not lines or not self._is_ours():
            self.clear()
            return
        size = os.get_terminal_size(self._stream.fileno())
        rows = min(len(lines), size.lines // 3)
        if size != self._size or rows > self._reserved:
            self.clear()
            self._reserve(rows, size)
        # Rows once taken are kept until all are given back: the picture would jump with every load that ends.
        shown = [*lines[:rows], *[""] * (self._reserved - rows)]
        first = size.lines - self._reserved + 1
        drawn = "".join(f"\x1b[{first + index};1H{_CLEAR_LINE}{line}" for index, line in enumerate(shown))
        self._write(f"{_SAVE}{drawn}{_RESTORE}")

    def clear(self) -> None:
        """Give the rows back to the command."""
        if self._reserved:
            first = self._size.lines - self._reserved + 1
            cleared = "".join(f"\x1b[{first + index};1H{_CLEAR_LINE}" for index in range(self._reserved))
            self._write(f"{_SAVE}{cleared}{_WHOLE_SCREEN}{_RESTORE}")
            self._reserved = 0

    @property
    def columns(self) -> int:
        """Columns a line of progress may have."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns - 1
        except OSError:
            return 79

    def _is_ours(self) -> bool:
        """Whether we may draw: a background job would paint over whatever the user does now."""
        try:
            fd = self._stream.fileno()
            return self._can_draw and os.get_terminal_size(fd).lines >= _FEWEST_ROWS and os.tcgetpgrp(fd) == os.getpgrp()
        except OSError:
            return False

    def _reserve(self, rows: int, size: os.terminal_size) -> None:
        # Down and up again scrolls the text out of the rows; unlike a newline it leaves the column of a half written line alone.
        # Setting the region moves the cursor, hence save and restore.
        self._write(f"{_DOWN * rows}\x1b[{rows}A{_SAVE}\x1b[1;{size.lines - rows}r{_RESTORE}")
        self._reserved, self._size = rows, size

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._can_draw = False
