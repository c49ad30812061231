"""Programs that leave without a word: `os._exit` and `os.exec*` run no exit functions, so what is recorded is delivered before them."""

from __future__ import annotations

import _thread
import functools
from typing import TYPE_CHECKING, Any

from loadspan.guard import safely
from loadspan.instrument.live import leave_child, recorder
from loadspan.instrument.patching import Kind, Target

if TYPE_CHECKING:
    from collections.abc import Callable

_LIMIT = 2.0  # seconds the host is kept: another thread may hold what delivering needs


def _deliver(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if recorder.active and recorder.recorded:
            safely(_in_time)
        return original(*args, **kwargs)

    return wrapper


def _in_time() -> None:
    done = _thread.allocate_lock()
    done.acquire()

    def work() -> None:
        safely(leave_child)
        done.release()

    _thread.start_new_thread(work, ())
    done.acquire(timeout=_LIMIT)


_WHY = "the process ends or becomes another program, and runs no exit function"

ROWS = tuple(Target(module="os", attribute=name, kind=Kind.REPLACE, replace=_deliver, why=_WHY) for name in ("_exit", "execv", "execve"))
