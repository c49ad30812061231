"""
The only place that swallows an exception.

loadspan's own work runs inside host programs. Whatever fails in it is logged once per place and forgotten: the host never sees it.
Only `Exception` is caught; `KeyboardInterrupt`, `SystemExit` and the like belong to the host.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_LOGGER = logging.getLogger("loadspan")
_Result = TypeVar("_Result")
_seen: set[tuple[str, int, str]] = set()

raising = False
"""Tests set this to see our own failures instead of a log line."""


def report(error: Exception) -> None:
    """Log *error* the first time it comes from this place, or raise it where tests asked for that."""
    if sys is None or sys.is_finalizing():
        return  # modules are being emptied: things of ours and of `logging` are None by now
    if raising:
        raise error
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = (
        traceback.tb_frame.f_code.co_filename if traceback else "",
        traceback.tb_lineno if traceback else 0,
        type(error).__name__,
    )
    if place not in _seen:
        _seen.add(place)
        _LOGGER.warning("loadspan: internal error, the load goes on unrecorded in part: %s", error, exc_info=error)


def safely(function: Callable[..., _Result], *args: Any) -> _Result | None:
    """Return `function(*args)`, or None if it raised an `Exception`. Faster than `with guard` on a hot path."""
    try:
        return function(*args)
    except Exception as error:
        report(error)
        return None


def attempt(function: Callable[..., _Result], *args: Any) -> tuple[_Result | None, Exception | None]:
    """What `function(*args)` returned, or the `Exception` it raised: for code of others, whose failures are theirs to be told of."""
    try:
        return function(*args), None
    except Exception as error:
        return None, error


def observed(
    function: Callable[..., _Result],
    start: Callable[[tuple[Any, ...], dict[str, Any]], Any],
    finish: Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], object],
    fail: Callable[[Any, BaseException], None],
) -> Callable[..., _Result]:
    """
    *function*, watched: for calls that come 100 000 times a load, where even a call to `safely` counts.

    *start* returns what stands for the call, or None to leave it alone; *finish* and *fail* get that. What they raise is reported.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> _Result:
        try:
            call = start(args, kwargs)
        except Exception as error:
            report(error)
            call = None
        if call is None:
            return function(*args, **kwargs)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            safely(fail, call, error)
            raise
        try:
            finish(call, result, args, kwargs)
        except Exception as error:
            report(error)
        return result

    return wrapper


class _Guard:
    """`with guard:` around our own work; stateless, so one object serves all threads."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        if isinstance(error, Exception):
            report(error)
            return True
        return False


guard = _Guard()
