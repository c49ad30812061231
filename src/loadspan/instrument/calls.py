"""
From a row and a host function to its wrapper.

The host function runs once, with its own arguments, outside the guard; what it returns or raises is passed on as it is. Plain closures:
they cost a third of a proxy and pickle by reference when they stand where the original stood. A wrapper that outlives its installation
passes calls through. Coroutines and generators are recorded while they work, not when they are made.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import observed, safely
from loadspan.instrument import generators
from loadspan.instrument.bursts import Burst
from loadspan.instrument.frames import OpenLoad
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Kind, library, patch_method

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.instrument.frames import OpenStage
    from loadspan.instrument.generators import Recording
    from loadspan.instrument.patching import Args, Kwargs, Target


class RowRecording:
    """Calls of a coarse row or a root."""

    def __init__(self, row: Target) -> None:
        self.row = row

    def open(self, args: Args, kwargs: Kwargs) -> OpenLoad | OpenStage | None:
        """Open the stage or load of one call."""
        row = self.row
        if not recorder.active or (row.when is not None and not row.when(args, kwargs)):
            return None
        describe = row.describe
        if row.kind is Kind.ROOT:
            load = recorder.open_load({names.LOADER: library(row)}, name=None)
            if load is not None and describe is not None:
                safely(describe, load, args, kwargs)
            return load

        def known(stage: OpenStage) -> None:
            stage.library = library(row)
            if describe is not None:
                safely(describe, stage, args, kwargs)

        return recorder.open_stage(row.stage, known)

    def close(self, frame: Any, result: Any, error: BaseException | None, args: Args, kwargs: Kwargs) -> None:
        """Close it, described by its result."""
        end = time.perf_counter_ns()  # describing the result takes time of its own
        if error is None and self.row.measure is not None:
            safely(self.row.measure, frame, result, args, kwargs)
        if error is not None and self.row.answer is not None and safely(self.row.answer, error):
            error = None
        if isinstance(frame, OpenLoad):
            recorder.close_load(frame, error, end)
        else:
            recorder.close_stage(frame, error, end)


def wrap(row: Target, original: Callable[..., Any]) -> Callable[..., Any]:
    """The wrapper of *original* as *row* says."""
    if row.kind is Kind.FINE:
        return _fine(row, original)
    return recorded(original, RowRecording(row), row.aside() if row.aside is not None else None)


def record_construction(kind: Any, row: Target) -> None:
    """Record how objects of the class *kind* are constructed as *row* says: a class that a root is told of may be known only then."""
    patch_method(kind, "__init__", functools.partial(wrap, row), row)


def recorded(function: Callable[..., Any], recording: Recording, aside: Callable[[], bool] | None = None) -> Callable[..., Any]:
    """*function*, plain, coroutine, generator or asynchronous generator, recorded; a plain one not while *aside* says so."""
    if inspect.isasyncgenfunction(function):
        return generators.async_generator(function, recording)
    if inspect.iscoroutinefunction(function):
        return _coroutine(function, recording)
    if inspect.isgeneratorfunction(function):
        return generators.generator(function, functools.partial(generators.CoarseSteps, recording))
    wrapper = _plain(function, recording)
    return wrapper if aside is None else _aside(function, wrapper, aside)


def _aside(function: Callable[..., Any], wrapper: Callable[..., Any], aside: Callable[[], bool]) -> Callable[..., Any]:
    """Call *function* itself while *aside* says so: a compiler that traces this must find nothing but the host's call."""

    @functools.wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        if aside():
            return function(*args, **kwargs)
        return wrapper(*args, **kwargs)

    return either


def _plain(function: Callable[..., Any], recording: Recording) -> Callable[..., Any]:
    enter, leave = recording.open, recording.close

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        frame = safely(enter, args, kwargs)
        if frame is None:
            return function(*args, **kwargs)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            safely(leave, frame, None, error, args, kwargs)
            raise
        safely(leave, frame, result, None, args, kwargs)
        return result

    return wrapper


def _coroutine(function: Callable[..., Any], recording: Recording) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        frame = safely(recording.open, args, kwargs)
        if frame is None:
            return await function(*args, **kwargs)
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            safely(recording.close, frame, None, error, args, kwargs)
            raise
        safely(recording.close, frame, result, None, args, kwargs)
        return result

    return wrapper


class _Following(threading.local):
    """What counts the calls that this thread makes next, and the file that they read."""

    burst: Burst | None = None
    path: str | None = None

    def follow(self, call: Any, size: int, path: str | None) -> None:
        """An announced call has ended: those that come next may be like it."""
        if recorder.known_by_now(call):
            self.burst, self.path = recorder.follow(call, time.perf_counter_ns() - call.begun, size, None), path


def _fine(row: Target, original: Callable[..., Any]) -> Callable[..., Any]:
    begin, end, stage = recorder.begin_fine, recorder.end_fine, row.stage
    when, path, size, label, thing = row.when, row.path, row.size, row.label, row.thing

    def start(args: Args, kwargs: Kwargs) -> Any:
        if not recorder.active or (when is not None and not when(args, kwargs)):
            return None
        return begin(stage, row, args, kwargs, 0, path(args, kwargs) if path is not None else None)

    def finish(call: Any, result: Any, args: Args, kwargs: Kwargs) -> int | None:
        moved, made = None, result
        try:
            moved = size(result, args, kwargs) if size is not None else None
            made = thing(result) if thing is not None else result
        finally:
            slow = end(call, moved, None, made)  # whatever became of the size: the call is over
        if slow and label is not None:
            recorder.name_slow(call, slow, moved, label(args, kwargs))
        return moved

    def fail(call: Any, error: BaseException) -> None:
        end(call, None, error)

    if inspect.isgeneratorfunction(original):
        return generators.generator(original, functools.partial(generators.FineSteps, start, finish, fail))
    if row.bursts and path is not None and size is not None:
        return _in_bursts(original, path, size, label, (start, finish, fail))
    return observed(original, start, finish, fail)


def _in_bursts(
    original: Callable[..., Any],
    path: Callable[[Args, Kwargs], str | None],
    size: Callable[[Any, Args, Kwargs], int | None],
    label: Callable[[Args, Kwargs], str] | None,
    announced: tuple[Callable[..., Any], Callable[..., int | None], Callable[..., None]],
) -> Callable[..., Any]:
    """Fine calls of which thousands come in a row: one in a burst is announced to nobody, and passes through as few functions as can be."""
    following = _Following()
    start, finish, fail = announced

    def begin(args: Args, kwargs: Kwargs) -> Any:
        burst = following.burst
        if burst is not None:
            burst.begun = now = time.perf_counter_ns()
            if recorder.active and path(args, kwargs) is following.path and burst.goes_on(now):
                return burst
            following.burst = None
        return start(args, kwargs)

    def end(call: Any, result: Any, args: Args, kwargs: Kwargs) -> None:
        if type(call) is Burst:
            moved = None
            try:
                moved = size(result, args, kwargs)
            finally:
                slow = call.end(moved)
            if slow and label is not None:
                recorder.name_slow(call, slow, moved, label(args, kwargs))
        else:
            moved = finish(call, result, args, kwargs)
            if moved is not None:
                following.follow(call, moved, path(args, kwargs))

    def failed(call: Any, error: BaseException) -> None:
        if type(call) is Burst:
            call.fail(error)
        else:
            fail(call, error)

    return observed(original, begin, end, failed)
