"""A small file of ours that several processes may write: replaced at once, by one at a time, readable by its owner only."""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from loadspan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DATE = "%Y-%m-%dT%H:%M:%SZ"


def now() -> str:
    """The time now, in UTC."""
    return datetime.now(timezone.utc).strftime(_DATE)


def is_date(text: str) -> bool:
    """Whether *text* is such a time."""
    try:
        return datetime.strptime(text, _DATE).replace(tzinfo=timezone.utc).strftime(_DATE) == text
    except (ValueError, OverflowError):
        return False


def conditions() -> dict[str, str]:
    """What a measurement on this machine depends on, apart from what is measured."""
    found = {"loadspan": __version__, "kernel": os.uname().release}
    with suppress(OSError, AttributeError):
        found["processors"] = str(len(os.sched_getaffinity(0)))
    with suppress(OSError):
        found["load average"] = f"{os.getloadavg()[0]:.2f}"
    return found


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Create the folder of *path* and keep other processes that use this function out of it meanwhile."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some network filesystems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace(path: Path, text: str) -> None:
    """Put *text* at *path*: whole, or not at all."""
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)  # noqa: PTH105 - both are paths already
    except BaseException:  # Ctrl-C, too, must leave nothing behind; it is passed on
        with suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108 - a path already
        raise
