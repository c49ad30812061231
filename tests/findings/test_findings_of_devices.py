"""Link, NUMA node, CPU, time in no stage; what short, inner and unfinished loads say; the order of several findings."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from advised import GB, ids, load, only, without

from loadspan import findings, names

TO_DEVICE, OTHER = names.partition(names.TO_DEVICE), names.partition(names.OTHER)
LINK = {
    names.LINK_DEGRADED: True,
    names.LINK_GENERATION: 4,
    names.LINK_WIDTH: 4,
    names.LINK_GENERATION_MAX: 4,
    names.LINK_WIDTH_MAX: 16,
    names.LINK_BANDWIDTH: 7.877e9,
    names.LINK_BANDWIDTH_MAX: 31.508e9,
    names.LINK_ENDS: "0000:00:01.0 0000:01:00.0",
    TO_DEVICE: 4.0,
}
REMOTE = {names.NUMA_RELATION: "remote", names.DEVICE_NUMA_NODE: 1, names.THREAD_NUMA_NODE: 0, TO_DEVICE: 4.0}
WAITED = {names.RUN_QUEUE_TIME: 1.5}
UNKNOWN = {names.COVERAGE: 0.69, OTHER: 3.1, names.OTHER_FRAMES: ("build_unet (unet.py:311) 80 %", "warm (serve.py:12) 15 %")}


def test_a_degraded_link_is_told_with_what_it_ran_at_and_what_it_can() -> None:
    finding = only(LINK)
    assert finding.sentence == (
        "Check the slot, riser, cable and firmware settings of the device: the PCIe link between 0000:00:01.0 and 0000:01:00.0 "
        "ran at Gen4 x4 while bytes moved, where both ends support Gen4 x16: 7.88 GB/s instead of 31.5 GB/s; "
        "to_device took 4.00 s of 10.0 s."
    )
    assert (finding.id, finding.severity, finding.seconds) == ("link-degraded", "major", 4.0)


def test_a_degraded_link_of_which_no_more_is_known_is_told_as_that() -> None:
    finding = only({names.LINK_DEGRADED: True})
    assert finding.sentence == (
        "Check the slot, riser, cable and firmware settings of the device: its PCIe link ran below what both ends support."
    )
    assert (finding.severity, finding.seconds, finding.evidence) == ("notice", None, ((names.LINK_DEGRADED, True),))


@pytest.mark.parametrize("degraded", [False, 1, "true", None])
def test_a_link_that_was_not_found_degraded_is_not_told(degraded: object) -> None:
    assert ids(LINK | {names.LINK_DEGRADED: degraded}) == []
    assert ids(without(LINK, names.LINK_DEGRADED)) == []


def test_a_remote_numa_node_is_told_with_both_nodes() -> None:
    finding = only(REMOTE)
    assert finding.sentence == (
        "Load on the CPUs of NUMA node 1 (numactl --cpunodebind=1 --preferred=1): the device is attached to node 1, "
        "the loading thread may only use CPUs of node 0, and to_device took 4.00 s of 10.0 s."
    )
    assert (finding.id, finding.severity, finding.seconds) == ("numa-remote", "notice", None)


def test_a_remote_numa_node_without_numbers_is_told_without_them() -> None:
    assert only({names.NUMA_RELATION: "remote", TO_DEVICE: 4.0}).sentence == (
        "Load on CPUs near the device: the loading thread may only use CPUs of another NUMA node, and to_device took 4.00 s of 10.0 s."
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [({TO_DEVICE: 1.0}, True), ({TO_DEVICE: 0.99}, False), ({names.NUMA_RELATION: "local"}, False), ({names.NUMA_RELATION: 1}, False)],
)
def test_a_remote_numa_node_matters_where_much_went_to_the_device(changed: dict[str, Any], told: bool) -> None:  # noqa: FBT001 - a column
    assert ids(REMOTE | changed) == (["numa-remote"] if told else [])


def test_waiting_for_a_cpu_is_told() -> None:
    finding = only(WAITED)
    assert finding.sentence == (
        "Give the process more CPU time, with a higher CPU limit or less other work on its CPUs: "
        "the loading thread was ready to run and waited 1.50 s of 10.0 s for a CPU."
    )
    assert (finding.id, finding.severity, finding.seconds) == ("cpu-wait", "minor", 1.5)
    assert ids({names.RUN_QUEUE_TIME: 1.0}) == ["cpu-wait"]
    assert ids({names.RUN_QUEUE_TIME: 0.99}) == []


def test_time_in_no_stage_is_told_with_what_ran_there() -> None:
    finding = only(UNKNOWN)
    assert finding.sentence == (
        "Wrap what ran in no stage with loadspan.stage: 3.10 s of 10.0 s were in none; "
        "what ran there: build_unet (unet.py:311) 80 %, warm (serve.py:12) 15 %."
    )
    assert (finding.id, finding.severity, finding.seconds) == ("unexplained", "major", 3.1)
    assert only(without(UNKNOWN, names.OTHER_FRAMES)).sentence == (
        "Wrap what ran in no stage with loadspan.stage: 3.10 s of 10.0 s were in none."
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [({names.COVERAGE: 0.899}, True), ({names.COVERAGE: 0.9}, False), ({OTHER: 1.001}, True), ({OTHER: 1.0}, False)],
)
def test_time_in_no_stage_is_told_from_a_tenth_and_a_second(changed: dict[str, Any], told: bool) -> None:  # noqa: FBT001 - a column
    assert ids(UNKNOWN | changed) == (["unexplained"] if told else [])


@pytest.mark.parametrize(
    ("attributes", "needed"),
    [
        (REMOTE, [names.NUMA_RELATION, TO_DEVICE]),
        (WAITED, [names.RUN_QUEUE_TIME]),
        (UNKNOWN, [names.COVERAGE, OTHER]),
    ],
)
def test_without_one_of_its_facts_nothing_is_told(attributes: dict[str, Any], needed: list[str]) -> None:
    assert [ids(without(attributes, name)) for name in needed] == [[]] * len(needed)


EVERYTHING = {
    **LINK,
    **REMOTE,
    **WAITED,
    **UNKNOWN,
    names.CACHE_MISS_TIME: 2.0,
    names.CACHE_RESIDENCY: 0.0,
    names.IO_STORAGE_READ: 20 * GB,
    names.SIZE: 20 * GB,
    names.BLOCKED_TIME: 6.0,
    names.MEMORY_LIMIT: 16 * GB,
    names.MEMORY_LIMIT_HITS: 9,
    names.CACHE_EVICTED: 0.5,
    names.MEMORY_PRESSURE_TIME: 2.0,
    names.PRESSURE_SCOPE: "cgroup",
    names.SWAP_IN: 2 * GB,
}


def test_the_most_seconds_come_first_and_those_without_last() -> None:
    found = findings.find(load(EVERYTHING))
    assert [(finding.id, finding.severity) for finding in found] == [
        ("cache-cold", "major"),
        ("link-degraded", "major"),
        ("unexplained", "major"),
        ("cache-missed", "minor"),
        ("memory-limit", "minor"),
        ("cpu-wait", "minor"),
        ("numa-remote", "notice"),
        ("cache-evicted", "notice"),
        ("swap", "notice"),
    ]
    assert {finding.id for finding in found} == {rule.id for rule in findings.RULES}


def test_a_load_of_less_than_a_second_tells_only_of_its_link() -> None:
    assert ids(EVERYTHING, 0.999) == ["link-degraded"]
    assert len(ids(EVERYTHING, 1.0)) > 1


def test_a_load_inside_another_one_that_stands_for_many_and_one_that_never_ended_tell_nothing() -> None:
    assert ids(EVERYTHING | {names.INNER: True}) == []
    assert ids(EVERYTHING | {names.FOLDED: 20}) == []
    assert findings.find(dataclasses.replace(load(EVERYTHING), end=None)) == []
    assert ids(EVERYTHING, 0.0) == []
    assert ids(EVERYTHING, -1.0) == []


def test_a_healthy_load_tells_nothing() -> None:
    healthy = {
        names.LINK_DEGRADED: False,
        names.NUMA_RELATION: "local",
        names.CACHE_RESIDENCY: 1.0,
        names.IO_STORAGE_READ: 0,
        names.SIZE: 20 * GB,
        names.BLOCKED_TIME: 8.0,
        names.MEMORY_LIMIT: 16 * GB,
        names.MEMORY_LIMIT_HITS: 0,
        names.CACHE_EVICTED: 0.0,
        names.MEMORY_REFAULT: 20 * GB,
        names.MEMORY_REFAULT_SCOPE: "host",
        names.MEMORY_PRESSURE_TIME: 0.0,
        names.PRESSURE_SCOPE: "cgroup",
        names.SWAP_IN: 4096,
        names.SWAP_SCOPE: "host",
        names.RUN_QUEUE_TIME: 0.2,
        names.COVERAGE: 0.99,
        OTHER: 0.1,
        TO_DEVICE: 4.0,
    }
    assert ids(healthy) == []
    assert findings.attributes(findings.find(load(healthy))) == {}


def test_each_rule_has_an_id_of_its_own_and_says_why() -> None:
    assert len({rule.id for rule in findings.RULES}) == len(findings.RULES)
    assert all(rule.mechanism.endswith(".") for rule in findings.RULES)
    known = {attribute.name for attribute in names.ATTRIBUTES} | {names.partition(stage) for stage in names.PARTS}
    assert {name for rule in findings.RULES for name in (*rule.needs, *rule.uses)} <= known
