"""
One thread while a load is open, ten times a second: ends quiet implicit loads, names what runs in no stage, writes the state file.

The host may hold the interpreter lock for seconds, so nothing here counts ticks as time.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadspan.guard import guard
from loadspan.instrument import state

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from loadspan.instrument.frames import OpenLoad
    from loadspan.instrument.recorder import Recorder

TICK = 0.1
"""Seconds between two readings."""

_LINGER = 20  # ticks without an open load after which the thread ends
_DEEPEST = 200  # frames looked at
_OWN = str(Path(__file__).parent)


class Constructors:
    """Tells frames that construct a torch module. By code object: reading another thread's locals would keep its tensors alive."""

    def __init__(self) -> None:
        self._known: dict[CodeType, bool] = {}

    def running(self, frame: FrameType | None) -> bool:
        """Whether a module is being constructed somewhere up from *frame*."""
        for _ in range(_DEEPEST):
            if frame is None:
                return False
            if frame.f_code.co_name == "__init__" and self._constructs(frame.f_code):
                return True
            frame = frame.f_back
        return False

    def _constructs(self, code: CodeType) -> bool:
        if code not in self._known:
            module: Any = getattr(sys.modules.get("torch.nn"), "Module", None)
            self._known[code] = module is not None and self._find(module, code)
        return self._known[code]

    def _find(self, module: type, code: CodeType) -> bool:
        todo, seen = [module], set()
        while todo:
            kind = todo.pop()
            if kind in seen:
                continue
            seen.add(kind)
            if getattr(vars(kind).get("__init__"), "__code__", None) is code:
                return True
            todo.extend(type.__subclasses__(kind))
        return False


class Sampler:
    """The thread of one recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._constructors = Constructors()

    def wake(self) -> None:
        """Start the thread if it does not run."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(target=self._run, name="loadspan-sampler", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread and say in the state file that the process left in order."""
        self._stop.set()
        state.write(self._recorder, ended=True)

    def abandon(self) -> None:
        """Forget the thread: it did not survive the fork."""
        self._lock = threading.Lock()
        self._thread = None

    def _run(self) -> None:
        idle, stop = 0, self._stop
        while True:
            with guard:
                self._tick()
            if self._recorder.loads or self._recorder.repetitions:
                idle = 0
            else:
                idle += 1
            with self._lock:
                if stop.is_set() or (idle > _LINGER and not self._recorder.loads):
                    self._thread = None
                    return
            stop.wait(TICK)

    def _tick(self) -> None:
        loads = list(self._recorder.loads)
        if loads:
            frames = sys._current_frames()  # noqa: SLF001 - the only way to see what another thread runs
            for load in loads:
                self._look(load, frames.get(load.thread))
            del frames
        self._recorder.close_finished()
        state.write(self._recorder, ended=False)

    def _look(self, load: OpenLoad, frame: FrameType | None) -> None:
        """Note what the loading thread runs while no stage is open."""
        if frame is None or load.partition.shares or not (load.explicit or load.pending()):
            return
        constructing = self._constructors.running(frame)
        while frame is not None and frame.f_code.co_filename.startswith(_OWN) and frame.f_back is not None:
            frame = frame.f_back
        if frame is None:
            return
        name = f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        with load.lock:
            if not load.partition.shares:
                load.gap.append(constructing)
                load.frames[name] = load.frames.get(name, 0) + 1
