"""Counters that grow while a load runs: each byte when it comes, and each once."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import loadspan
from loadspan import metric_names, names
from loadspan.instrument.live import recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

from metered import SIZE, Measured, child, load


def io(measured: Measured) -> dict[str, int]:
    """Bytes that each stage has moved so far; of stages that have moved any."""
    return {point.attributes[names.STAGE]: point.value for point in measured.points(metric_names.STAGE_IO) if point.value}


def test_bytes_are_counted_while_a_stage_moves_them_and_each_once(measuring: Callable[..., Measured]) -> None:
    measured = measuring()
    seen = [0]
    with loadspan.load("slow"), loadspan.load("in it"):
        for _ in range(2):
            with loadspan.stage(names.READ) as stage:
                for _ in range(8):
                    stage.add(1000)
                    time.sleep(0.12)
                    seen.append(io(measured).get(names.READ, 0))
        with loadspan.stage(names.DECRYPT, size=500):
            time.sleep(0.7)
            assert names.DECRYPT not in io(measured)  # that it is to move so many is not that it has
    assert seen == sorted(seen)
    assert len(set(seen)) >= 3
    assert seen[-1] <= 16_000
    recorder.waiting.deliver()
    assert io(measured) == {names.READ: 16_000, names.DECRYPT: 500} == measured.by_stage(metric_names.STAGE_SIZE)
    assert measured.value(metric_names.LOAD_COUNT) == 1


def test_fine_calls_are_counted_while_they_are_made(measuring: Callable[..., Measured], tmp_path: Path) -> None:
    measured = measuring()
    path = tmp_path / "weights.enc"
    path.write_bytes(bytes(24 << 20))
    with loadspan.load("chunks"), path.open("rb") as file:
        seen = []
        while file.read(1 << 20):
            time.sleep(0.06)
            seen.append(io(measured).get(names.READ, 0))
    assert 0 < seen[len(seen) // 2] < 24 << 20
    assert io(measured) == {names.READ: 24 << 20}


def test_what_is_lazy_moves_nothing_until_it_is_used(measuring: Callable[..., Measured], weights: Path) -> None:
    measured = measuring()
    load(weights)
    assert measured.by_stage(metric_names.STAGE_SIZE)[names.DESERIALIZE] == SIZE
    assert io(measured) == {names.LOAD_STATE_DICT: SIZE, names.CONVERT: SIZE // 2}


def test_without_a_load_nothing_grows(measuring: Callable[..., Measured], weights: Path) -> None:
    measured = measuring()
    assert {point.attributes[names.STAGE] for point in measured.points(metric_names.STAGE_IO)} == set(metric_names.MOVING)
    load(weights)
    before = io(measured), measured.value(metric_names.STORAGE_READ)
    evicted(weights).read_bytes()
    time.sleep(0.8)
    assert (io(measured), measured.value(metric_names.STORAGE_READ)) == before


def evicted(path: Path) -> Path:
    """Without its pages in the cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def test_bytes_from_storage_are_counted_while_they_come_and_in_all_as_the_load_says(
    measuring: Callable[..., Measured], tmp_path: Path
) -> None:
    measured = measuring()
    paths = [tmp_path / f"{number}.bin" for number in range(8)]
    for path in paths:
        path.write_bytes(os.urandom(2 << 20))
        evicted(path)
    seen = {0.0}
    with loadspan.load("cold"):
        for path in paths:
            path.read_bytes()
            until = time.monotonic() + 3  # on a busy machine it is told of less often
            while (value := measured.value(metric_names.STORAGE_READ)) in seen and time.monotonic() < until:
                time.sleep(0.05)
            seen.add(value)
    measured.points(metric_names.LOAD_COUNT)
    (root,) = [span for span in measured.spans.get_finished_spans() if span.name == names.LOAD_SPAN]
    if root.attributes[names.IO_STORAGE_READ] < 8 << 21:
        pytest.skip("this file system has no block device, or keeps its pages")
    assert len(seen) >= 3
    assert measured.value(metric_names.STORAGE_READ) == root.attributes[names.IO_STORAGE_READ]


def test_loads_at_the_same_time_share_what_comes_from_storage(measuring: Callable[..., Measured], tmp_path: Path) -> None:
    measured = measuring()
    path = tmp_path / "both.bin"
    path.write_bytes(os.urandom(8 << 20))

    def one(number: int) -> None:
        with loadspan.load(f"thread {number}"):
            if number == 0:
                evicted(path).read_bytes()
            time.sleep(0.7)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    assert measured.value(metric_names.LOAD_COUNT) == 2
    total = measured.value(metric_names.STORAGE_READ)
    if not total:
        pytest.skip("this file system has no block device, or keeps its pages")
    each = [span.attributes[names.IO_STORAGE_READ] for span in measured.spans.get_finished_spans() if span.name == names.LOAD_SPAN]
    assert max(each) <= total < sum(each)


GROWN = """
import warnings
warnings.simplefilter("ignore")
def load(size):
    with loadspan.load("m"), loadspan.stage("read") as stage:
        stage.add(size)
load(1000)
read, write = os.pipe()
if os.fork() == 0:
    load(1)
    spans.clear()
    os.write(write, json.dumps(points()).encode())
    os._exit(0)
os.close(write)
with open(read) as file:
    child = json.load(file)
os.wait()
load(1000)
print(json.dumps([os.getpid(), points(), child]))
"""


def test_a_fork_counts_its_own_bytes() -> None:
    parent, own, forked = child(GROWN, {})

    def read(metrics: Any) -> dict[int | None, int]:
        return {point.get("process.pid"): point["value"] for point in metrics["loadspan.stage.io"] if point["loadspan.stage"] == "read"}

    assert parent not in read(own)
    assert read(own)[None] == 2000
    assert [value for pid, value in read(forked).items() if pid is not None] == [1]


def test_findings_are_counted_by_rule(measuring: Callable[..., Measured]) -> None:
    measured = measuring()
    for _ in range(2):
        with loadspan.load("llama") as handle:
            handle._frame.attributes.update({names.FINDINGS: ("link-degraded", "cache-cold")})  # noqa: SLF001 - this machine has no such device
    with loadspan.load("well"):
        pass
    found = {point.attributes[names.FINDING_ID]: point.value for point in measured.points(metric_names.FINDING_COUNT)}
    assert found == {"link-degraded": 2, "cache-cold": 2}
