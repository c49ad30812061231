"""
What the kernel counted for this process and for the calling thread: bytes, faults, time on and off a CPU.

Sources: `/proc/self/io` (rchar, read_bytes), `/proc/thread-self/schedstat` (ns waiting for a CPU), getrusage(2) for faults and for what a
thread had read from storage; the CPU clocks for time on a CPU, since what the others tell of it advances by whole ticks.
Descriptors are kept open, a set for each thread that opens stages: open, read and close cost 25 us where a pread costs 3.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from typing import NamedTuple

from loadspan.facts import tree
from loadspan.facts.kept import Kept

_THREAD = getattr(resource, "RUSAGE_THREAD", None)
_PREFIX = "/proc/"
BLOCK = 512
"""Bytes of the blocks in which getrusage counts input, whatever the device."""


class IoFacts(NamedTuple):
    """Counter differences over a stage. Bytes, faults, seconds; None where the kernel does not tell."""

    storage_read: int | None = None
    read: int | None = None
    fault_major: int | None = None
    fault_minor: int | None = None
    cpu_time: float | None = None
    blocked_time: float | None = None
    run_queue_time: float | None = None


class Counters(NamedTuple):  # which is made in a quarter of the time of a frozen dataclass, ten times a second and for every stage
    """Lifetime counters at one moment of one thread, or of the process; None where unreadable."""

    at: int
    """Nanoseconds of `time.perf_counter_ns`."""
    thread: int
    read: int | None
    storage_read: int | None
    fault_major: int | None
    fault_minor: int | None
    cpu_time: float | None
    waiting: int | None
    """Nanoseconds in which it could run and waited for a CPU; of threads only."""


def parse_io(text: bytes) -> tuple[int | None, int | None]:
    """Bytes through read() and bytes from storage, out of the text of an `io` file."""
    fields = text.split()
    found = dict(zip(fields[::2], fields[1::2], strict=False))
    read, storage_read = found.get(b"rchar:", b""), found.get(b"read_bytes:", b"")
    return int(read) if read.isdigit() else None, int(storage_read) if storage_read.isdigit() else None


def parse_waiting(text: bytes) -> int | None:
    """Nanoseconds runnable but waiting for a CPU, out of the text of a `schedstat` file."""
    fields = text.split()
    # The first field, time on a CPU, is left alone: of a running thread it is as old as the last tick of the scheduler.
    return int(fields[1]) if len(fields) > 1 and fields[1].isdigit() else None


class _Files(threading.local):
    """The files of one thread; they are closed when it ends."""

    schedstat: Kept | None = None


_files = _Files()
_process: list[Kept] = []


def _process_io() -> bytes:
    if not _process or _process[0].stale:
        _process[:] = [Kept(_PREFIX + "self/io")]
    return _process[0].read()


def _waiting() -> int | None:
    """Nanoseconds in which the calling thread could run and waited for a CPU."""
    kept = _files.schedstat
    if kept is None or kept.stale:
        kept = _files.schedstat = Kept(_PREFIX + "thread-self/schedstat")
    return parse_waiting(kept.read())


def usage() -> resource.struct_rusage | None:
    """What getrusage tells of the calling thread; None where the system has nothing per thread."""
    return resource.getrusage(_THREAD) if _THREAD is not None else None


class Scheduled(NamedTuple):
    """How the calling thread had spent its life at one moment, in nanoseconds."""

    on_cpu: int
    waiting: int
    """It could run and waited for a CPU."""
    switches: int
    """How often it was taken off a CPU; less than 0 where that is not known."""


class _Last(threading.local):
    """The last reading in a thread."""

    waiting: int | None = None
    switches = -1


_last = _Last()


def _forget() -> None:
    """Forget the parent's: a child's counters begin anew, and may come to the same number."""
    _last.waiting, _last.switches = None, -1


os.register_at_fork(after_in_child=_forget)


def _switches(used: resource.struct_rusage | None) -> int:
    return used.ru_nvcsw + used.ru_nivcsw if used is not None else -1


def scheduled(used: resource.struct_rusage | None) -> Scheduled | None:
    """
    How the calling thread has spent its life, if its usage is *used* now; None where the kernel does not tell.

    Who was not taken off a CPU since has not waited for one: then the file need not be read, which costs ten times as much as all else.
    """
    switches = _switches(used)
    if _last.waiting is None or switches < 0 or switches != _last.switches:
        _last.waiting, _last.switches = _waiting(), switches
    return None if _last.waiting is None else Scheduled(time.thread_time_ns(), _last.waiting, switches)


def spent(took: int, before: Scheduled, used: resource.struct_rusage | None) -> tuple[int, int, int] | None:
    """
    How the calling thread has spent the *took* nanoseconds since *before*, if its usage is *used* now: asleep, on a CPU, waiting for one.

    None where the kernel does not tell.
    """
    if before.switches >= 0 and before.switches == _switches(used):
        return 0, took, 0
    after = scheduled(used)
    if after is None:
        return None
    on_cpu, waiting = after.on_cpu - before.on_cpu, after.waiting - before.waiting
    return max(0, took - on_cpu - waiting), on_cpu, waiting


def of_thread(thread: int) -> Counters:
    """
    Counters of the calling thread, whose identifier is *thread*.

    Without `read`: the file that tells it costs 14 us, and is needed only where other stages run at the same time.
    """
    used = usage()
    storage_read, major, minor = (used.ru_inblock * BLOCK, used.ru_majflt, used.ru_minflt) if used is not None else (None, None, None)
    now = scheduled(used)
    on_cpu, waiting = (now.on_cpu / 1e9, now.waiting) if now is not None else (time.thread_time(), None)
    return Counters(time.perf_counter_ns(), thread, None, storage_read, major, minor, on_cpu, waiting)


def io_of_process() -> Counters:
    """Of `of_process` the bytes alone, for a third of its price: the kernel adds up each counter over all threads."""
    own = tree.own_of_process()
    # First: a child that is waited for in between is counted a moment too early, and not less than nothing.
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock * BLOCK
    read, storage_read = parse_io(_process_io())
    # The file has the children that were waited for, whose loads are told by themselves. What they got through read() nothing tells apart.
    storage_read = None if storage_read is None else storage_read - children
    return Counters(time.perf_counter_ns(), 0, None if read is None else read - own, storage_read, None, None, None, None)


def of_process() -> Counters:
    """Counters of this process: all its threads, past and present. Only `read` has the children that it has waited for, too."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return io_of_process()._replace(fault_major=used.ru_majflt, fault_minor=used.ru_minflt, cpu_time=time.process_time())


def _less(after: float | None, before: float | None) -> float | None:
    # Differences below zero mean that the counter was reset or read for another task: unknown, not negative.
    return None if after is None or before is None or after < before else after - before


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def difference(before: Counters, after: Counters) -> IoFacts:
    """What happened from *before* to *after*. `blocked_time` only for two readings of one thread."""
    cpu_time = _less(after.cpu_time, before.cpu_time)
    waiting = _less(after.waiting, before.waiting)
    blocked = None
    if waiting is not None and cpu_time is not None and before.thread == after.thread:
        blocked = max(0.0, (after.at - before.at - waiting) / 1e9 - cpu_time)
    return IoFacts(
        storage_read=_whole(_less(after.storage_read, before.storage_read)),
        read=_whole(_less(after.read, before.read)),
        fault_major=_whole(_less(after.fault_major, before.fault_major)),
        fault_minor=_whole(_less(after.fault_minor, before.fault_minor)),
        cpu_time=cpu_time,
        blocked_time=blocked,
        run_queue_time=waiting / 1e9 if blocked is not None and waiting is not None else None,
    )


def with_blocked(whole: IoFacts, own: IoFacts) -> IoFacts:
    """The process's facts with the times that are of the one thread that called: blocked, and waiting for a CPU."""
    return whole._replace(blocked_time=own.blocked_time, run_queue_time=own.run_queue_time)
