"""What real loads say is to be done, where the cause is there on purpose: a throttled disk, a limit that the file does not fit into."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import children
import pytest
from pages import chill, make, on_disk
from test_slow_storage_of_loads import LOOP, RATE, READ
from test_too_little_memory import ENTER, LIMIT, SIZE, TWICE

from loadspan import names

if TYPE_CHECKING:
    from pathlib import Path


def told(load: dict[str, Any]) -> dict[str, str]:
    """Findings of a load, the first one first. How busy the machine is has nothing to do with what is tested."""
    ids = [known for known in load["attributes"].get(names.FINDINGS, ()) if known != "cpu-wait"]
    return {known: load["attributes"][names.finding(known)] for known in ids}


WARM = """
import time
with loadspan.load("model"), loadspan.stage("convert"):
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass
    time.sleep(1.1)  # long enough to be worth advice, and asleep, but not for storage
"""


def test_a_cold_cache_on_a_throttled_disk_is_told_and_a_warm_one_is_not(tmp_path: Path) -> None:
    on_disk(tmp_path)
    with children.control_group("read") as group:
        cold, warm = children.loads(READ + WARM, tmp_path, group, "ext4", RATE, 2 * RATE, setup=LOOP, inside=children.UNSHARE)
    assert list(told(cold)) == ["cache-cold"]
    assert re.fullmatch(
        r"Keep the weights in the page cache, or put them on faster storage: 0 % of the files were in the page cache before, "
        r"5\d\.\d MB were read from storage for a load of 50\.3 MB, and the loading thread slept for [12]\.\d\d s of [12]\.\d\d s, "
        r"waiting for storage, a lock or a timer\.",
        told(cold)["cache-cold"],
    )
    assert warm["duration"] > 1
    assert told(warm) == {}


@pytest.mark.parametrize("how", TWICE)
def test_a_file_that_does_not_fit_into_the_memory_limit_is_told(tmp_path: Path, how: str) -> None:
    on_disk(tmp_path)
    path = make(tmp_path / "weights.bin", SIZE)
    chill(path)
    with children.control_group("memory") as group:
        loads = children.loads(LONG + TWICE[how].replace("loadspan.load(", "at_least_a_second("), path, group, LIMIT, setup=ENTER)
    for load in loads:
        text = told(load)["cache-evicted"]
        assert " of the biggest files were evicted from the page cache" in text
        assert " and the control group reached its limit of 117 MB " in text


LONG = """
import contextlib, loadspan, time

@contextlib.contextmanager
def at_least_a_second(name):
    with loadspan.load(name):
        yield
        time.sleep(1)
"""
