"""torch: moves to an accelerator, counted byte for byte as the fake accelerator itself counts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hosts import the

from loadspan.commands.demo import find_examples
from recorded import outline

HERE = Path(__file__).parent
LINEAR = 4 * (100 * 50 + 50)
MIXED = LINEAR + 8000 + 120
LAYER = 2_000_000

MOVED = {
    "fresh": MIXED,
    "without index": MIXED,
    "like a tensor": MIXED,
    "non-blocking": MIXED,
    "deep": 2 * MIXED + LAYER,
    "partial": LAYER,
    "device and dtype": (LINEAR + 120) // 2 + 8000,
    "device and wider dtype": (LINEAR + 120) * 2 + 8000,
    "tied": 2 * 20_000,  # on this device torch makes a parameter for each name
    "views": 4 * (600 + 700),
    "buffers": 4 * 1000 + 8,
    "adapter": LAYER + 4 * 8 * 1500,
    "adapter alone": LAYER,
    "quantized": 512 * 256 + 4 * 256,
    "training": MIXED,
}


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-W", "error", HERE / "on_fakegpu.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(find_examples()), str(HERE), str(HERE.parent)])},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def test_every_move_does_with_us_what_it_does_without(answers: dict[str, Any]) -> None:
    random = {"memory only", "memory from meta", "back without a copy"}  # memory that nobody wrote
    for name, answer in answers.items():
        depth = 3 if name in random else 4
        assert answer["recorded"][:depth] == answer["bare"][:depth], name


@pytest.mark.parametrize("case", MOVED)
def test_bytes_are_those_that_the_device_received(answers: dict[str, Any], case: str) -> None:
    answer = answers[case]
    assert outline(answer["tree"]) == [{"load model": ["to_device"]}]
    attributes = the(answer["tree"], "to_device")
    assert attributes["loadspan.size"] == answer["recorded"][0] == MOVED[case]
    assert (attributes["loadspan.device.type"], attributes["loadspan.device.index"]) == ("fakegpu", 0)
    assert attributes["loadspan.throughput"] > 0
    assert "loadspan.deferred" not in attributes
    assert "loadspan.host_memory.pinned" not in attributes
    root = answer["tree"]["attributes"]
    assert (root["loadspan.device.type"], root["loadspan.device.index"], root["loadspan.size"]) == ("fakegpu", 0, MOVED[case])


@pytest.mark.parametrize("case", ["again", "again without index"])
def test_a_module_that_is_there_already_is_no_stage(answers: dict[str, Any], case: str) -> None:
    assert outline(answers[case]["tree"]) == ["load model"]
    assert answers[case]["recorded"][:2] == [0, "itself"]


def test_a_cast_on_the_device_is_a_convert(answers: dict[str, Any]) -> None:
    attributes = the(answers["dtype there"]["tree"], "convert")
    assert attributes["loadspan.size"] == (LINEAR + 120) // 2
    assert attributes["loadspan.dtype"] == "float16"
    assert answers["dtype there"]["recorded"][0] == 0


def test_a_move_back_is_a_move_to_the_cpu(answers: dict[str, Any]) -> None:
    attributes = the(answers["back"]["tree"], "to_device")
    assert attributes["loadspan.size"] == MIXED
    assert attributes["loadspan.device.type"] == "cpu"
    assert "loadspan.device.index" not in attributes


@pytest.mark.parametrize(("case", "device"), [("memory only", "fakegpu"), ("memory from meta", None), ("back without a copy", "cpu")])
def test_memory_into_which_nothing_is_copied_is_initialize_without_bytes(answers: dict[str, Any], case: str, device: str | None) -> None:
    answer = answers[case]
    assert answer["recorded"][0] == 0
    assert outline(answer["tree"]) == [{"load model": ["initialize"]}]
    attributes = the(answer["tree"], "initialize")
    assert attributes.get("loadspan.device.type") == device  # torch was told it, and no tensor was anywhere before
    assert "loadspan.size" not in attributes
    assert "loadspan.throughput" not in attributes


@pytest.mark.parametrize("case", ["meta", "partly meta"])
def test_what_is_on_meta_fails_on_the_way_and_has_no_bytes_that_did_not_move(answers: dict[str, Any], case: str) -> None:
    answer = answers[case]
    assert "Cannot copy out of meta tensor" in answer["recorded"][1]
    attributes = the(answer["tree"], "to_device")
    assert attributes["error.type"] == "NotImplementedError"
    assert attributes.get("loadspan.size", 0) == answer["recorded"][0]
    assert "loadspan.throughput" not in attributes


def test_a_state_dict_into_a_module_on_the_device_is_counted_by_its_bytes(answers: dict[str, Any]) -> None:
    answer = answers["state dict"]
    assert the(answer["tree"], "load_state_dict")["loadspan.size"] == answer["recorded"][0] == MIXED
