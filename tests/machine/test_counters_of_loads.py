"""Faults, time on a CPU, time waiting for one, time asleep: each where it was spent, and of the threads that it is said to be of."""

from __future__ import annotations

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any

import children
import numpy as np
import pytest
from pages import MIB, chill, make, on_disk, undisturbed

import loadspan
from recorded import walk

if TYPE_CHECKING:
    from pathlib import Path

    from recorded import Spans

SHARE = 24 * MIB
SHARDS = 4
PAGES = 2000


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    on_disk(folder)
    return [make(folder / f"shard-{number}.bin", SHARE) for number in range(SHARDS)]


def parts_of_time(span: dict[str, Any]) -> list[float]:
    return [span["attributes"][f"loadspan.{name}"] for name in ("cpu_time", "blocked_time", "run_queue_time")]


def about(seconds: float) -> Any:
    """
    Within a few percent.

    The time on a CPU is the process's where nothing else was recorded, our sampler's too; and on a busy machine a thread may lose its CPU
    between a look at the clock and one at the counters.
    """
    return pytest.approx(seconds, rel=0.05, abs=0.03)


def stages(load: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [span for span in walk(load) if span["name"] == name]


ONE_THREAD = """
import loadspan, os, sys, time
with loadspan.load("model"):
    with loadspan.stage("decrypt"):
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        time.sleep(0.2)
    with loadspan.stage("read"):
        descriptor = os.open(sys.argv[1], os.O_RDONLY)
        while os.read(descriptor, 1 << 20):
            pass
        os.close(descriptor)
    with loadspan.stage("convert"):
        time.sleep(0.2)
"""


def test_the_times_of_one_thread_add_up_to_its_stage(shards: list[Path]) -> None:
    # In a process of its own: the time on a CPU is the process's, and that of the tests has threads that others left.
    chill(shards[0])
    (load,) = children.loads(ONE_THREAD, shards[0])
    sampler = load["attributes"]["loadspan.sampler.time"]
    for span in walk(load):
        assert sum(parts_of_time(span)) == pytest.approx(span["duration"] + sampler / 2, rel=0.05, abs=0.03 + sampler / 2), span["name"]
    (decrypt,), (convert,) = stages(load, "decrypt"), stages(load, "convert")
    assert decrypt["attributes"]["loadspan.cpu_time"] == pytest.approx(0.2, abs=0.05)
    assert decrypt["attributes"]["loadspan.blocked_time"] == pytest.approx(0.2, abs=0.03)
    assert convert["attributes"]["loadspan.blocked_time"] == pytest.approx(0.2, abs=0.03)
    assert load["attributes"]["loadspan.blocked_time"] > 0.4


SHARED_CPU = """
import os, signal, sys, ctypes
cpu = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {cpu})
other = os.fork()
if not other:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with us
    while True:
        pass
"""
SPIN = """
import loadspan, time
with loadspan.load("model"), loadspan.stage("decrypt"):
    end = time.thread_time() + 0.3
    while time.thread_time() < end:
        pass
os.kill(other, signal.SIGKILL)
os.waitpid(other, 0)
"""


def test_a_thread_that_shares_its_cpu_has_waited_for_it() -> None:
    (load,) = children.loads(SPIN, setup=SHARED_CPU)
    (decrypt,) = load["children"]
    for span in (load, decrypt):
        on_cpu, blocked, waited = parts_of_time(span)
        assert waited > 0.25 * span["duration"]
        assert on_cpu > 0.29
        assert blocked < 0.1 * span["duration"]
        assert on_cpu + blocked + waited == about(span["duration"])


def test_pages_that_a_stage_touches_are_its_faults(spans: Spans, shards: list[Path]) -> None:
    path = shards[0]

    def load() -> dict[str, Any]:
        with loadspan.load("model"), path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            mapping.madvise(mmap.MADV_RANDOM)
            with loadspan.stage("convert"):
                touched = [mapping[page * mmap.PAGESIZE] for page in range(PAGES)]
            with mmap.mmap(-1, PAGES * mmap.PAGESIZE) as fresh, loadspan.stage("merge_lora"):
                if hasattr(mmap, "MADV_NOHUGEPAGE"):
                    fresh.madvise(mmap.MADV_NOHUGEPAGE)
                for page in range(len(touched)):
                    fresh[page * mmap.PAGESIZE] = 1
        return spans.loads()[-1]

    found = undisturbed(path, chill, load, 0.0)
    (convert,), (fresh,) = stages(found, "convert"), stages(found, "merge_lora")
    assert convert["attributes"]["loadspan.fault.major"] == pytest.approx(PAGES, rel=0.02)
    assert convert["attributes"]["loadspan.io.storage_read"] == pytest.approx(PAGES * mmap.PAGESIZE, rel=0.02)
    assert fresh["attributes"]["loadspan.fault.minor"] == pytest.approx(PAGES, rel=0.05)
    assert fresh["attributes"]["loadspan.fault.major"] == 0
    assert found["attributes"]["loadspan.fault.major"] == pytest.approx(PAGES, rel=0.02)


def chill_all(shards: list[Path]) -> None:
    for path in shards:
        chill(path)


def test_workers_that_read_shards_are_counted_each_and_all_for_the_load(spans: Spans, shards: list[Path]) -> None:
    chill_all(shards)
    with loadspan.load("model"), ThreadPoolExecutor(SHARDS) as pool:
        assert sum(pool.map(lambda path: len(path.read_bytes()), shards)) == SHARDS * SHARE
    load = spans.load()
    assert load["attributes"]["loadspan.io.scope"] == "process"
    assert load["attributes"]["loadspan.io.storage_read"] == pytest.approx(SHARDS * SHARE, rel=0.02)
    assert load["attributes"]["loadspan.cache.residency"] == pytest.approx(0, abs=0.02)
    (read,) = stages(load, "read")
    assert read["attributes"]["loadspan.io.scope"] == "thread"
    assert read["attributes"]["loadspan.file.count"] == SHARDS
    assert read["attributes"]["loadspan.io.storage_read"] == pytest.approx(SHARDS * SHARE, rel=0.02)
    assert read["attributes"]["loadspan.cache.residency"] == pytest.approx(0, abs=0.02)
    assert sum(parts_of_time(read)) == about(read["attributes"]["loadspan.busy_time"])


def pread(path: Path) -> int:
    """Read a file in a way that is not recorded."""
    descriptor = os.open(path, os.O_RDONLY)
    size = sum(len(piece) for piece in iter(lambda: os.read(descriptor, MIB), b""))
    os.close(descriptor)
    return size


def test_workers_inside_one_stage_are_its_process_s(spans: Spans, shards: list[Path]) -> None:
    chill_all(shards)
    with loadspan.load("model"), loadspan.stage("read") as stage, ThreadPoolExecutor(SHARDS) as pool:
        for path in shards:
            stage.set(path=path)
        stage.add(sum(pool.map(pread, shards)))
    (read,) = stages(spans.load(), "read")
    assert read["attributes"]["loadspan.io.scope"] == "process"
    assert read["attributes"]["loadspan.io.storage_read"] == pytest.approx(SHARDS * SHARE, rel=0.02)
    # The thread that called slept meanwhile.
    assert read["attributes"]["loadspan.blocked_time"] > 0.5 * read["duration"]


def test_stages_that_run_at_the_same_time_have_each_its_own_thread_s_bytes(spans: Spans, shards: list[Path]) -> None:
    chill_all(shards)
    together = Barrier(2, timeout=20)

    def work(path: Path) -> None:
        with loadspan.stage("read", path=path) as stage:
            together.wait()
            stage.add(pread(path))
            together.wait()

    with loadspan.load("model"), ThreadPoolExecutor(2) as pool:
        list(pool.map(work, shards[:2]))
    load = spans.load()
    reads = stages(load, "read")
    assert len(reads) == 2
    for read in reads:
        assert read["attributes"]["loadspan.io.scope"] == "thread"
        assert read["attributes"]["loadspan.io.storage_read"] == pytest.approx(SHARE, rel=0.02)
        assert read["attributes"]["loadspan.cache.cold"] == pytest.approx(1, abs=0.02)
        assert "loadspan.io.read" not in read["attributes"]
        assert sum(parts_of_time(read)) == about(read["duration"])
    assert load["attributes"]["loadspan.io.scope"] == "process"
    assert load["attributes"]["loadspan.io.storage_read"] == pytest.approx(2 * SHARE, rel=0.02)


def test_what_a_program_does_after_a_load_that_took_a_moment_is_not_counted_for_it(spans: Spans, shards: list[Path]) -> None:
    chill(shards[0])
    array = np.memmap(shards[0], np.uint8, "r")
    end = time.perf_counter() + 0.3  # the sampler looks in between
    while time.perf_counter() < end:
        array[:: mmap.PAGESIZE].sum()
    load = spans.load()
    found = load["attributes"]
    if load["duration"] > 0.03:
        pytest.skip("on a busy machine it took more than a moment")
    assert (found["loadspan.size"], found["loadspan.cache.residency"]) == (SHARE, pytest.approx(0, abs=0.02))
    of_later = {"io.storage_read", "fault.major", "cpu_time", "disk.read", "disk.utilization", "memory.refault", "io.pressure_time"}
    assert not {f"loadspan.{name}" for name in (*of_later, "pressure.scope", "swap.usage")} & found.keys()
