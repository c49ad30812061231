"""
The open frame goes with work that is handed to other threads.

Threads and pool jobs take the frame of the code that started or submitted them. Nothing the host passes is changed: what is handed over is
kept on the thread or work item and made known around it.
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

_HANDED = "_loadspan_handed"


def _carry(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keep on *self* who makes or starts it: the open frame, the thread and the asyncio task."""

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__[_HANDED] = (current.get(), threading.get_ident(), implicit.task())
        return original(self, *args, **kwargs)

    return wrapper


def _deliver(original: Callable[..., Any]) -> Callable[..., Any]:
    """While *self* runs, its frame is current here and its maker known: a pool's thread works for one after the other."""

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        handed = self.__dict__.pop(_HANDED, None)
        if handed is None:
            return original(self, *args, **kwargs)
        frame, starter, task = handed
        caller = implicit.caller
        before = caller.starter, caller.task
        caller.starter, caller.task = starter, (starter, task) if task else None
        token = current.set(frame) if frame is not None else None
        try:
            return original(self, *args, **kwargs)
        finally:
            caller.starter, caller.task = before
            if token is not None:
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
        replace=_carry,
        why="a pool thread works for whoever submitted the job, not for whoever started the thread",
    ),
    Target(
        module="concurrent.futures.thread",
        attribute="_WorkItem.run",
        kind=Kind.REPLACE,
        replace=_deliver,
        why="see `_WorkItem.__init__`",
    ),
)
