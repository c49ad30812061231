"""
What the kernel counted for this process and for the calling thread: bytes, faults, time on and off a CPU.

Sources: `/proc/thread-self/io` and `/proc/self/io` (rchar, read_bytes), `/proc/thread-self/schedstat` (ns on a CPU, ns waiting for one) and
getrusage(2) for faults; the CPU clocks, since getrusage's times advance by whole ticks.
Files are opened for each reading: a kept descriptor would read the parent after a fork, fail once its thread is gone, and leak with every
pool thread, to save 5 us on a call that takes a millisecond or more.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from dataclasses import dataclass, replace

_THREAD = getattr(resource, "RUSAGE_THREAD", None)
_PREFIX = "/proc/"
_PIECE = 1 << 12


@dataclass(frozen=True, slots=True)
class IoFacts:
    """Counter differences over a stage. Bytes, faults, seconds; None where the kernel does not tell."""

    storage_read: int | None = None
    read: int | None = None
    fault_major: int | None = None
    fault_minor: int | None = None
    cpu_time: float | None = None
    blocked_time: float | None = None


@dataclass(frozen=True, slots=True)
class Counters:
    """Lifetime counters at one moment of one thread, or of the process; None where unreadable."""

    at: int
    """Nanoseconds of `time.perf_counter_ns`."""
    thread: int
    read: int | None
    storage_read: int | None
    fault_major: int | None
    fault_minor: int | None
    cpu_time: float | None
    scheduled: int | None
    """Nanoseconds on a CPU or waiting for one; of threads only."""


class _Own(threading.local):
    """Bytes that this thread read for our own purposes; they are no part of what the host read."""

    size = 0


_own = _Own()
_own_process = [0]
_own_lock = threading.Lock()


def content(path: str) -> bytes:
    """The text of a kernel file, empty where it cannot be read. Its bytes are kept out of `read`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    text = b""
    try:
        text = os.read(descriptor, _PIECE)
        while len(text) % _PIECE == 0 and (more := os.read(descriptor, _PIECE)):
            text += more
    except OSError:
        return b""
    finally:
        os.close(descriptor)
        size = len(text)
        _own.size += size
        with _own_lock:
            _own_process[0] += size
    return text


def parse_io(text: bytes) -> tuple[int | None, int | None]:
    """Bytes through read() and bytes from storage, out of the text of an `io` file."""
    fields = text.split()
    found = dict(zip(fields[::2], fields[1::2], strict=False))
    read, storage_read = found.get(b"rchar:", b""), found.get(b"read_bytes:", b"")
    return int(read) if read.isdigit() else None, int(storage_read) if storage_read.isdigit() else None


def parse_schedstat(text: bytes) -> int | None:
    """Nanoseconds on a CPU plus nanoseconds waiting for one, out of the text of a `schedstat` file."""
    fields = text.split()
    if len(fields) < 2 or not (fields[0].isdigit() and fields[1].isdigit()):  # noqa: PLR2004 - run and wait come first
        return None
    return int(fields[0]) + int(fields[1])


def _faults(who: int | None) -> tuple[int | None, int | None]:
    if who is None:
        return None, None
    usage = resource.getrusage(who)
    return usage.ru_majflt, usage.ru_minflt


def _take(io: str, who: int | None, cpu_time: float, on_or_waiting: int | None, thread: int, own: int) -> Counters:
    read, storage_read = parse_io(content(io))
    read = None if read is None else read - own
    return Counters(time.perf_counter_ns(), thread, read, storage_read, *_faults(who), cpu_time, on_or_waiting)


def scheduled() -> int | None:
    """Nanoseconds in which the calling thread was on a CPU or waiting for one."""
    return parse_schedstat(content(_PREFIX + "thread-self/schedstat"))


def of_thread(thread: int) -> Counters:
    """Counters of the calling thread, whose identifier is *thread*."""
    return _take(_PREFIX + "thread-self/io", _THREAD, time.thread_time(), scheduled(), thread, _own.size)


def of_process() -> Counters:
    """Counters of this process: all its threads, past and present, and the children it has waited for."""
    return _take(_PREFIX + "self/io", resource.RUSAGE_SELF, time.process_time(), None, 0, _own_process[0])


def _less(after: float | None, before: float | None) -> float | None:
    # Differences below zero mean that the counter was reset or read for another task: unknown, not negative.
    return None if after is None or before is None or after < before else after - before


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def difference(before: Counters, after: Counters) -> IoFacts:
    """What happened from *before* to *after*. `blocked_time` only for two readings of one thread."""
    blocked = None
    runnable = _less(after.scheduled, before.scheduled)
    if runnable is not None and before.thread == after.thread:
        blocked = max(0.0, (after.at - before.at - runnable) / 1e9)
    return IoFacts(
        storage_read=_whole(_less(after.storage_read, before.storage_read)),
        read=_whole(_less(after.read, before.read)),
        fault_major=_whole(_less(after.fault_major, before.fault_major)),
        fault_minor=_whole(_less(after.fault_minor, before.fault_minor)),
        cpu_time=_less(after.cpu_time, before.cpu_time),
        blocked_time=blocked,
    )


def with_blocked(whole: IoFacts, own: IoFacts) -> IoFacts:
    """The process's facts with the blocked time of the one thread that called."""
    return replace(whole, blocked_time=own.blocked_time)
