"""
The open frame goes with work that is handed to other threads and processes.

Threads, pool jobs and processes take the frame of the code that started or submitted them. Nothing the host passes is changed: what is
handed over is kept on the thread or work item and made known around it, or goes along with what multiprocessing tells a child anyway.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from loadspan.guard import safely
from loadspan.instrument import implicit, telemetry
from loadspan.instrument.frames import current
from loadspan.instrument.patching import Kind, Target

if TYPE_CHECKING:
    from collections.abc import Callable

_HANDED = "_loadspan_handed"
_TOLD = "loadspan"


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


def _tell_child(original: Callable[..., Any]) -> Callable[..., Any]:
    """Put the open load into what a child that is started anew is told; one that is not instrumented does not look at it."""

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        data = original(*args, **kwargs)
        frame = current.get()
        if frame is not None and not frame.load.closed:
            safely(lambda: data.__setitem__(_TOLD, telemetry.carrier(frame.load.handle)))
        return data

    return wrapper


def _be_told(original: Callable[..., Any]) -> Callable[..., Any]:
    """Loads of this child belong to the load in which it was started."""

    @functools.wraps(original)
    def wrapper(data: Any, *args: Any, **kwargs: Any) -> Any:
        safely(lambda: telemetry.inherited.update(data.get(_TOLD) or {}))
        return original(data, *args, **kwargs)

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
    Target(
        module="multiprocessing.spawn",
        attribute="get_preparation_data",
        kind=Kind.REPLACE,
        replace=_tell_child,
        why="a process that is spawned for a load works for it; one that is forked has its context anyway",
    ),
    Target(
        module="multiprocessing.spawn",
        attribute="prepare",
        kind=Kind.REPLACE,
        replace=_be_told,
        why="see `get_preparation_data`: the child",
    ),
)
