"""
One thread while a load is open, ten times a second: ends quiet implicit loads, names what runs in no stage, reads the machine.

It writes the state file every second time. The host may hold the interpreter lock for seconds, so nothing here counts ticks as time.
"""

from __future__ import annotations

import _thread
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from loadspan.facts import counters
from loadspan.guard import guard
from loadspan.instrument import growth, late, state, telemetry
from loadspan.instrument.stack import Initializing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

    from loadspan.instrument.destination import Destination
    from loadspan.instrument.frames import OpenLoad, OpenStage
    from loadspan.instrument.recorder import Recorder

TICK = 0.1
"""Seconds between two readings, unless one takes so long that more often than that would be too much."""

_SHARE = 0.008  # of a core, that readings may take
_RARELY = 0.25  # seconds between two readings at most

_KEPT = 0.02  # seconds at least between two writings; more where one takes so long that this would be too much
_BREATH = 0.005  # seconds after a stage in which the loading thread comes to its next call into C, and needs the interpreter lock no more
_LONG = 8  # ticks after which a load will be one that is worth advice
_OFTEN = 5  # ticks between two tellings of how far loads have come: nobody exports more often
_LINGER = 20  # ticks without an open load after which the thread ends
_NEAR = 8  # frames that our own calls into libraries are deep
_PACKAGE = str(Path(__file__).parents[1])
_OWN = frozenset(
    str(Path(__file__).with_name(f"{name}.py"))
    for name in ("times", "tallies", "loads", "stages", "quick", "recorder", "telemetry", "live", "sampler")
)


def _host(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the host, None where loadspan itself is at work: that is not what the load waits for."""
    looked, outer = 0, frame
    while outer is not None and looked < _NEAR:
        if outer.f_code.co_filename in _OWN:
            return None
        looked, outer = looked + 1, outer.f_back
    # A wrapper of ours is on top between the host's code and the call: the interpreter lock changes hands there.
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame


def _moving(load: OpenLoad, stages: list[OpenStage]) -> set[Destination]:
    """Devices to which bytes of *load* go at this moment."""
    frames: list[OpenLoad | OpenStage] = [load, *stages]
    tallies = [tally for frame in frames for tally in list(frame.tallies.values()) if tally.active or load.inside is tally]
    found = {stage.destination for stage in stages if stage.destination is not None}
    return found.union(*(list(tally.destinations.values()) for tally in tallies))


class Sampler:
    """The thread of one recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lock = threading.Lock()
        self._running = False
        self._due = 0.0
        """When what has ended may be written again, between two ticks."""
        self._ticks = 0
        self._moving = False
        self._charged = 0
        """CPU nanoseconds of this thread that loads were told of."""
        self._stop = threading.Event()
        self._nudged = threading.Event()
        self._writing = threading.Lock()
        self._initializing = Initializing()

    def wake(self) -> None:
        """A load was opened: start the thread if it does not run."""
        self._due = time.perf_counter() + _KEPT  # a load that is over in a moment has nothing that must be kept before its end
        if self._running:
            return
        with self._lock:
            if not self._running:
                self._running = True
                self._stop = threading.Event()
                # Not threading.Thread: its start waits until the new thread runs, and that time would be the load's.
                _thread.start_new_thread(self._run, ())

    def stop(self) -> None:
        """End the thread and say in the state file that the process left in order."""
        self._stop.set()
        self._nudged.set()
        with self._writing:
            self._recorder.waiting.deliver()
            self._recorder.metrics.deliver()
            telemetry.write()
            state.write(self._recorder, ended=True)

    def keep(self) -> None:
        """A stage has ended: have it written now, unless something was a moment ago. A process may be killed before the next tick."""
        if time.perf_counter() > self._due:
            self._nudged.set()  # by the thread: it takes a millisecond, which is not the load's

    def _write(self, *, state_too: bool = True) -> None:
        begun = time.thread_time()
        with self._writing:
            if not self._stop.is_set():
                self._recorder.waiting.deliver()
                self._recorder.metrics.deliver()
                telemetry.write()
                if state_too:
                    state.write(self._recorder, ended=False)
        self._due = time.perf_counter() + max(_KEPT, (time.thread_time() - begun) / _SHARE)

    def abandon(self) -> None:
        """Forget the thread: it did not survive the fork."""
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._nudged = threading.Event()
        self._running = False

    def _run(self) -> None:
        idle, stop, pause = 0, self._stop, TICK
        self._charged = time.thread_time_ns()
        while True:
            self._rest(stop, pause)  # first: the start of a load is no time to take the interpreter lock
            begun = time.thread_time()
            with guard:
                self._tick()
            # While bytes go to a device no reading of its link is left out: three have to agree, and most moves are over in a second.
            pause = TICK if self._moving else min(max(TICK, (time.thread_time() - begun) / _SHARE), _RARELY)
            idle = 0 if self._recorder.loads or self._recorder.repetitions else idle + 1
            with self._lock:
                if stop.is_set() or (idle > _LINGER and not self._recorder.loads):
                    self._running = False
                    return

    def _rest(self, stop: threading.Event, pause: float) -> None:
        """Wait *pause* seconds for the next tick; write meanwhile what is asked for."""
        ticked = time.perf_counter()
        while not stop.is_set() and (left := ticked + pause - time.perf_counter()) > 0:
            if self._nudged.wait(left):
                stop.wait(_BREATH)
                self._nudged.clear()
                with guard:
                    self._write(state_too=False)

    def _tick(self) -> None:
        loads = list(self._recorder.loads)
        self._moving = False
        if loads:
            frames = sys._current_frames()  # noqa: SLF001 - the only way to see what another thread runs
            for load in loads:
                self._look(load, frames.get(load.thread))
            del frames
            self._sample(loads)
            if self._ticks >= _LONG:
                late.prepare_findings()
        else:
            self._charged = time.thread_time_ns()  # nobody's
        self._recorder.close_finished()
        self._ticks += 1
        self._write(state_too=self._ticks % 2 == 1)

    def _sample(self, loads: list[OpenLoad]) -> None:
        """Look at what the machine does for each load, and charge them with what the sampler has cost since the last time."""
        counted = counters.io_of_process()
        numbers = {thread.ident: thread.native_id for thread in threading.enumerate()}
        cost = time.thread_time_ns()
        for load in loads:
            if load.explicit or load.busy:
                load.surroundings.cost += cost - self._charged
            with guard:
                self._sample_one(load, counted, numbers)
        if self._ticks % _OFTEN == 0:
            self._recorder.metrics.deliver()  # what has ended comes first: one counter is for all
            with guard:
                growth.grow(self._recorder, loads, counted)
        self._charged = cost

    def _sample_one(self, load: OpenLoad, counted: counters.Counters, numbers: Mapping[int | None, int | None]) -> None:
        busy = load.busy
        if not load.explicit and not busy:  # it has become quiet
            if load.after is None or load.after.at < load.last_end:
                load.after = counters.of_process()
            if load.surroundings.stood < load.last_end:
                load.surroundings.stand(load.last_end)
        if not (busy or load.explicit) or counted.at < load.start:
            return
        stages = [stage for stage in list(self._recorder.stages) if stage.load is load]
        moving = _moving(load, stages)
        self._moving = self._moving or bool(moving)
        for there in moving:
            late.look(there)
        at_work = {stage.thread for stage in stages} | ({load.thread} if busy else set())
        at_work |= {thread for tally in list(load.tallies.values()) if tally.active for thread in list(tally.threads)}
        load.surroundings.ask(number for thread in at_work if (number := numbers.get(thread)) is not None)
        load.surroundings.look(counted, (counted.at - load.start) / 1e9, load.progress(stages))

    def _look(self, load: OpenLoad, frame: FrameType | None) -> None:
        """Note what the loading thread runs while no stage is open."""
        if frame is None or load.busy:
            return
        frame = _host(frame)
        if frame is None:
            return
        initializing = self._initializing.running(frame, load.imports)
        name = f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        with load.lock:
            if not load.busy:
                load.gap.append((initializing, name))
