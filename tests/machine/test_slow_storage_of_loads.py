"""
Loads from storage that is slow on purpose: a throttled loop device and a FUSE filesystem that takes its time. All of it is real.

A network filesystem is not: where there is no server, its facts are tested on a recorded machine (`machines/storage-network.txt`).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import children
import pytest
from pages import MIB, on_disk

from loadspan.facts import storage

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 24 * MIB
LATENCY = 0.004
UNKNOWN = {"loadspan.cache.residency", "loadspan.cache.cold", "loadspan.cache.evicted", "system.device"}
REQUEST = 128 << 10  # bytes that the kernel asks of FUSE at once

MOUNT = """
import children, json, latencyfs, os, sys
folder, size, latency, how = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
mounted = latencyfs.mount(folder, size, latency)
path = os.path.join(folder, latencyfs.NAME)
assert os.listdir(folder) == [latencyfs.NAME]
"""
LOAD = """
import loadspan, mmap
opened = mounted.count(latencyfs.OPEN)
try:
    for _ in range(2):
        with loadspan.load("model") as load:
            if how == "buffered":
                with open(path, "rb") as file:
                    assert len(file.read()) == size
            else:
                with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping, loadspan.stage("convert"):
                    for place in range(0, size, mmap.PAGESIZE):
                        mapping[place]
    assert mounted.count(latencyfs.OPEN) - opened == 2, "one for each load"
    assert mounted.count(latencyfs.READ) * (128 << 10) >= size
finally:
    mounted.unmount()
"""


@pytest.mark.parametrize("how", ["buffered", "mmap"])
def test_a_filesystem_of_a_program_is_waited_for_and_nothing_is_said_of_its_cache(tmp_path: Path, how: str) -> None:
    children.need_root()
    first, second = children.loads(LOAD, tmp_path, SIZE, LATENCY, how, setup=MOUNT, inside=children.UNSHARE)
    for load in (first, second):
        for span in (load, *load["children"]):
            assert (
                not {"loadspan.cache.residency", "loadspan.cache.cold", "loadspan.cache.evicted", "system.device"}
                & span["attributes"].keys()
            )
        read = load["children"][0]["attributes"]
        assert (read["system.filesystem.type"], read["loadspan.storage.kind"]) == ("fuse.latencyfs", "fuse")
        assert (read["system.filesystem.mountpoint"], read["loadspan.storage.source"]) == (str(tmp_path), "latencyfs")
        assert load["attributes"]["loadspan.io.storage_read"] < 0.01 * SIZE  # of the program's own files
    # The second open drops what the first has brought into the cache.
    for load in (first, second):
        found = load["attributes"]
        assert found["loadspan.blocked_time"] > 0.7 * SIZE / REQUEST * LATENCY
        assert found["loadspan.blocked_time"] > 0.5 * load["duration"]
        assert found["loadspan.cpu_time"] + found["loadspan.blocked_time"] + found["loadspan.run_queue_time"] == pytest.approx(
            load["duration"], rel=0.1
        )
        slow = load["children"][0 if how == "buffered" else -1]["attributes"]
        assert slow["loadspan.blocked_time"] == pytest.approx(found["loadspan.blocked_time"], rel=0.1)


RATE = 24 * MIB
FLAT = 48 * MIB

LOOP = """
import children, os, pages, sys
from pathlib import Path
folder, group, filesystem, rate, size = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
(folder / "point").mkdir()
children.shell(f"truncate -s 400M {folder}/image; mkfs.{filesystem} -q {folder}/image; mount -o loop {folder}/image {folder}/point")
path = pages.make(folder / "point" / "weights.bin", size)
pages.chill(path)
number = path.stat().st_dev
children.limit(group, "read", rate, f"{os.major(number)}:{os.minor(number)}")
"""
READ = """
import loadspan
with loadspan.load("model"), open(path, "rb") as file:
    while file.read(1 << 20):
        pass
"""
MAP = """
import loadspan, numpy
with loadspan.load("model"):
    array = numpy.memmap(path, numpy.uint8, "r")
    with loadspan.stage("convert"):
        numpy.copyto(numpy.empty_like(array), array)  # other threads run meanwhile, the one that samples too
"""


def rates(times: list[float], sizes: list[int]) -> list[float]:
    """Bytes per second of each three steps of a curve: the kernel lets through a tenth of a second at once."""
    points = list(zip(times, sizes, strict=True))[2:-2:3]
    return [(after - before) / (end - begin) for (begin, before), (end, after) in itertools.pairwise(points)]


@pytest.mark.parametrize(("filesystem", "how"), [("ext4", "buffered"), ("xfs", "buffered"), ("ext4", "mmap")])
def test_a_throttled_disk_is_waited_for_at_an_even_rate(tmp_path: Path, filesystem: str, how: str) -> None:
    on_disk(tmp_path)
    below = storage.of_file(str(tmp_path))
    assert below is not None
    with children.control_group("read") as group:
        program = READ if how == "buffered" else MAP
        (load,) = children.loads(program, tmp_path, group, filesystem, RATE, FLAT, setup=LOOP, inside=children.UNSHARE)
    found, read = load["attributes"], load["children"][0]["attributes"]
    loop = read["system.device"].removeprefix("/dev/")
    assert read["system.filesystem.type"] == filesystem
    assert (read["loadspan.storage.kind"], read["loadspan.storage.stack"]) == (below.kind, [*below.stack, loop])
    assert loop.startswith("loop")
    assert read["loadspan.read.method"] == how
    assert read["loadspan.cache.residency"] == found["loadspan.cache.residency"] == pytest.approx(0, abs=0.02)
    assert FLAT <= found["loadspan.io.storage_read"] < 1.1 * FLAT  # with some of the program's own files
    assert found["loadspan.disk.read"] == pytest.approx(FLAT, rel=0.02)
    # It takes as long as the throttle says, asleep, on a disk that has nothing to do.
    assert FLAT / load["duration"] == pytest.approx(RATE, rel=0.15)
    assert found["loadspan.blocked_time"] > 0.6 * load["duration"]
    assert found["loadspan.blocked_time"] + found["loadspan.run_queue_time"] > 0.9 * load["duration"]
    assert found["loadspan.disk.utilization"] < 0.3
    for curve in ("storage_read", f"disk.{loop}", *(("size",) if how == "buffered" else ())):
        even = rates(found["loadspan.curve.time"], found[f"loadspan.curve.{curve}"])
        assert len(even) >= 4
        assert even == [pytest.approx(RATE, rel=0.4)] * len(even), curve
    if how == "buffered":
        assert read["loadspan.cache.cold"] == pytest.approx(1, abs=0.01)
        assert read["loadspan.throughput"] == pytest.approx(RATE, rel=0.15)
        assert read["loadspan.blocked_time"] == pytest.approx(found["loadspan.blocked_time"], rel=0.1)
        assert found["loadspan.curve.read"][-1] == pytest.approx(FLAT, rel=0.01)
