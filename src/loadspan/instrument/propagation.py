"""
The open frame goes with work that is handed to other threads; `children` does the same for processes.

Threads and pool jobs take the frame of the code that started or submitted them. Nothing the host passes is changed: what is handed over is
kept on the thread or work item and made known around it. Where nothing is open, that is no more than who started it: pools are for jobs of
microseconds.
"""

from __future__ import annotations

import functools
import threading
from sys import modules
from typing import TYPE_CHECKING, Any

from loadspan.instrument import implicit
from loadspan.instrument.frames import OpenLoad, OpenStage, current
from loadspan.instrument.patching import Kind, Target

if TYPE_CHECKING:
    from collections.abc import Callable

_HANDED = "_loadspan_handed"

_Handed = int | tuple[OpenLoad | OpenStage | None, int, int]
"""The thread that starts something, where that is all; else the open frame, the thread and the asyncio task."""

_ident = threading.get_ident
_get = current.get


def _handed() -> _Handed:
    """What goes with a thread that is started here."""
    frame, task = current.get(), implicit.task()
    return _ident() if frame is None and not task else (frame, _ident(), task)


def _deliver(handed: _Handed, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`original(*args, **kwargs)`, for whoever handed it over: while it runs, their frame is current here."""
    caller = implicit.caller
    before = caller.by
    frame, starter, task = (None, handed, 0) if isinstance(handed, int) else handed
    caller.by = (starter, task) if task else starter
    token = current.set(frame) if frame is not None else None
    try:
        return original(*args, **kwargs)
    finally:
        caller.by = before
        if token is not None:
            current.reset(token)


def _carry_thread(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keep on a thread who starts it."""

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__[_HANDED] = _handed()
        return original(self, *args, **kwargs)

    return wrapper


def _deliver_thread(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        handed = self.__dict__.pop(_HANDED, None)
        return original(self, *args, **kwargs) if handed is None else _deliver(handed, original, (self, *args), kwargs)

    return wrapper


def _carry_job(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keep on a job who submits it. Every line of this and of `_deliver_job` is paid for by jobs that have nothing to do with us."""

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        frame, loop = _get(), getattr(modules.get("asyncio"), "_get_running_loop", None)
        args[0]._loadspan_handed = _ident() if frame is None and (loop is None or loop() is None) else _handed()  # noqa: SLF001 - ours
        return original(*args, **kwargs)

    return wrapper


def _deliver_job(original: Callable[..., Any]) -> Callable[..., Any]:
    caller = implicit.caller

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        handed = getattr(args[0], _HANDED, None)
        if handed.__class__ is int:
            # It stays until another thread's job comes: what a pool's thread does is always for somebody, and mostly for the same one.
            if caller.by != handed and _ident() != handed:
                caller.by = handed
            return original(*args, **kwargs)
        if handed is None:
            return original(*args, **kwargs)
        args[0]._loadspan_handed = None  # noqa: SLF001 - ours: who keeps the job must not keep the load
        return _deliver(handed, original, args, kwargs)

    return wrapper


ROWS = (
    Target(
        module="threading",
        attribute="Thread.start",
        kind=Kind.REPLACE,
        replace=_carry_thread,
        why="a thread works for the load that started it",
    ),
    Target(
        module="threading",
        attribute="Thread._bootstrap_inner",
        kind=Kind.REPLACE,
        replace=_deliver_thread,
        why="`run` is overridden by subclasses; this is where every thread begins",
    ),
    Target(
        module="concurrent.futures.thread",
        attribute="_WorkItem.__init__",
        kind=Kind.REPLACE,
        replace=_carry_job,
        why="a pool thread works for whoever submitted the job, not for whoever started the thread",
    ),
    Target(
        module="concurrent.futures.thread",
        attribute="_WorkItem.run",
        kind=Kind.REPLACE,
        replace=_deliver_job,
        why="see `_WorkItem.__init__`",
    ),
)
