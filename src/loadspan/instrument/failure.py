"""
What is kept of an exception: type, message and traceback as text.

Never the exception itself. Its traceback holds the frames it passed through and these their tensors: a program that frees memory after an
out-of-memory error and tries again would not get its memory back.
"""

from __future__ import annotations

import traceback
from typing import Any

_TEXT_LIMIT = 1024  # what back ends keep of a value


class Failure:
    """An exception that left a stage; one object for all frames it passes through."""

    __slots__ = ("_origin", "message", "recorded", "stacktrace", "type")

    def __init__(self, error: BaseException) -> None:
        kind = type(error)
        self.type = kind.__qualname__ if kind.__module__ in {"builtins", None} else f"{kind.__module__}.{kind.__qualname__}"
        summary = traceback.TracebackException.from_exception(error)
        text = str(summary)  # not that of the exception, which may fail to make one
        self.message = text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"
        self.stacktrace = "".join(summary.format())
        self.recorded = False
        """Whether a span has it as an event: the innermost one, so that it is told once."""
        self._origin = _origin(error)

    def is_of(self, error: BaseException) -> bool:
        """Whether this is what was kept of *error*."""
        return self._origin == _origin(error)


def _origin(error: BaseException) -> tuple[int, Any, int]:
    """Tells exceptions apart without holding one: an address is used again, but hardly for one raised in the same place."""
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None:
        return id(error), None, 0
    return id(error), innermost.tb_frame.f_code, innermost.tb_lineno
