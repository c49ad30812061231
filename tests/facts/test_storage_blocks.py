"""Counters of block devices, and how far down a chain is followed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadspan.facts import blocks, storage
from loadspan.facts.blocks import BlockCounters
from machines import unpack, unpack_text

if TYPE_CHECKING:
    from pathlib import Path


def at(seconds: float, reads: int = 0, size: int = 0, reading: int = 0, busy: int = 0, queued: int = 0) -> BlockCounters:
    return BlockCounters(int(seconds * 1e9), reads, size, reading, busy, queued)


def test_columns_of_a_stat_file_have_their_meaning() -> None:
    #        reads merged sectors ms  writes m s ms in-flight io_ticks queue
    text = b"  100 7 2048 50 10 0 80 5 3 70 60 0 0 0 0 0 0\n"
    assert blocks.parse_stat(text, 5) == BlockCounters(5, reads=100, size=1 << 20, reading=50, busy=70, queued=60)


@pytest.mark.parametrize(
    "text",
    [b"", b"1 2 3", b"a " * 11, b"-1 0 0 0 0 0 0 0 0 0 0", b"9" * 21 + b" 0" * 10, b"\xff" * 40, b"99999999999999999999" + b" 0" * 10],
)
def test_a_text_that_is_no_stat_file_has_no_counters(text: bytes) -> None:
    assert blocks.parse_stat(text) is None


def test_counters_of_a_recorded_device_and_its_partition(tmp_path: Path) -> None:
    tree = unpack("storage-nvme", tmp_path)
    disk, partition = blocks.counters("259:0", tree), blocks.counters("259:2", tree)
    assert disk is not None
    assert partition is not None
    assert (disk.reads, disk.size, partition.reads, partition.size) == (100, 1 << 20, 90, 1024000)
    assert blocks.counters("259:1", tree) is None
    assert blocks.counters("../../etc", tree) is None
    assert blocks.BlockDevice("0:0").read() is None
    assert blocks.BlockDevice("../x").read() is None


def test_two_readings_tell_what_the_device_did() -> None:
    # One second: 100 reads of 1 MB, 5 ms each, four at once for half of the time.
    use = blocks.difference(at(10, 1000, 5000, 70, 30, 90), at(11, 1100, 100_005_000, 570, 530, 2090))
    assert use is not None
    assert (use.seconds, use.size, use.reads, use.throughput) == (1.0, 100_000_000, 100, 100e6)
    assert (use.utilization, use.wait, use.queue) == (0.5, 0.005, 2.0)


def test_an_idle_device_has_no_wait() -> None:
    use = blocks.difference(at(1), at(2))
    assert use is not None
    assert (use.size, use.utilization, use.wait, use.queue) == (0, 0.0, None, 0.0)


def test_milliseconds_may_begin_again() -> None:
    end = (1 << 32) - 100
    use = blocks.difference(at(1, 0, 0, end, end, end), at(2, 10, 100, 100, 100, 100))
    assert use is not None
    assert (use.utilization, use.wait) == (0.2, 0.02)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, at(2)),
        (at(1), None),
        (at(2), at(1)),
        (at(1), at(1)),
        (at(1, reads=5), at(2, reads=4)),
        (at(1, size=5), at(2, size=4)),
        (at(1, busy=5000), at(2, busy=0)),
        (at(1, reading=500), at(2, reading=0)),
    ],
)
def test_readings_that_do_not_belong_together_tell_nothing(before: BlockCounters | None, after: BlockCounters | None) -> None:
    assert blocks.difference(before, after) is None


def tower(levels: int) -> str:
    """A machine with dm-0 on dm-1 on dm-2 and so on."""
    lines = ["proc/self/mountinfo = 1 0 253:0 / / rw - ext4 /dev/dm-0 rw", "sys/dev/block/253:0 -> ../../devices/virtual/block/dm-0"]
    for level in range(levels):
        lines.append(f"sys/devices/virtual/block/dm-{level}/dm/name = d{level}")
        lines.append(f"sys/devices/virtual/block/dm-{level}/slaves/dm-{level + 1} -> ../../dm-{level + 1}")
    return "\n".join([*lines, f"sys/devices/virtual/block/dm-{levels}/dm/name = d{levels}"])


def test_eight_levels_are_followed_and_no_more(tmp_path: Path) -> None:
    low, high = (storage.of_file("/x", unpack_text(tower(levels), tmp_path / str(levels))) for levels in (7, 100))
    assert low is not None
    assert high is not None
    assert (low.stack, low.kind) == (tuple(f"d{level}" for level in range(7, -1, -1)), "virtual")
    assert (len(high.stack), high.stack[-1], high.kind, high.disks) == (9, "d0", None, ())


def test_a_ring_of_devices_ends(tmp_path: Path) -> None:
    text = tower(3) + "\nsys/devices/virtual/block/dm-3/slaves/dm-0 -> ../../dm-0"
    facts = storage.of_file("/x", unpack_text(text, tmp_path))
    assert facts is not None
    assert (facts.stack, facts.kind) == (("d3", "d2", "d1", "d0"), None)
