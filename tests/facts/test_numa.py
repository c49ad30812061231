"""NUMA nodes of recorded machines, and of this one."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import machines
from loadspan.facts import numa, pci
from loadspan.facts.tree import HERE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadspan.facts.tree import Tree

    Machine = Callable[[str], Tree]


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        (b"0-3,8\n", {0, 1, 2, 3, 8}),
        (b"0\n", {0}),
        (b"0-1, 4", {0, 1, 4}),
        (b"\n", set()),
        (b"16383\n", {16383}),
        (b"", None),
        (b"3-1\n", None),
        (b"0-3,2\n", None),
        (b"-1\n", None),
        (b"0-\n", None),
        (b"0,,1\n", None),
        (b"0-999999999\n", None),
        (b"0-99999\n", None),
        (b"16384\n", None),
        (b"\xff\xfe\n", None),
        (b"1" * 100000, None),
        (b"0-16383," * 16000, None),
        (b"0," * 100000, None),
    ],
)
def test_a_list_of_cpus_is_read_and_a_wild_one_is_none(text: bytes, cpus: set[int] | None) -> None:
    started = time.perf_counter()
    assert numa.parse_cpulist(text) == (None if cpus is None else frozenset(cpus))
    assert time.perf_counter() - started < 1


@given(st.binary(max_size=200) | st.text("0123456789-, \n", max_size=60).map(str.encode))
def test_no_text_breaks_the_list_of_cpus(text: bytes) -> None:
    cpus = numa.parse_cpulist(text)
    assert cpus is None or all(0 <= cpu < 16384 for cpu in cpus)


@pytest.mark.parametrize(("cpus", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 8), "0-2,8"), ((1, 3, 4), "1,3-4")])
def test_cpus_are_written_as_the_kernel_writes_them(cpus: tuple[int, ...], text: str) -> None:
    assert numa.cpulist(frozenset(cpus)) == text


@given(st.frozensets(st.integers(0, 300)))
def test_a_list_that_names_every_cpu_is_read_back(cpus: frozenset[int]) -> None:
    assert numa.parse_cpulist(",".join(map(str, sorted(cpus))).encode() + b"\n") == cpus


def test_nodes_have_the_cpus_of_the_drawing(machine: Machine) -> None:
    assert numa.nodes(machine("two-sockets")) == {0: frozenset(range(32)), 1: frozenset(range(32, 64))}
    assert numa.nodes(machine("gh200")) == {0: frozenset(range(72)), 1: frozenset()}
    assert numa.distances(machine("instinct")) == {0: {0: 10, 1: 32}, 1: {0: 32, 1: 10}}
    assert numa.distances(machine("gh200")) == {0: {0: 10, 1: 80}, 1: {0: 80, 1: 10}}


def test_a_machine_is_of_one_node_where_one_node_has_all_cpus(machine: Machine) -> None:
    names = ("desktop", "gh200", "two-sockets", "container-no-pci")
    assert [numa.single(machine(name)) for name in names] == [True, True, False, False]


SPARSE = """
# a POWER9: GPU memory as nodes 252 and 255, listed by name before node 8
sys/devices/system/node/node0/cpulist = 0-79
sys/devices/system/node/node0/distance = 10 40 80 80
sys/devices/system/node/node8/cpulist = 80-159
sys/devices/system/node/node8/distance = 40 10 80 80
sys/devices/system/node/node252/cpulist =
sys/devices/system/node/node252/distance = 80 80 10 80
sys/devices/system/node/node255/cpulist =
sys/devices/system/node/node255/distance = 80 80 80
sys/devices/system/node/node99999/cpulist = 0
sys/devices/system/node/has_cpu = 0,8
"""


def test_numbers_of_nodes_may_have_gaps_and_a_row_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    tree = machines.unpack_text(SPARSE, tmp_path)
    assert list(numa.nodes(tree)) == [0, 8, 252, 255]
    assert numa.distances(tree) == {
        0: {0: 10, 8: 40, 252: 80, 255: 80},
        8: {0: 40, 8: 10, 252: 80, 255: 80},
        252: {0: 80, 8: 80, 252: 10, 255: 80},
    }
    assert not numa.single(tree)


def test_a_node_whose_cpus_cannot_be_read_is_left_out_and_the_machine_is_not_of_one_node(tmp_path: Path) -> None:
    text = "sys/devices/system/node/node0/cpulist = 0-3\nsys/devices/system/node/node1/cpulist = broken\n"
    tree = machines.unpack_text(text, tmp_path)
    assert numa.nodes(tree) == {0: frozenset(range(4))}
    assert not numa.single(tree)


def test_a_cpu_and_an_affinity_are_of_the_node_that_has_them_whole() -> None:
    nodes = {0: frozenset(range(4)), 1: frozenset(range(4, 8)), 2: frozenset[int]()}
    assert [numa.node_of_cpu(cpu, nodes) for cpu in (0, 5, 9)] == [0, 1, None]
    affinities = ({1, 2}, {4, 5, 6, 7}, {3, 4}, {9}, set[int]())
    assert [numa.node_of_affinity(frozenset(cpus), nodes) for cpus in affinities] == [0, 1, None, None, None]
    assert numa.node_of_affinity(None, nodes) is None
    assert numa.node_of_cpu(0, {0: frozenset({0}), 1: frozenset({0})}) is None


def test_a_thread_is_local_where_it_always_runs_near_and_remote_where_it_never_does(machine: Machine) -> None:
    device = pci.local_cpus(machine("two-sockets"), "0000:bd:00.0")
    threads = [frozenset({40}), frozenset({3, 4}), frozenset({31, 32}), frozenset[int](), None]
    assert [numa.relation(cpus, device) for cpus in threads] == ["local", "remote", None, None, None]


def test_a_thread_is_neither_where_the_device_has_no_node_or_its_node_no_cpu(machine: Machine, tmp_path: Path) -> None:
    every = frozenset(range(16))
    assert numa.relation(every, pci.local_cpus(machine("desktop"), "0000:01:00.0")) is None
    assert numa.relation(every, pci.local_cpus(machine("numa-unknown"), "0000:41:00.0")) is None
    assert numa.relation(every, pci.local_cpus(machine("gh200"), "0009:01:00.0")) == "local"
    tree = machine("gh200")
    machines.unpack_text("sys/devices/pci0009:00/0009:00:00.0/0009:01:00.0/local_cpulist =", tmp_path / "machines" / "gh200")
    assert numa.relation(every, pci.local_cpus(tree, "0009:01:00.0")) is None


def test_a_recorded_machine_answers_no_system_call(machine: Machine) -> None:
    tree = machine("desktop")
    assert (numa.affinity(tree), numa.node_of_thread(tree)) == (None, None)


linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is Linux's")


@linux
def test_on_this_machine_a_thread_runs_on_a_node_that_has_one_of_its_cpus() -> None:
    nodes, cpus = numa.nodes(HERE), numa.affinity()
    assert cpus == frozenset(os.sched_getaffinity(0))
    node = numa.node_of_thread()
    if not nodes or node is None:
        pytest.skip("this kernel does not tell nodes")
    assert cpus
    assert cpus & nodes[node]
    assert {numa.node_of_cpu(cpu, nodes) for cpu in cpus} <= set(nodes)
    if numa.single():
        assert numa.node_of_affinity(cpus, nodes) == node
    assert all(row[other] == 10 for other, row in numa.distances().items())


@linux
def test_pages_in_memory_are_on_a_node_and_pages_never_touched_on_none() -> None:
    size = 64 * mmap.PAGESIZE
    with mmap.mmap(-1, size) as memory:
        anchor = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(anchor)
        untouched = numa.node_of_pages(address, size)
        memory[:] = b"x" * size
        found = numa.node_of_pages(address, size)
        one = numa.node_of_pages(address + 5, 1)
        every = numa.node_of_pages(address, size, 10**9)
        del anchor
    if found is None:
        pytest.skip("this kernel does not tell the node of a page")
    assert untouched is None
    assert sum(found.values()) == 16
    assert one is not None
    assert sum(one.values()) == 1
    assert every is not None
    assert sum(every.values()) == 64
    assert set(found) <= set(numa.numbers()) or not numa.numbers()


@pytest.mark.parametrize(("address", "size"), [(0, 10), (-4096, 10), (4096, 0), (4096, -1), (1 << 63, 1), (1 << 62, 1 << 20), (1, 1)])
def test_a_place_that_is_no_memory_has_no_node(address: int, size: int) -> None:
    assert numa.node_of_pages(address, size) is None
