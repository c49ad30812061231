"""Cold cache, eviction, memory limit, swap: when they are told, in which words, and when nothing is."""

from __future__ import annotations

from typing import Any

import pytest
from advised import GB, ids, only, without

from loadspan import names

COLD = {names.CACHE_RESIDENCY: 0.03, names.IO_STORAGE_READ: 19_400_000_000, names.SIZE: 20 * GB, names.BLOCKED_TIME: 6.2}
EVICTED = {
    names.MEMORY_LIMIT: 16 * GB,
    names.MEMORY_LIMIT_HITS: 1234,
    names.CACHE_EVICTED: 0.6,
    names.MEMORY_REFAULT: 3 * GB,
    names.MEMORY_REFAULT_SCOPE: "cgroup",
    names.SIZE: 20 * GB,
    names.CACHE_RESIDENCY: 0.42,
}
LIMITED = {
    names.MEMORY_LIMIT: 16 * GB,
    names.MEMORY_LIMIT_HITS: 1,
    names.MEMORY_PRESSURE_TIME: 2.5,
    names.PRESSURE_SCOPE: "cgroup",
}
SWAPPED = {names.SWAP_IN: 2 * GB, names.SWAP_SCOPE: "cgroup", names.SIZE: 20 * GB}


def test_a_cold_cache_is_told_with_what_was_read_and_slept() -> None:
    finding = only(COLD)
    assert finding.sentence == (
        "Keep the weights in the page cache, or put them on faster storage: 3 % of the files were in the page cache before, "
        "19.4 GB were read from storage for a load of 20.0 GB, and the loading thread slept for 6.20 s of 10.0 s, "
        "waiting for storage, a lock or a timer."
    )
    assert (finding.id, finding.severity, finding.seconds) == ("cache-cold", "major", 6.2)
    assert finding.evidence == tuple(COLD.items())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({names.CACHE_RESIDENCY: 0.5}, True),
        ({names.CACHE_RESIDENCY: 0.51}, False),
        ({names.IO_STORAGE_READ: 10 * GB}, True),
        ({names.IO_STORAGE_READ: 10 * GB - 1}, False),
        ({names.BLOCKED_TIME: 1.0}, True),
        ({names.BLOCKED_TIME: 0.999}, False),
        ({names.SIZE: 0}, False),
    ],
)
def test_a_cache_is_cold_from_half_on_and_where_the_thread_slept_for_a_tenth(changed: dict[str, Any], told: bool) -> None:  # noqa: FBT001 - a column
    assert ids(COLD | changed) == (["cache-cold"] if told else [])


def test_less_than_a_quarter_of_the_load_is_minor() -> None:
    assert only(COLD | {names.BLOCKED_TIME: 2.49}).severity == "minor"
    assert only(COLD | {names.BLOCKED_TIME: 2.5}).severity == "major"


def test_eviction_is_told_with_the_limit_that_was_reached() -> None:
    finding = only(EVICTED)
    assert finding.sentence == (
        "Leave the page cache room for the files, with a higher memory limit or less other memory: during the load "
        "60 % of the biggest files were evicted from the page cache and 3.00 GB that had been evicted were read again, "
        "and the control group reached its limit of 16.0 GB 1 234 times."
    )
    assert (finding.id, finding.severity, finding.seconds) == ("cache-evicted", "notice", None)


@pytest.mark.parametrize("missing", [names.CACHE_EVICTED, names.MEMORY_REFAULT])
def test_one_sign_of_eviction_is_enough(missing: str) -> None:
    first = {
        names.MEMORY_REFAULT: "60 % of the biggest files were evicted from the page cache, and",
        names.CACHE_EVICTED: "3.00 GB that had been evicted were read again, and",
    }
    assert f"during the load {first[missing]} the control group" in only(without(EVICTED, missing)).sentence


@pytest.mark.parametrize(
    "changed",
    [
        {names.MEMORY_LIMIT_HITS: 0},
        {names.CACHE_EVICTED: 0.09, names.MEMORY_REFAULT: 2 * GB - 1},
        {names.CACHE_EVICTED: 0.09, names.MEMORY_REFAULT_SCOPE: "host"},
        {names.CACHE_EVICTED: 0.09, names.CACHE_RESIDENCY: 1.0},
    ],
    ids=["limit not reached", "little", "others' pages", "all were cached"],
)
def test_eviction_that_may_be_of_something_else_is_not_told(changed: dict[str, Any]) -> None:
    assert ids(EVICTED | changed) == []


def test_a_tenth_that_was_evicted_is_told() -> None:
    assert ids(without(EVICTED | {names.CACHE_EVICTED: 0.1}, names.MEMORY_REFAULT)) == ["cache-evicted"]
    assert ids(without(EVICTED | {names.MEMORY_REFAULT: 2 * GB}, names.CACHE_EVICTED)) == ["cache-evicted"]


def test_a_memory_limit_is_told_where_something_waited_for_memory() -> None:
    finding = only(LIMITED)
    assert finding.sentence == (
        "Raise the memory limit, or load in less memory: the control group reached its limit of 16.0 GB once during the load, "
        "and for 2.50 s of 10.0 s some task in it waited for memory."
    )
    assert (finding.id, finding.severity, finding.seconds) == ("memory-limit", "major", 2.5)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({names.MEMORY_PRESSURE_TIME: 1.0}, True),
        ({names.MEMORY_PRESSURE_TIME: 0.99}, False),
        ({names.MEMORY_LIMIT_HITS: 0}, False),
        ({names.PRESSURE_SCOPE: "host"}, False),
    ],
)
def test_a_limit_that_is_reached_without_waiting_costs_nothing(changed: dict[str, Any], told: bool) -> None:  # noqa: FBT001 - a column
    assert ids(LIMITED | changed) == (["memory-limit"] if told else [])


@pytest.mark.parametrize(
    ("scope", "where"),
    [("cgroup", " in its control group"), ("host", " on this host, by the load or by other programs"), ("elsewhere", "")],
)
def test_swap_is_told_with_whose_it_was(scope: str, where: str) -> None:
    finding = only(SWAPPED | {names.SWAP_SCOPE: scope})
    assert finding.sentence == f"Free memory before the load, or give it more: 2.00 GB were read back from swap during the load{where}."
    assert (finding.id, finding.severity, finding.seconds) == ("swap", "notice", None)


def test_swap_is_told_from_a_twentieth_of_the_load() -> None:
    assert ids(SWAPPED | {names.SWAP_IN: GB}) == ["swap"]
    assert ids(SWAPPED | {names.SWAP_IN: GB - 1}) == []


@pytest.mark.parametrize(
    ("attributes", "needed"),
    [
        (COLD, [names.CACHE_RESIDENCY, names.IO_STORAGE_READ, names.SIZE, names.BLOCKED_TIME]),
        (EVICTED, [names.MEMORY_LIMIT, names.MEMORY_LIMIT_HITS]),
        (LIMITED, [names.MEMORY_LIMIT, names.MEMORY_LIMIT_HITS, names.MEMORY_PRESSURE_TIME, names.PRESSURE_SCOPE]),
        (SWAPPED, [names.SWAP_IN, names.SIZE]),
    ],
)
def test_without_one_of_its_facts_nothing_is_told(attributes: dict[str, Any], needed: list[str]) -> None:
    assert [ids(without(attributes, name)) for name in needed] == [[]] * len(needed)
