"""
The open frame goes with work that is handed to other threads.

Threads and pool jobs take the frame of the code that started or submitted them. Nothing the host passes is changed: the frame is kept on
the thread or work item and made current around it.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from loadspan.instrument import implicit
from loadspan.instrument.frames import current
from loadspan.instrument.patching import Kind, Target

if TYPE_CHECKING:
    from collections.abc import Callable

_FRAME = "_loadspan_frame"
_TASK = "_loadspan_task"


def _carry(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the frame of who makes or starts *self* on it."""

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        frame = current.get()
        if frame is not None:
            self.__dict__[_FRAME] = frame
        return original(self, *args, **kwargs)

    return wrapper


def _carry_task(original: Callable[..., Any]) -> Callable[..., Any]:
    """As `_carry`; and where an asyncio task submits a job, keep which one: a pool's thread works for one task after the other."""
    carry = _carry(original)

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if task := implicit.task():
            self.__dict__[_TASK] = (threading.get_ident(), task)
        return carry(self, *args, **kwargs)

    return wrapper


def _deliver_task(original: Callable[..., Any]) -> Callable[..., Any]:
    """As `_deliver`, for a job that may have been submitted by a task."""
    deliver = _deliver(original)

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        task = self.__dict__.pop(_TASK, None)
        if task is None:
            return deliver(self, *args, **kwargs)
        implicit.caller.task = task
        try:
            return deliver(self, *args, **kwargs)
        finally:
            implicit.caller.task = None

    return wrapper


def _deliver(original: Callable[..., Any]) -> Callable[..., Any]:
    """Make the frame kept on *self* current while it runs."""

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        frame = self.__dict__.pop(_FRAME, None)
        if frame is None:
            return original(self, *args, **kwargs)
        token = current.set(frame)
        try:
            return original(self, *args, **kwargs)
        finally:
            current.reset(token)

    return wrapper


ROWS = (
    Target(
        module="threading", attribute="Thread.start", kind=Kind.REPLACE, replace=_carry, why="a thread works for the load that started it"
    ),
    Target(
        module="threading",
        attribute="Thread._bootstrap_inner",
        kind=Kind.REPLACE,
        replace=_deliver,
        why="`run` is overridden by subclasses; this is where every thread begins",
    ),
    Target(
        module="concurrent.futures.thread",
        attribute="_WorkItem.__init__",
        kind=Kind.REPLACE,
        replace=_carry_task,
        why="a pool thread works for whoever submitted the job, not for whoever started the thread",
    ),
    Target(
        module="concurrent.futures.thread",
        attribute="_WorkItem.run",
        kind=Kind.REPLACE,
        replace=_deliver_task,
        why="see `_WorkItem.__init__`",
    ),
)
