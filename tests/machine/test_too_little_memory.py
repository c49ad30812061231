"""A file that does not fit into the memory there is, loaded twice by one process: the second load reads all of it again, and says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import children
import pytest
from pages import MIB, chill, make, on_disk

if TYPE_CHECKING:
    from pathlib import Path

SIZE, LIMIT = 256 * MIB, 112 * MIB

ENTER = """
import children, sys
path, group, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
children.limit(group, "memory", limit)
"""
TWICE = {
    "buffered": """
import loadspan
piece = bytearray(4 << 20)
for _ in range(2):
    with loadspan.load("model"), open(path, "rb", buffering=0) as file:
        while file.readinto(piece):
            pass
""",
    "mmap": """
import loadspan, numpy
for _ in range(2):
    with loadspan.load("model"):
        array = numpy.memmap(path, numpy.uint8, "r")
        with loadspan.stage("convert"):
            array[::4096].sum()
        del array
""",
}


@pytest.mark.parametrize("how", TWICE)
def test_what_did_not_fit_is_read_again_and_its_eviction_is_seen(tmp_path: Path, how: str) -> None:
    on_disk(tmp_path)
    path = make(tmp_path / "weights.bin", SIZE)
    chill(path)
    with children.control_group("memory") as group:
        first, second = (load["attributes"] for load in children.loads(TWICE[how], path, group, LIMIT, setup=ENTER))
    for load in (first, second):
        assert load["loadspan.memory.limit"] == LIMIT
        assert 0.5 * LIMIT < load["loadspan.memory.usage"] <= LIMIT
        assert load["loadspan.memory.limit.hits"] > 0
        assert load["loadspan.memory.refault.scope"] == "cgroup"
    assert first["loadspan.cache.residency"] == pytest.approx(0, abs=0.02)
    assert SIZE * 0.99 < first["loadspan.io.storage_read"] < SIZE * 1.2
    assert first["loadspan.memory.refault"] < 0.2 * SIZE
    # What it finds in the cache is the end of the file, and gone when it gets there.
    assert 0.02 < second["loadspan.cache.residency"] < LIMIT / SIZE
    assert SIZE * 0.95 < second["loadspan.io.storage_read"] < SIZE * 1.2
    assert SIZE * 0.25 < second["loadspan.memory.refault"] < SIZE * 1.3
    for load in (first, second):
        assert 1 - LIMIT / SIZE - 0.1 < load["loadspan.cache.evicted"] <= 1


AND_MORE = """
import loadspan, os, time
for _ in range(80):  # longer than the sampler rests
    with open(small, "rb") as file:
        file.read()
time.sleep(0.15)  # it is quiet, and not over yet
descriptor = os.open(path, os.O_RDONLY)
end = time.monotonic() + 0.6
while time.monotonic() < end:
    os.lseek(descriptor, 0, os.SEEK_SET)
    while os.read(descriptor, 1 << 20):
        pass
time.sleep(0.8)
"""


def test_what_other_work_does_to_memory_after_an_implicit_load_is_not_the_load_s(tmp_path: Path) -> None:
    on_disk(tmp_path)
    path, small = make(tmp_path / "large.bin", SIZE), make(tmp_path / "weights.bin", 24 * MIB)
    chill(path)
    with children.control_group("memory") as group:
        loads = children.loads(AND_MORE, path, group, LIMIT, small, setup=ENTER + "small = sys.argv[4]")
    found = loads[0]["attributes"]
    assert found["loadspan.implicit"] is True
    assert (found["loadspan.memory.limit"], found["loadspan.memory.limit.hits"]) == (LIMIT, 0)
    assert found["loadspan.memory.refault"] < 24 * MIB
    assert found["loadspan.io.pressure_time"] < loads[0]["duration"]
    assert "loadspan.cache.evicted" not in found
