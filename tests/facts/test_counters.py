"""What is read off the kernel's counters is what happened, and whatever their files say nothing breaks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadspan.facts import counters

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def during(work: Callable[[], object]) -> counters.IoFacts:
    thread = threading.get_ident()
    before, whole = counters.of_thread(thread), counters.of_process()
    work()
    after = counters.of_process()
    return counters.with_blocked(counters.difference(whole, after), counters.difference(before, counters.of_thread(thread)))


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_work_on_a_cpu_is_not_blocked_however_short_it_is() -> None:
    facts = [during(lambda: spin(0.002)) for _ in range(20)]
    assert all(fact.blocked_time is not None for fact in facts)
    assert sum(fact.blocked_time or 0.0 for fact in facts) < 0.01


def test_sleep_is_blocked_time() -> None:
    assert during(lambda: time.sleep(0.05)).blocked_time == pytest.approx(0.05, abs=0.02)


def test_waiting_for_a_cpu_that_others_use_is_neither_work_nor_sleep() -> None:
    allowed = os.sched_getaffinity(0)
    others = []
    try:
        os.sched_setaffinity(0, {min(allowed)})
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        facts = during(lambda: spin(0.3))
    finally:
        os.sched_setaffinity(0, allowed)
        for other in others:
            other.kill()
            other.wait()
    assert facts.run_queue_time is not None
    assert facts.run_queue_time > 0.1
    assert (facts.blocked_time or 0.0) < 0.5 * facts.run_queue_time  # a virtual machine is stopped now and then, too


def test_a_call_is_divided_into_sleep_work_and_waiting() -> None:
    before, begun = counters.scheduled(counters.usage()), time.perf_counter_ns()
    assert before is not None
    spin(0.02)
    time.sleep(0.03)
    took = time.perf_counter_ns() - begun
    spent = counters.spent(took, before, counters.usage())
    assert spent is not None
    asleep, on_cpu, waiting = spent
    assert asleep == pytest.approx(30e6, abs=10e6)
    assert on_cpu == pytest.approx(20e6, abs=5e6)
    assert asleep + on_cpu + waiting == pytest.approx(took, rel=0.01)


def test_a_thread_that_kept_its_cpu_was_on_it_all_the_time() -> None:
    for _ in range(1000):  # nobody takes it away in all of a thousand moments
        before = counters.scheduled(counters.usage())
        assert before is not None
        if counters.spent(5, before, counters.usage()) == (0, 5, 0):
            return
    pytest.fail("never")


def test_a_child_begins_with_counters_of_its_own() -> None:
    counters.scheduled(counters.usage())
    child = os.fork()
    if not child:
        os._exit(0 if counters._last.waiting is None else 1)  # noqa: SLF001 - what it has forgotten is the point
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_our_own_reading_is_not_in_what_the_host_read() -> None:
    assert during(lambda: None).read == 0


def test_bytes_read_are_counted_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1_234_567))

    def read() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        while os.read(descriptor, 100_000):
            pass
        os.close(descriptor)

    assert during(read).read == 1_234_567


def test_what_a_child_had_read_from_storage_is_not_of_the_process_that_waits_for_it() -> None:
    size = 8 << 20
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
        program = f"""
import os, resource
descriptor = os.open({file.name!r}, os.O_RDONLY)
os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
while os.read(descriptor, 1 << 20):
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_inblock * 512)
"""
        done: list[subprocess.CompletedProcess[str]] = []
        facts = during(lambda: done.append(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)))
    if int(done[0].stdout) < size:
        pytest.skip("what is below /var/tmp is in memory")
    assert facts.storage_read is not None
    assert facts.storage_read < size // 2


def test_blocked_time_is_of_one_thread_only() -> None:
    before = counters.of_thread(1)
    assert counters.difference(before, counters.of_thread(2)).blocked_time is None


def test_a_counter_that_went_back_is_unknown() -> None:
    high = counters.Counters(0, 1, 10, 10, 10, 10, 1.0, 10)
    low = counters.Counters(1, 1, 5, 5, 5, 5, 0.5, 5)
    assert counters.difference(high, low) == counters.IoFacts()


def test_a_thread_that_ends_leaves_no_descriptor_open() -> None:
    counters.scheduled(counters.usage())
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are all that is needed
    for _ in range(20):
        thread = threading.Thread(target=lambda: counters.scheduled(counters.usage()))
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208 - as above


def test_a_descriptor_that_the_program_gave_to_another_file_is_left_to_it(tmp_path: Path) -> None:
    def work() -> None:
        counters.scheduled(counters.usage())
        mine = counters._files.schedstat  # noqa: SLF001 - what it holds is the point
        assert mine is not None
        other = os.open(tmp_path, os.O_RDONLY)
        os.dup2(other, mine.descriptor)  # as a daemon does that closes all and opens anew
        os.close(other)
        taken.append(mine.descriptor)

    taken: list[int] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    os.fstat(taken[0])  # still open
    os.close(taken[0])


@given(st.binary(max_size=200))
def test_no_text_of_a_kernel_file_breaks_a_parser(text: bytes) -> None:
    read, storage = counters.parse_io(text)
    assert read is None or read >= 0
    assert storage is None or storage >= 0
    waiting = counters.parse_waiting(text)
    assert waiting is None or waiting >= 0
