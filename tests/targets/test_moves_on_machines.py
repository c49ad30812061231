"""
What a move says of the device, the link and the NUMA nodes, on recorded machines.

The accelerator is the fake one, and the links' files are text: this was not run on a GPU. Expected values are those of the drawings at
the head of `tests/machines/*.txt`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import machines
from loadspan.commands.demo import find_examples

HERE = Path(__file__).parent
NAMES = ("trained-down", "idle-link", "narrow-slot", "two-sockets", "vm-emulated", "container-no-pci")
LINK = ("generation", "width", "generation.max", "width.max", "bandwidth", "bandwidth.max", "degraded", "ends", "path")
COPY = ("count", "size.min", "size.median", "size.max")


@pytest.fixture(scope="module")
def moves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("machines")
    for name in NAMES:
        machines.unpack(name, folder / name)
    ran = subprocess.run(
        [sys.executable, "-W", "error", HERE / "on_machines.py", folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(find_examples()), str(HERE), str(HERE.parent)])},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def link(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name in LINK if (value := attributes.get(f"loadspan.link.{name}")) is not None}


@pytest.mark.parametrize("span", ["load", "to_device"])
def test_a_link_that_stayed_below_both_its_ends_while_bytes_moved_is_degraded(moves: dict[str, Any], span: str) -> None:
    assert link(moves["trained down"][span]) == {
        "generation": 4,
        "width": 4,
        "generation.max": 4,
        "width.max": 16,
        "bandwidth": pytest.approx(7.88e9, rel=0.001),
        "bandwidth.max": pytest.approx(31.5e9, rel=0.001),
        "degraded": True,
        "ends": "0000:00:01.1 0000:01:00.0",
        "path": ["0000:00:01.1 0000:01:00.0 Gen4 x4 of Gen4 x16"],
    }


@pytest.mark.parametrize("span", ["load", "to_device"])
def test_a_stage_that_the_program_declares_has_the_facts_of_its_device(moves: dict[str, Any], span: str) -> None:
    found = moves["declared"][span]
    assert (found["loadspan.device.name"], found["loadspan.device.index"]) == ("Fake 0", 0)
    assert link(found) == link(moves["trained down"][span])


def test_nothing_is_said_of_a_link_that_bytes_crossed_for_a_moment_only(moves: dict[str, Any]) -> None:
    found = link(moves["a moment"]["to_device"])
    assert found.keys() == {"generation.max", "width.max", "bandwidth.max", "ends", "path"}
    assert found["path"] == ["0000:00:01.1 0000:01:00.0 Gen4 x16"]


def test_a_link_that_rests_at_its_slowest_and_wakes_up_is_not_degraded(moves: dict[str, Any]) -> None:
    found = link(moves["idle"]["to_device"])
    assert (found["generation"], found["width"], found["degraded"]) == (5, 16, False)
    assert found["bandwidth"] == pytest.approx(63.02e9, rel=0.001)


def test_a_slot_of_eight_lanes_is_narrow_and_not_degraded(moves: dict[str, Any]) -> None:
    found = link(moves["narrow"]["to_device"])
    assert (found["generation"], found["width"], found["width.max"], found["degraded"]) == (4, 8, 8, False)


def test_more_bytes_than_the_link_could_carry_make_its_reading_a_wrong_one(moves: dict[str, Any]) -> None:
    assert link(moves["stale"]["to_device"]).keys() == {"generation.max", "width.max", "bandwidth.max", "ends", "path"}


def test_behind_an_emulated_port_nothing_is_judged(moves: dict[str, Any]) -> None:
    assert "degraded" not in link(moves["virtual"]["to_device"])
    assert "loadspan.device.numa_node" not in moves["virtual"]["to_device"]
    assert "loadspan.numa.relation" not in moves["virtual"]["to_device"]


def test_without_sysfs_the_device_keeps_its_name_and_nothing_else_happens(moves: dict[str, Any]) -> None:
    found = moves["no sysfs"]["to_device"]
    assert link(found) == {}
    assert (found["loadspan.device.name"], found["loadspan.device.memory"]) == ("Fake 0", 1 << 34)


def test_the_way_through_a_switch_is_told_hop_by_hop(moves: dict[str, Any]) -> None:
    assert link(moves["remote"]["load"])["path"] == [
        "0000:89:01.0 0000:8a:00.0 Gen5 x16 of Gen5 x16",
        "0000:8b:00.0 0000:8c:00.0 Gen5 x16 of Gen5 x16",
    ]


@pytest.mark.parametrize("span", ["load", "to_device"])
def test_the_current_device_is_that_of_the_thread_that_moves(moves: dict[str, Any], span: str) -> None:
    found = moves["current"][span]
    assert (found["loadspan.device.index"], found["loadspan.device.pci_address"]) == (0, "0000:18:00.0")
    assert link(found)["path"][-1].startswith("0000:17:00.0 0000:18:00.0 ")


# This machine's own CPUs are those of the thread: the recorded machine has CPUs 0-31 on node 0.
@pytest.mark.skipif(
    not os.sched_getaffinity(0) <= set(range(32)), reason="this process may use CPUs beyond the recorded machine's first node"
)
@pytest.mark.parametrize(("case", "relation", "node"), [("local", "local", 0), ("remote", "remote", 1)])
def test_a_thread_is_local_or_remote_by_the_cpus_it_may_use(moves: dict[str, Any], case: str, relation: str, node: int) -> None:
    for span in ("load", "to_device"):
        found = moves[case][span]
        assert (found["loadspan.numa.relation"], found["loadspan.device.numa_node"], found["loadspan.thread.numa_node"]) == (
            relation,
            node,
            0,
        )


def test_two_devices_of_one_load_are_told_how_they_lie_to_each_other(moves: dict[str, Any]) -> None:
    assert moves["two"]["load"]["loadspan.device.relations"] == ["0000:18:00.0 0000:8c:00.0 SYS"]


def test_copies_are_counted_and_sized(moves: dict[str, Any]) -> None:
    found = moves["idle"]["to_device"]
    assert [found[f"loadspan.copy.{name}"] for name in COPY] == [10, 80_000_000, 80_000_000, 80_000_000]
