"""Requests that load at once, or one after the other, do not get into each other's loads."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

import loadspan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recorded import Spans

LAYERS = 24
SIZE = 256 * 256 * 4


def checkpoint(path: Path) -> Path:
    save_file({f"{index}.weight": torch.ones(256, 256) for index in range(LAYERS)}, path)
    return path


def model() -> torch.nn.Module:
    return torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(LAYERS)))


def together(*works: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_declared_loads_of_two_threads_share_nothing(spans: Spans) -> None:
    begun = threading.Event()

    def first() -> None:
        with loadspan.load("a"):
            begun.set()
            time.sleep(0.3)

    def second() -> None:
        begun.wait()
        with loadspan.load("b"), loadspan.stage("decrypt") as stage:
            stage.add(1000)
            time.sleep(0.1)

    together(first, second)
    a, b = sorted(spans.loads(), key=lambda load: load["attributes"]["loadspan.model.name"])
    assert "loadspan.size" not in a["attributes"]
    assert a["attributes"]["loadspan.coverage"] == pytest.approx(0.0, abs=0.01)
    assert "loadspan.partition.decrypt" not in a["attributes"]
    assert b["attributes"]["loadspan.size"] == 1000


def test_a_load_declared_in_a_thread_of_a_load_is_below_it(spans: Spans) -> None:
    def inner() -> None:
        with loadspan.load("inner"), loadspan.stage("decrypt"):
            time.sleep(0.01)

    with loadspan.load("outer"):
        together(inner)
    (outer,) = spans.loads()
    assert outer["attributes"]["loadspan.model.name"] == "outer"
    assert [child["attributes"]["loadspan.model.name"] for child in outer["children"]] == ["inner"]


def test_two_threads_that_read_one_file_are_two_loads(spans: Spans, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "base.safetensors")

    def handle() -> None:
        state = load_file(path)
        time.sleep(0.05)
        model().load_state_dict(state)

    together(handle, handle)
    spans.finish()
    assert [load["attributes"]["loadspan.size"] for load in spans.loads()] == [LAYERS * SIZE] * 2


def test_the_same_weights_loaded_again_after_a_pause_are_two_loads(spans: Spans, tmp_path: Path) -> None:
    path, module = checkpoint(tmp_path / "base.safetensors"), model()
    for _ in range(2):
        module.load_state_dict(load_file(path))
        time.sleep(1.3)
    spans.finish()
    assert len(spans.loads()) == 2


def test_what_the_process_does_after_an_implicit_load_is_not_in_its_counters(spans: Spans, tmp_path: Path) -> None:
    path, other = checkpoint(tmp_path / "base.safetensors"), tmp_path / "other"
    other.write_bytes(bytes(30_000_000))
    model().load_state_dict(load_file(path))
    descriptor = os.open(other, os.O_RDONLY)
    while os.read(descriptor, 1 << 20):
        pass
    os.close(descriptor)
    spans.finish()
    (load,) = spans.loads()
    assert load["attributes"].get("loadspan.io.read", 0) < 1_000_000
