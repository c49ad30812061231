"""
Generators: recorded step by step, since the time between two steps belongs to the consumer.

What a wrapper of one does is what the generator itself would: values, exceptions and its closing go both ways.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

from loadspan.guard import safely
from loadspan.instrument.frames import OpenLoad, OpenStage, current
from loadspan.instrument.live import recorder

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from loadspan.instrument.patching import Args, Kwargs


class Recording(Protocol):
    """How calls of one function are recorded: what opens a frame, and what closes it."""

    def open(self, args: Args, kwargs: Kwargs) -> OpenLoad | OpenStage | None:
        """Open the frame of a call; None if it is not recorded."""

    def close(self, frame: Any, result: Any, error: BaseException | None, args: Args, kwargs: Kwargs) -> None:
        """Close the frame of a call that returned *result* or raised *error*."""


def _step_in(frame: Any) -> None:
    """Make *frame* current for one step of a generator: between steps the consumer works, in its own context."""
    if frame.handle is not None:
        frame.token = current.set(frame)
        if frame.load.explicit and not frame.load.muted:
            frame.context_token = frame.handle.attach()


class _Steps(Protocol):
    """Records the steps of a generator, each for itself: the time between two belongs to the consumer."""

    def begin(self) -> Any:
        """Begin a step."""

    def end(self, frame: Any, item: Any, error: BaseException | None) -> None:
        """End a step that brought *item*, or raised *error*; the last one brings None."""

    def close(self, error: BaseException | None) -> None:
        """The generator is exhausted, closed or failed."""


class FineSteps:
    """Steps of which there is one for each tensor."""

    def __init__(
        self, start: Callable[..., Any], finish: Callable[..., object], fail: Callable[..., None], args: Args, kwargs: Kwargs
    ) -> None:
        self._start = start
        self._finish = finish
        self._fail = fail
        self._args = args
        self._kwargs = kwargs

    def begin(self) -> Any:
        """Begin a step."""
        return safely(self._start, self._args, self._kwargs)

    def end(self, call: Any, item: Any, error: BaseException | None) -> None:
        """End a step that brought *item* or raised *error*."""
        if call is None:
            return
        if error is not None:
            safely(self._fail, call, error)
        elif item is None:
            safely(recorder.end_fine, call, None, None)  # looked for one more, and there was none
        else:
            safely(self._finish, call, item, self._args, self._kwargs)

    def close(self, error: BaseException | None) -> None:
        """Nothing is open between two steps."""


class CoarseSteps:
    """Steps that are a stage each, or are in a load."""

    def __init__(self, recording: Recording, args: Args, kwargs: Kwargs) -> None:
        self._recording = recording
        self._args = args
        self._kwargs = kwargs
        self._load: OpenLoad | None = None

    def begin(self) -> Any:
        """Begin a step."""
        if self._load is not None:
            safely(_step_in, self._load)
            return self._load
        frame = safely(self._recording.open, self._args, self._kwargs)
        if isinstance(frame, OpenLoad):
            self._load = frame
        elif isinstance(frame, OpenStage):
            frame.step = True
        return frame

    def end(self, frame: Any, item: Any, error: BaseException | None) -> None:
        """End a step that brought *item* or raised *error*."""
        if frame is None:
            return
        if frame is self._load:
            safely(recorder.leave_context, frame)
        else:
            safely(self._recording.close, frame, item, error, self._args, self._kwargs)

    def close(self, error: BaseException | None) -> None:
        """The generator is exhausted, closed or failed."""
        if self._load is not None:
            safely(self._recording.close, self._load, None, error, self._args, self._kwargs)
            self._load = None


def generator(function: Callable[..., Any], steps_of: Callable[[Args, Kwargs], _Steps]) -> Callable[..., Any]:
    """The generator *function*; what *steps_of* makes of a call's arguments records its steps."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        inner = function(*args, **kwargs)
        steps = steps_of(args, kwargs)
        failed: BaseException | None = None
        try:
            action, given = inner.send, None
            while True:
                frame = steps.begin()
                try:
                    item = action(given)
                except StopIteration as stop:
                    steps.end(frame, None, None)
                    return stop.value
                except BaseException as error:
                    steps.end(frame, None, error)
                    failed = error
                    raise
                steps.end(frame, item, None)
                try:
                    given = yield item
                    action = inner.send
                except GeneratorExit:
                    inner.close()
                    raise
                except BaseException as thrown:  # noqa: BLE001 - the host's, handed on to its generator, which decides
                    action, given = inner.throw, thrown
        finally:
            steps.close(failed)
            failed = given = None  # its traceback holds this frame: a circle that would keep the host's tensors until it is collected

    return wrapper


def async_generator(function: Callable[..., Any], recording: Recording) -> Callable[..., Any]:
    """The asynchronous generator *function*, recorded step by step as *recording* says."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        steps = CoarseSteps(recording, args, kwargs)
        failed: BaseException | None = None
        try:
            action, given = inner.asend, None
            while True:
                frame = steps.begin()
                try:
                    item = await action(given)
                except StopAsyncIteration:
                    steps.end(frame, None, None)
                    return
                except BaseException as error:
                    steps.end(frame, None, error)
                    failed = error
                    raise
                steps.end(frame, item, None)
                try:
                    given = yield item
                    action = inner.asend
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as thrown:  # noqa: BLE001 - as above
                    action, given = inner.athrow, thrown
        finally:
            steps.close(failed)
            failed = given = None  # its traceback holds this frame: as above

    return wrapper
