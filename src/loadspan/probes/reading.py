"""
Blocks of files read by threads, timed: with read(2) into buffers that are used again, or through a mapping.

A thread counts what the kernel says it took from storage (`read_bytes` of its own `io` file). The caller only waits, so that Ctrl-C and
storage that never answers end the measurement and not the program.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadspan.facts import counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from loadspan.probes import Progress

_TICK = 0.1
_GRACE = 5.0  # seconds for a request that was sent in time to be answered


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes to read at once; `descriptor` also where it is read through `view`, the whole file mapped."""

    descriptor: int
    offset: int
    length: int
    view: memoryview | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read."""

    size: int
    seconds: float
    storage_read: int | None
    """Bytes that the kernel says came from storage; None where it does not say."""


class NoAnswerError(Exception):
    """The storage did not answer in time."""


@dataclass(slots=True)
class _Worker:
    """One reading thread, and what it found."""

    size: int = 0
    start: int = 0
    end: int = 0
    storage_read: int | None = None
    error: OSError | None = None
    thread: threading.Thread | None = None


@dataclass(slots=True)
class _Work:
    """What the threads share. A lock, since iterators are not safe without the interpreter's own."""

    blocks: Iterator[Block]
    largest: int
    seconds: float
    start: threading.Barrier
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def next(self) -> Block | None:
        with self.lock:
            return None if self.stopped else next(self.blocks, None)


def read(blocks: Sequence[Block], depth: int, seconds: float, progress: Callable[[int], None]) -> Reading:
    """
    Read *blocks* in order with *depth* threads, for *seconds* at most. *progress* gets the bytes so far.

    Raises:
        OSError: a read failed.
        NoAnswerError: a read is still not answered some seconds after the end.
    """
    work = _Work(iter(blocks), max(block.length for block in blocks), seconds, threading.Barrier(depth + 1))
    workers = [_Worker() for _ in range(depth)]
    try:
        for number, worker in enumerate(workers):
            # Daemons: a thread whose read is never answered must not keep the program from ending.
            worker.thread = threading.Thread(target=_run, args=(work, worker), name=f"loadspan-read-{number}", daemon=True)
            worker.thread.start()
        work.start.wait(_GRACE)
        _watch(workers, seconds, progress)
    except threading.BrokenBarrierError:
        pass  # a thread could not begin: its error says why
    finally:
        work.stopped = True
        work.start.abort()
    for worker in workers:
        if worker.thread is not None:
            worker.thread.join(_GRACE)
        if worker.error is not None:
            raise worker.error
    return _sum(workers)


def _watch(workers: Sequence[_Worker], seconds: float, progress: Callable[[int], None]) -> None:
    deadline = time.perf_counter() + seconds + _GRACE
    while alive := [worker for worker in workers if worker.thread is not None and worker.thread.is_alive()]:
        if time.perf_counter() > deadline:
            raise NoAnswerError
        if alive[0].thread is not None:
            alive[0].thread.join(_TICK)
        progress(sum(worker.size for worker in workers))


def _sum(workers: Sequence[_Worker]) -> Reading:
    # Of those that read anything: with few blocks, the last threads find none left.
    busy = [worker for worker in workers if worker.size]
    if not busy:
        return Reading(0, 0.0, None)
    counts = [worker.storage_read for worker in workers]
    return Reading(
        sum(worker.size for worker in busy),
        (max(worker.end for worker in busy) - min(worker.start for worker in busy)) / 1e9,
        None if None in counts else sum(count or 0 for count in counts),
    )


def _run(work: _Work, worker: _Worker) -> None:
    """One thread: its own buffer, its own counter."""
    try:
        counter = _own_counter()
        buffer = memoryview(mmap.mmap(-1, -(-work.largest // mmap.PAGESIZE) * mmap.PAGESIZE))
        for offset in range(0, work.largest, mmap.PAGESIZE):
            buffer[offset] = 1  # the page is there before the clock runs
        sink = os.memfd_create("loadspan") if hasattr(os, "memfd_create") else -1
        try:
            before = _storage_read(counter)
            work.start.wait(_GRACE)
            _loop(work, worker, buffer, sink)
            after = _storage_read(counter)
            worker.storage_read = None if after is None else after - (before or 0)  # of a new thread it is 0
        finally:
            for descriptor in (counter, sink):
                if descriptor >= 0:
                    os.close(descriptor)
    except OSError as error:
        worker.error = error
        work.stopped = True
        work.start.abort()
    except threading.BrokenBarrierError:
        pass  # the measurement was given up before it began


def _loop(work: _Work, worker: _Worker, buffer: memoryview, sink: int) -> None:
    worker.start = worker.end = time.perf_counter_ns()
    deadline = worker.start + int(work.seconds * 1e9)
    while worker.end < deadline and (block := work.next()) is not None:
        if block.view is None:
            worker.size += os.preadv(block.descriptor, [buffer[: block.length]], block.offset)
        else:
            # The kernel copies out of the mapping, and so takes the faults: one that fails is an error, where a touch of ours would
            # end the program with SIGBUS, and the interpreter's lock is free meanwhile.
            worker.size += os.pwrite(sink, block.view[block.offset : block.offset + block.length], 0)
        worker.end = time.perf_counter_ns()


def _own_counter() -> int:
    with suppress(OSError):
        return os.open("/proc/thread-self/io", os.O_RDONLY | os.O_CLOEXEC)
    return -1


def _storage_read(counter: int) -> int | None:
    """Bytes that this thread has had from storage so far."""
    if counter < 0:
        # A process that changed its user may not look there. Some sandboxes always say 0 here, which is no measurement.
        return counters.of_thread(0).storage_read or None
    with suppress(OSError):
        return counters.parse_io(os.pread(counter, 4096, 0))[1]
    return None


def told(what: str, most: int, progress: Progress) -> Callable[[int], None]:
    """*progress* of one probe, as the reader calls it."""
    return lambda done: progress(what, done, most)
