"""Limits, refaults, pressure and swap, of recorded machines of every shape of control groups and of this one."""

from __future__ import annotations

import os
import random
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadspan.facts import cgroups, counters, memory
from loadspan.facts.memory import Memory, MemoryFacts
from loadspan.facts.resident import PAGE
from loadspan.facts.tree import Tree
from machines import unpack_text

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30

HOST = """
proc/meminfo = MemTotal:       16777216 kB\\nMemFree:         1048576 kB\\nMemAvailable:    8388608 kB\\nSwapTotal:       2097152 kB
proc/vmstat = nr_free_pages 1234\\nworkingset_refault_anon 7\\nworkingset_refault_file 70\\npswpin 5\\npswpout 6\\nzswpin 99
proc/pressure/memory = some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9
proc/pressure/io = some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9
proc/self/status = Name:\\x09python\\nVmRSS:\\x09 2048 kB\\nVmSwap:\\x09     512 kB\\nThreads:\\x091
"""
HOST_SAYS = {"swapped": 512 << 10, "total": 16 * GIB, "available": 8 * GIB}
HOST_PRESSURE = {"memory_pressure": 1.5, "io_pressure": 2.5, "pressure_scope": "host"}
HOST_SWAP = {"swapped_in": 5 * PAGE, "swapped_out": 6 * PAGE, "swap_scope": "host"}

# machine > fast.slice (at most 4 GiB) > model.service (at most 8 GiB, slowed above 3 GiB) > the process
SERVICE = """
proc/self/cgroup = 0::/fast.slice/model.service
proc/self/mountinfo = 22 1 254:0 / / rw - ext4 /dev/vda rw\\n30 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
sys/fs/cgroup/cgroup.procs =
sys/fs/cgroup/fast.slice/cgroup.procs =
sys/fs/cgroup/fast.slice/memory.max = 4294967296
sys/fs/cgroup/fast.slice/memory.high = max
sys/fs/cgroup/fast.slice/memory.current = 2147483648
sys/fs/cgroup/fast.slice/memory.events = low 0\\nhigh 3\\nmax 40\\noom 1\\noom_kill 1\\noom_group_kill 0
sys/fs/cgroup/fast.slice/model.service/cgroup.procs =
sys/fs/cgroup/fast.slice/model.service/cgroup.type = domain
sys/fs/cgroup/fast.slice/model.service/memory.max = 8589934592
sys/fs/cgroup/fast.slice/model.service/memory.high = 3221225472
sys/fs/cgroup/fast.slice/model.service/memory.current = 1073741824
sys/fs/cgroup/fast.slice/model.service/memory.events = low 0\\nhigh 0\\nmax 0\\noom 0\\noom_kill 0
sys/fs/cgroup/fast.slice/model.service/memory.stat = anon 5\\nworkingset_refault_anon 1\\nworkingset_refault_file 11\\npswpin 2\\npswpout 3
sys/fs/cgroup/fast.slice/model.service/memory.pressure = some avg10=0.00 avg60=0.00 avg300=0.00 total=250000
sys/fs/cgroup/fast.slice/model.service/io.pressure = some avg10=0.00 avg60=0.00 avg300=0.00 total=750000
"""

# Version 1 for memory, an empty version 2 beside it: the process is in a group of the first and in the root of the second.
HYBRID = """
proc/self/cgroup = 9:name=systemd:/\\n4:cpu,memory:/jobs/1:2\\n0::/
proc/self/mountinfo = 35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 c
sys/fs/cgroup/unified/cgroup.procs =
sys/fs/cgroup/unified/memory.pressure = some avg10=0.00 avg60=0.00 avg300=0.00 total=77
sys/fs/cgroup/memory/cgroup.procs =
sys/fs/cgroup/memory/memory.limit_in_bytes = 9223372036854771712
sys/fs/cgroup/memory/jobs/cgroup.procs =
sys/fs/cgroup/memory/jobs/memory.limit_in_bytes = 9223372036854771712
sys/fs/cgroup/memory/jobs/1:2/cgroup.procs =
sys/fs/cgroup/memory/jobs/1:2/memory.limit_in_bytes = 419430400
sys/fs/cgroup/memory/jobs/1:2/memory.usage_in_bytes = 400000000
sys/fs/cgroup/memory/jobs/1:2/memory.failcnt = 1048
sys/fs/cgroup/memory/jobs/1:2/memory.oom_control = oom_kill_disable 0\\nunder_oom 0\\noom_kill 2
sys/fs/cgroup/memory/jobs/1:2/memory.stat = cache 9\\nworkingset_refault_file 21\\ntotal_workingset_refault_file 99
"""

# A container with a namespace of its own: its group is the root of what it sees.
CONTAINER = """
proc/self/cgroup = 0::/
proc/self/mountinfo = 600 590 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate
sys/fs/cgroup/cgroup.procs =
sys/fs/cgroup/cgroup.type = domain
sys/fs/cgroup/memory.max = 2147483648
sys/fs/cgroup/memory.high = max
sys/fs/cgroup/memory.current = 1000
sys/fs/cgroup/memory.events = low 0\\nhigh 2\\nmax 5\\noom 0\\noom_kill 0
sys/fs/cgroup/memory.stat = workingset_refault_file 3
sys/fs/cgroup/memory.pressure = some avg10=0.00 avg60=0.00 avg300=0.00 total=1000
"""

# A container without: it sees its group at the mount, while its path is that of the host.
OLD_CONTAINER = """
proc/self/cgroup = 4:memory:/docker/abc
proc/self/mountinfo = 700 690 0:32 /docker/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory
sys/fs/cgroup/memory/cgroup.procs =
sys/fs/cgroup/memory/memory.limit_in_bytes = 9223372036854771712
sys/fs/cgroup/memory/memory.usage_in_bytes = 123456
sys/fs/cgroup/memory/memory.failcnt = 0
sys/fs/cgroup/memory/memory.stat = workingset_refault_file 0\\nhierarchical_memory_limit 1073741824
"""


def said(text: str, folder: Path) -> dict[str, object]:
    """What a reading of the machine written in *text* says: all fields that are known."""
    found = memory.read(unpack_text(text, folder))
    names = Memory.__dataclass_fields__
    return {name: value for name in names if name != "at" and (value := getattr(found, name)) is not None}


def test_the_tightest_limit_around_a_service_counts_and_its_group_is_asked(tmp_path: Path) -> None:
    assert said(HOST + SERVICE, tmp_path) == {
        **HOST_SAYS,
        "group": "sys/fs/cgroup/fast.slice/model.service",
        "limit": 4 * GIB,
        "high": 3 * GIB,
        "usage": 2 * GIB,
        "hits": 43,
        "killed": 1,
        "refaulted": 11 * PAGE,
        "refaulted_scope": "cgroup",
        "memory_pressure": 0.25,
        "io_pressure": 0.75,
        "pressure_scope": "cgroup",
        "swapped_in": 2 * PAGE,
        "swapped_out": 3 * PAGE,
        "swap_scope": "cgroup",
    }


def test_version_1_beside_an_empty_version_2_has_the_limit_while_pressure_is_the_hosts(tmp_path: Path) -> None:
    assert said(HOST + HYBRID, tmp_path) == {
        **HOST_SAYS,
        **HOST_PRESSURE,
        **HOST_SWAP,
        "group": "sys/fs/cgroup/memory/jobs/1:2",
        "limit": 400 << 20,
        "usage": 400_000_000,
        "hits": 1048,
        "killed": 2,
        "refaulted": 21 * PAGE,
        "refaulted_scope": "cgroup",
    }


def test_a_container_reads_its_group_at_its_root(tmp_path: Path) -> None:
    assert said(HOST + CONTAINER, tmp_path) == {
        **HOST_SAYS,
        **HOST_SWAP,
        "group": "sys/fs/cgroup",
        "limit": 2 * GIB,
        "usage": 1000,
        "hits": 7,
        "killed": 0,
        "refaulted": 3 * PAGE,
        "refaulted_scope": "cgroup",
        "memory_pressure": 0.001,
        "pressure_scope": "cgroup",
    }


def test_a_limit_around_what_a_container_sees_is_told_by_version_1(tmp_path: Path) -> None:
    found = said(HOST + OLD_CONTAINER, tmp_path)
    assert (found["group"], found["limit"], found["hits"]) == ("sys/fs/cgroup/memory", GIB, 0)
    assert "killed" not in found


@pytest.mark.parametrize("path", ["/kubepods/pod1/gone", "/../other", "/" + "deep/" * 1000])
def test_a_path_that_is_not_there_is_what_the_mount_shows(path: str, tmp_path: Path) -> None:
    found = said(HOST + CONTAINER.replace("= 0::/", f"= 0::{path}"), tmp_path)
    assert (found["group"], found["limit"]) == ("sys/fs/cgroup", 2 * GIB)


def test_max_is_no_limit_and_the_process_s_own_group_is_asked(tmp_path: Path) -> None:
    found = said(HOST + SERVICE.replace("4294967296", "max").replace("8589934592", "max"), tmp_path)
    assert "limit" not in found
    assert (found["usage"], found["hits"]) == (GIB, 0)


def test_without_control_groups_the_machine_is_told(tmp_path: Path) -> None:
    host = {**HOST_SAYS, **HOST_PRESSURE, **HOST_SWAP, "refaulted": 70 * PAGE, "refaulted_scope": "host"}
    assert said(HOST + "proc/self/cgroup = 4:memory:/\\n0::/", tmp_path) == host


def test_without_swap_and_pressure_nothing_is_said_of_them(tmp_path: Path) -> None:
    lines = [line for line in HOST.splitlines() if "pressure" not in line]
    found = said("\n".join(lines).replace("SwapTotal:       2097152", "SwapTotal:       0") + CONTAINER, tmp_path)
    assert "io_pressure" not in found
    assert found["pressure_scope"] == "cgroup"
    assert "swap_scope" not in found
    assert "swapped_in" not in found


def test_nothing_is_known_of_an_empty_machine(tmp_path: Path) -> None:
    assert said("", tmp_path) == {}


def test_the_root_of_version_2_is_the_machine(tmp_path: Path) -> None:
    found = said(HOST + "\n".join(line for line in CONTAINER.splitlines() if "cgroup.type" not in line), tmp_path)
    assert found["pressure_scope"] == "host"
    assert found["memory_pressure"] == 1.5


def test_another_process_is_in_its_own_group(tmp_path: Path) -> None:
    text = """
proc/7/cgroup = 0::/fast.slice
proc/7/status = VmSwap:\\x09       1 kB
sys/fs/cgroup/fast.slice/memory.stat = workingset_refault_file 1
"""
    found = memory.read(unpack_text(HOST + SERVICE + text, tmp_path), 7)
    assert (found.group, found.swapped, found.refaulted) == ("sys/fs/cgroup/fast.slice", 1 << 10, PAGE)


# Differences

BEFORE = Memory(
    at=0,
    group="g",
    limit=100,
    hits=5,
    killed=0,
    refaulted=10,
    refaulted_scope="cgroup",
    memory_pressure=1.0,
    io_pressure=2.0,
    pressure_scope="host",
    swapped_in=0,
    swapped_out=1,
    swap_scope="host",
)


def test_what_happened_is_what_the_counters_grew_by() -> None:
    after = replace(BEFORE, limit=90, hits=8, killed=1, refaulted=110, memory_pressure=1.1, io_pressure=2.25, swapped_in=4096)
    assert memory.difference(BEFORE, after) == MemoryFacts(90, 3, 1, 100, "cgroup", 0.1, 0.25, "host", 4096, 0, "host")


def test_a_process_that_was_moved_has_no_differences_of_its_group() -> None:
    facts = memory.difference(BEFORE, replace(BEFORE, group="other", refaulted=50, hits=9))
    assert facts == MemoryFacts(
        limit=100, memory_pressure=0.0, io_pressure=0.0, pressure_scope="host", swapped_in=0, swapped_out=0, swap_scope="host"
    )


def test_counters_that_began_anew_or_are_another_scopes_say_nothing() -> None:
    facts = memory.difference(BEFORE, replace(BEFORE, hits=1, refaulted=3, pressure_scope="cgroup", swap_scope=None, swapped_in=None))
    assert facts == MemoryFacts(limit=100, killed=0, refaulted_scope="cgroup")


# This machine


def test_this_machine_is_read_alike_through_kept_files_and_anew() -> None:
    kept, anew = memory.read(), memory.read(Tree())
    assert (kept.group, kept.limit, kept.high, kept.total, kept.pressure_scope) == (
        anew.group,
        anew.limit,
        anew.high,
        anew.total,
        anew.pressure_scope,
    )
    assert kept.total is not None
    assert 0 < (kept.available or 0) <= kept.total
    assert memory.read(pid=os.getpid()).group == kept.group


def test_readings_grow_and_leave_no_descriptors() -> None:
    first = memory.read()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a folder of the kernel
    readings = [memory.read() for _ in range(100)]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above
    assert [reading.at for reading in readings] == sorted(reading.at for reading in readings)
    facts = memory.difference(first, readings[-1])
    assert all(
        value is None or isinstance(value, str) or value >= 0
        for value in (getattr(facts, name) for name in MemoryFacts.__dataclass_fields__)
    )


def test_what_is_read_here_is_not_said_to_be_the_hosts() -> None:
    memory.read()
    before = counters.of_process()
    for _ in range(10):
        memory.read()
    assert counters.difference(before, counters.of_process()).read == 0


def test_many_threads_read_at_once() -> None:
    memory._lives.clear()  # noqa: SLF001 - the first reading, many times
    found: list[Memory] = []
    threads = [threading.Thread(target=lambda: found.append(memory.read())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({reading.group for reading in found}) == 1
    assert len(found) == 8


# Hostile content


@given(st.binary(max_size=400))
def test_no_text_breaks_a_parser(text: bytes) -> None:
    for parse in (memory.parse_limit, memory.parse_stat, memory.parse_hits, memory.parse_pressure, cgroups.paths):
        parse(text)


@given(st.binary(max_size=300) | st.text(st.sampled_from("MemTotal: 0123456789kB\n-_\u0663"), max_size=80).map(str.encode))
def test_no_content_makes_a_wild_number_of_bytes(text: bytes) -> None:
    assert all(0 <= size < 1 << 63 for size in memory.parse_kib(text, "MemTotal").values())


@pytest.mark.parametrize(
    "number", [b"-1", b"1e9", b"0x10", b"1_000", b"99999999999999999999", b"9" * 5000, "\u0661".encode(), b"", b"max", b" "]
)
def test_what_is_no_number_of_the_kernel_is_unknown(number: bytes) -> None:
    assert memory.parse_limit(number) is None
    assert memory.parse_stat(b"pswpin " + number + b"\nworkingset_refault_file " + number) == {}
    assert memory.parse_hits(b"max " + number + b"\n") == (None, None)
    assert memory.parse_kib(b"MemTotal: " + number + b" kB", "MemTotal") == {}
    assert memory.parse_pressure(b"some avg10=0.00 total=" + number) is None


def test_numbers_that_no_machine_has_are_unknown(tmp_path: Path) -> None:
    found = said("proc/vmstat = workingset_refault_file 9223372036854775807\nproc/meminfo = MemTotal: 9223372036854775807 kB", tmp_path)
    assert found == {"refaulted_scope": "host"}


@pytest.mark.parametrize("seed", range(40))
def test_no_corruption_of_a_machine_breaks_its_reading(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)  # noqa: S311 - the same each time
    unpack_text(HOST + chance.choice((SERVICE, HYBRID, CONTAINER, OLD_CONTAINER)), tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        text = path.read_bytes()
        kind = chance.randrange(6)
        if kind == 0:
            text = text[: chance.randrange(len(text) + 1)]
        elif kind == 1:
            text = chance.randbytes(200)
        elif kind == 2:
            text = text.replace(b"1", b"9" * chance.choice((1, 30, 5000)))
        elif kind == 3:
            text = text.replace(b" ", chance.choice((b"", b"  ", b"\0", b"\xff", b"\n")))
        elif kind == 4:
            path.unlink()
            path.symlink_to(chance.choice(("/etc/passwd", path.name, "..", "/")))
            continue
        path.write_bytes(text)
    found = memory.read(Tree(str(tmp_path)))
    for name in Memory.__dataclass_fields__:
        value = getattr(found, name)
        assert value is None or isinstance(value, str) or 0 <= value < 1 << 63
