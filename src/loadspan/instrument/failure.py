"""
What is kept of an exception: type, message and traceback as text.

Never the exception itself. Its traceback holds the frames it passed through and these their tensors: a program that frees memory after an
out-of-memory error and tries again would not get its memory back.
"""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_TEXT_LIMIT = 1024  # what back ends keep of a value


class Failure:
    """An exception that left a stage; one object for all frames it passes through."""

    __slots__ = ("_origin", "message", "recorded", "stacktrace", "type")

    def __init__(self, error: BaseException, hidden: Iterable[str] | None = None) -> None:
        """
        Keep what is told of *error*.

        Args:
            error: The exception.
            hidden: Paths of which only the last part may be told, and then that of the exception's own file too; None to tell all.
        """
        kind = type(error)
        self.type = kind.__qualname__ if kind.__module__ in {"builtins", None} else f"{kind.__module__}.{kind.__qualname__}"
        summary = traceback.TracebackException.from_exception(error)
        text = str(summary)  # not that of the exception, which may fail to make one
        self.stacktrace = "".join(summary.format())
        if hidden is not None:
            text, self.stacktrace = _shortened(text, error, hidden), _shortened(self.stacktrace, error, hidden)
        self.message = text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"
        self.recorded = False
        """Whether a span has it as an event: the innermost one, so that it is told once."""
        self._origin = _origin(error)

    def is_of(self, error: BaseException) -> bool:
        """Whether this is what was kept of *error*."""
        return self._origin == _origin(error)


def _shortened(text: str, error: BaseException, paths: Iterable[str]) -> str:
    """*text* with the last part of each path in its place."""
    own = [name for name in (getattr(error, "filename", None), getattr(error, "filename2", None)) if isinstance(name, str | bytes)]
    for path in sorted({*paths, *map(os.fsdecode, own)}, key=len, reverse=True):
        folder, _, name = path.rstrip("/").rpartition("/")
        if folder:
            text = text.replace(path, name)
    return text


def _origin(error: BaseException) -> tuple[int, Any, int]:
    """Tells exceptions apart without holding one: an address is used again, but hardly for one raised in the same place."""
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None:
        return id(error), None, 0
    return id(error), innermost.tb_frame.f_code, innermost.tb_lineno
