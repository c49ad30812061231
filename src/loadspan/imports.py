"""
What is imported late is imported whole before a process forks.

A thread that is in the middle of an import holds that module's lock. A fork at this moment leaves the child the lock and not the thread,
and who imports the module there waits for ever. So a fork waits until no other thread imports something of ours, and the next import waits
until the fork is done.
"""

from __future__ import annotations

import os
import threading
from importlib import import_module
from typing import TYPE_CHECKING

from loadspan.guard import safely

if TYPE_CHECKING:
    from types import TracebackType

_LIMIT = 2.0
"""Seconds after which nobody waits: who forks while it imports may hold what an import of ours waits for."""


class _Gate:
    """Inside are the threads that import; closed while one forks."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._inside: list[int] = []
        self._forking: list[int] = []

    def __enter__(self) -> None:
        own = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: not self._others(self._forking, own), _LIMIT)
            self._inside.append(own)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with self._changed:
            self._inside.remove(threading.get_ident())
            self._changed.notify_all()

    @staticmethod
    def _others(threads: list[int], own: int) -> bool:
        return any(thread != own for thread in threads)

    def close(self) -> None:
        """Wait until nobody else is inside, and let nobody else in."""
        own = threading.get_ident()
        with self._changed:
            self._forking.append(own)
            self._changed.wait_for(lambda: not self._others(self._inside, own), _LIMIT)

    def open(self) -> None:
        """Let others in again."""
        with self._changed:
            self._forking.remove(threading.get_ident())
            self._changed.notify_all()

    def renew(self) -> None:
        """Forget the other threads: they did not survive the fork."""
        own = threading.get_ident()
        self._changed = threading.Condition(threading.RLock())
        self._inside = [thread for thread in self._inside if thread == own]
        self._forking = []


_gate = _Gate()
_whole: set[str] = set()

os.register_at_fork(
    before=lambda: safely(_gate.close), after_in_parent=lambda: safely(_gate.open), after_in_child=lambda: safely(_gate.renew)
)


def need(name: str) -> None:
    """Import the module *name* if that was not done here before; afterwards it can be imported without a thought."""
    if name not in _whole:
        with _gate:
            import_module(name)
        _whole.add(name)
