"""The one recorder of this process, its sampler, and what happens to them at exit and fork."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from typing import Any

from loadspan.guard import guard, safely
from loadspan.instrument import children, telemetry
from loadspan.instrument.frames import current
from loadspan.instrument.recorder import Recorder
from loadspan.instrument.sampler import Sampler

_FLUSH = 1.0  # seconds a leaving child may wait for its spans to be sent

recorder = Recorder()
sampler = Sampler(recorder)
_watched: set[int] = set()


def _opened() -> None:
    """Run when a load was opened: see that it is sampled, and closed in time."""
    sampler.wake()
    if os.getpid() not in _watched:
        _watched.add(os.getpid())
        # Only now, not at import: exit functions run last in, first out, and ours must run before the SDK's shutdown.
        atexit.register(safely, _leave)
        # Children of multiprocessing leave by os._exit and run no exit functions, only these.
        util: Any = sys.modules.get("multiprocessing.util")
        process: Any = sys.modules.get("multiprocessing.process")
        if util is not None and process is not None and process.parent_process() is not None:
            util.Finalize(None, safely, args=(leave_child,), exitpriority=100)


def _leave() -> None:
    recorder.close_all()
    sampler.stop()


def leave_child() -> None:
    """Deliver what is recorded: this process runs no exit functions."""
    _leave()
    # In threads: the SDK's own flush does not keep its time.
    threads = [threading.Thread(target=safely, args=(flush,), daemon=True) for flush in (recorder.telemetry.flush, recorder.metrics.flush)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + _FLUSH
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _forking() -> None:
    with guard:
        frame = current.get()
        if frame is not None and not frame.load.closed and frame.handle is not None:
            frame.handle.span()  # started by both sides it would be two: what the child has below it would be below nothing


def _forked() -> None:
    with guard:
        telemetry.inherited.update(children.told())
        recorder.abandon()
        sampler.abandon()


recorder.on_open = _opened
recorder.on_close = sampler.keep
os.register_at_fork(before=_forking, after_in_child=_forked)
