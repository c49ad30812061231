"""Loads that nobody declared: when one ends, which are too small to be shown, and which are repetitions."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING

import pytest
from work import LONG, MB, checkpoint, layer, rest

import loadspan
from recorded import Spans, walk

if TYPE_CHECKING:
    from pathlib import Path

    from recorded import Tree


def names_of(load: Tree) -> list[str]:
    """Stages of a load by name, in order, whatever is in them."""
    return [child["name"] for child in load["children"]]


def until_closed(spans: Spans, seconds: float = 5.0) -> None:
    """Wait until the sampler has ended every implicit load by itself."""
    limit = time.monotonic() + seconds
    while spans.recorder.loads:
        assert time.monotonic() < limit, "an implicit load does not end"
        time.sleep(0.02)
    time.sleep(0.05)  # it is off the list a moment before it is shown


# When it ends


def test_a_load_without_pending_bytes_ends_after_the_idle_timeout(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    spans.set(idle_timeout=0.2)
    model = layer(20)
    state = safetensors.torch.load_file(checkpoint(tmp_path, megabytes=20))
    model.load_state_dict(state)
    begun = time.monotonic()
    until_closed(spans)
    assert 0.15 <= time.monotonic() - begun < 1.0
    assert spans.load()["duration"] < 0.15  # the silence is no part of it


def test_a_load_with_pending_tensors_waits_for_them(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    spans.set(idle_timeout=0.1, pending_timeout=10.0)
    state = safetensors.torch.load_file(checkpoint(tmp_path, megabytes=20))
    rest(0.5)
    assert len(spans.recorder.loads) == 1
    model = layer(20)
    model.load_state_dict(state)
    until_closed(spans)
    assert names_of(spans.load()) == ["deserialize", "load_state_dict"]


def test_tensors_that_were_dropped_are_not_waited_for(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    spans.set(idle_timeout=0.1, pending_timeout=10.0)
    safetensors.torch.load_file(checkpoint(tmp_path, megabytes=20))
    until_closed(spans, 2.0)
    assert names_of(spans.load()) == ["deserialize"]


def test_the_pending_timeout_ends_a_load_that_nothing_consumes(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    spans.set(idle_timeout=0.05, pending_timeout=0.4)
    state = safetensors.torch.load_file(checkpoint(tmp_path, megabytes=20))
    begun = time.monotonic()
    until_closed(spans, 2.0)
    assert time.monotonic() - begun >= 0.3
    assert state
    assert names_of(spans.load()) == ["deserialize"]


def test_an_open_load_keeps_neither_tensors_nor_module_alive(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    model = layer(8)
    state = safetensors.torch.load_file(checkpoint(tmp_path, megabytes=8))
    model.load_state_dict(state)
    assert len(spans.recorder.loads) == 1
    held = [weakref.ref(model), weakref.ref(state["weight"])]
    del model, state
    assert [ref() for ref in held] == [None, None]


# Small ones and repetitions


def test_a_small_load_is_dropped(spans: Spans) -> None:
    import torch

    module = torch.nn.Linear(4, 4)
    module.load_state_dict(torch.nn.Linear(4, 4).state_dict())
    assert spans.loads() == []


def test_a_small_load_is_kept_where_the_limit_says_so(spans: Spans) -> None:
    import torch

    spans.set(min_size=16)
    module = torch.nn.Linear(4, 4)
    module.load_state_dict(torch.nn.Linear(4, 4).state_dict())
    assert spans.load()["attributes"]["loadspan.size"] == 80


def test_a_small_load_that_took_its_time_is_kept(spans: Spans) -> None:
    with loadspan.stage("decrypt"):
        rest(0.012)
    assert names_of(spans.load()) == ["decrypt"]


def test_a_small_load_that_failed_is_kept(spans: Spans) -> None:
    import torch

    module = torch.nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict(torch.nn.Linear(5, 5).state_dict())
    load = spans.load()
    assert load["attributes"]["error.type"] == "RuntimeError"
    assert [len(span["events"]) for span in walk(load)] == [0, 1]


def test_a_missing_file_is_a_failed_load(spans: Spans, tmp_path: Path) -> None:
    import torch

    with pytest.raises(FileNotFoundError):
        torch.load(tmp_path / "nothing.pt")
    load = spans.load()
    assert load["attributes"]["error.type"] == "FileNotFoundError"
    assert load["children"][0]["attributes"]["file.path"].endswith("nothing.pt")
    assert "file.size" not in load["children"][0]["attributes"]


def test_a_load_that_recovered_did_not_fail(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    path = checkpoint(tmp_path, megabytes=8)
    model = layer(8)
    try:
        state = torch.load(path, weights_only=True)
    except Exception:  # noqa: BLE001 - as a loader that tries one format after the other
        state = safetensors.torch.load_file(path)
    model.load_state_dict(state)
    load = spans.loads()[-1]
    assert load["error"] is None
    assert names_of(load)[-2:] == ["deserialize", "load_state_dict"]


def folded(loads: list[Tree]) -> list[int]:
    return [load["attributes"].get("loadspan.folded.count", 1) for load in loads]


def test_a_training_loop_that_restores_its_weights_a_thousand_times_is_at_most_three_loads(spans: Spans) -> None:
    online, target = layer(1.1), layer(1.1)
    state = online.state_dict()
    for _ in range(1000):
        target.load_state_dict(state)
    loads = spans.loads()
    assert len(loads) <= 3
    assert sum(folded(loads)) == 1000
    last = loads[-1]["attributes"]
    assert last["loadspan.implicit"] is True
    assert last["loadspan.size"] == 998 * 1_100_000
    assert last["loadspan.busy_time"] <= loads[-1]["duration"]


def test_a_target_network_that_follows_the_online_one_is_folded(spans: Spans) -> None:
    """As in deep Q-learning: a new state dict each time, now and then, for hours."""
    online, target = layer(2), layer(2)
    spans.set(idle_timeout=0.01)
    for _ in range(60):
        target.load_state_dict(online.state_dict())
        rest(0.01)
    loads = spans.loads()
    assert len(loads) <= 3
    assert sum(folded(loads)) == 60


def test_a_loop_over_small_modules_is_dropped(spans: Spans) -> None:
    import torch

    online, target = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    for _ in range(50):
        target.load_state_dict(online.state_dict())
    assert spans.loads() == []


def test_a_module_that_gets_new_weights_each_time_is_not_folded(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    path = checkpoint(tmp_path, megabytes=8)
    model = layer(8)
    spans.set(idle_timeout=0.05)
    for _ in range(5):
        model.load_state_dict(safetensors.torch.load_file(path))
        until_closed(spans)
    loads = spans.loads()
    assert [names_of(load) for load in loads] == [["deserialize", "load_state_dict"]] * 5


def test_a_module_that_is_cast_back_and_forth_is_folded(spans: Spans) -> None:
    module = layer(4)
    for _ in range(20):
        module.half()
        module.float()
    loads = spans.loads()
    calls = sum(folded([load])[0] if "loadspan.folded.count" in load["attributes"] else len(load["children"]) for load in loads)
    assert len(loads) <= 3 * 2
    assert calls == 40


# What the public scopes do without a load


def test_a_stage_of_ones_own_opens_a_load_and_real_ones_join_it(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    path = checkpoint(tmp_path, megabytes=8)
    with loadspan.stage("decrypt", size=8 * MB, model="mine"):
        rest(LONG)
    state = safetensors.torch.load(path.read_bytes())
    layer(8).load_state_dict(state)
    load = spans.load()
    assert [name for name in names_of(load) if name != "read"] == ["decrypt", "deserialize", "load_state_dict"]


def test_inference_and_other_work_open_no_load(spans: Spans, tmp_path: Path) -> None:
    import torch

    model = layer(8)
    with torch.no_grad():
        for _ in range(10):
            model(torch.zeros(1, 1000).to(torch.float32))
    model.to("cpu")
    model.state_dict()
    (tmp_path / "log.txt").write_text("x" * 100_000)
    (tmp_path / "log.txt").read_bytes()
    assert spans.loads() == []
    assert not spans.recorder.repetitions
