"""Loads that nobody declared: which stages belong together, and when such a load ends."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from work import MB, checkpoint, layer, rest

import loadspan
from recorded import Spans, outline, walk

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


def big_layer(megabytes: float, seconds: float) -> Any:
    """A module whose construction takes so long."""
    import torch

    class Slow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = layer(megabytes)
            rest(seconds)

    return Slow()


# One load


def test_a_load_may_begin_and_end_at_top_level(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    path = checkpoint(tmp_path, megabytes=20)
    model = layer(20)
    state = safetensors.torch.load_file(path)
    model.load_state_dict(state)
    model.to(torch.bfloat16)
    load = spans.load()
    assert names_of(load) == ["deserialize", "load_state_dict", "convert"]
    assert load["attributes"]["loadspan.implicit"] is True
    assert load["attributes"]["loadspan.loader"] == "safetensors"
    assert load["attributes"]["loadspan.size"] == 20 * MB
    assert load["error"] is None
    assert load["start"] == load["children"][0]["start"]
    assert load["end"] - load["children"][-1]["end"] < 1_000_000


def test_three_seconds_of_construction_between_file_and_module_stay_in_the_load(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    path = checkpoint(tmp_path, megabytes=20)
    state = safetensors.torch.load_file(path)
    model = big_layer(20, 3.0)
    model.linear.load_state_dict(state)
    load = spans.load()
    assert names_of(load) == ["deserialize", "initialize", "load_state_dict"]
    attributes = load["attributes"]
    assert attributes["loadspan.partition.initialize"] == pytest.approx(3.0, abs=0.5)
    assert attributes["loadspan.coverage"] > 0.95
    assert load["duration"] == pytest.approx(3.0, abs=0.6)
    initialize = load["children"][1]
    assert initialize["duration"] == pytest.approx(3.0, abs=0.5)
    assert "loadspan.size" not in initialize["attributes"]


def test_a_pause_that_constructs_nothing_is_other_and_is_named(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    path = checkpoint(tmp_path, megabytes=20)
    model = layer(20)
    state = safetensors.torch.load_file(path)
    rest(0.7)
    model.load_state_dict(state)
    load = spans.load()
    assert names_of(load) == ["deserialize", "load_state_dict"]
    assert load["attributes"]["loadspan.partition.other"] == pytest.approx(0.7, abs=0.2)
    assert any(frame.startswith("rest (work.py:") for frame in load["attributes"]["loadspan.other.frames"])


def test_decrypt_to_memory_torch_load_fill_and_move_in_four_functions_are_one_load(spans: Spans, tmp_path: Path) -> None:
    import torch
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from loadspan.instrument.targets import crypto

    if not crypto.ROWS:
        pytest.skip("no row decrypts")
    plain = io.BytesIO()
    torch.save({"weight": torch.zeros(5000, 1000)}, plain)
    key, nonce = AESGCM.generate_key(256), os.urandom(12)
    sealed = tmp_path / "model.enc"
    sealed.write_bytes(AESGCM(key).encrypt(nonce, plain.getvalue(), None))
    spans.set(idle_timeout=0.2)

    def decrypt() -> io.BytesIO:
        return io.BytesIO(AESGCM(key).decrypt(nonce, sealed.read_bytes(), None))

    def parse(stream: io.BytesIO) -> Any:
        return torch.load(stream, weights_only=True)

    def fill(state: Any) -> Any:
        model = layer(20)
        model.load_state_dict(state)
        return model

    def move(model: Any) -> None:
        model.to(torch.float16)

    stream = decrypt()
    rest(0.5)
    state = parse(stream)
    rest(0.5)
    model = fill(state)
    move(model)
    load = spans.load()
    stages = [name for name in names_of(load) if name not in {"read", "initialize"}]
    assert stages == ["decrypt", "deserialize", "load_state_dict", "convert"]
    assert load["attributes"]["loadspan.size"] == pytest.approx(20 * MB, rel=0.01)


def test_sharded_files_are_one_load(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    paths = [checkpoint(tmp_path, f"model-{index:05}-of-00004.safetensors", 5) for index in range(1, 5)]
    model = layer(5)
    spans.set(idle_timeout=0.3)
    for path in paths:
        model.load_state_dict(safetensors.torch.load_file(path))
        rest(0.02)
    load = spans.load()
    assert load["attributes"]["loadspan.size"] == 20 * MB
    assert {child["name"] for child in load["children"]} == {"deserialize", "load_state_dict"}


def test_all_shards_read_before_the_module_is_filled_are_one_load(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    paths = [checkpoint(tmp_path, f"model-{index:05}-of-00004.safetensors", 5) for index in range(1, 5)]
    spans.set(idle_timeout=0.3)
    states = []
    for path in paths:
        states.append(safetensors.torch.load_file(path))
        rest(0.4)
    model = layer(5)
    for state in states:
        model.load_state_dict(state)
    load = spans.load()
    assert sum(child["name"] == "deserialize" for child in load["children"]) >= 1
    assert load["attributes"]["loadspan.size"] == 20 * MB


def test_shards_read_by_a_pool_of_threads_are_one_load(spans: Spans, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import safetensors.torch

    paths = [checkpoint(tmp_path, f"model-{index:05}-of-00004.safetensors", 5) for index in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(safetensors.torch.load_file, paths))
    model = layer(5)
    for state in states:
        model.load_state_dict(state)
    load = spans.load()
    assert load["attributes"]["loadspan.size"] == 20 * MB


def test_a_cast_of_many_modules_in_a_row_is_one_load(spans: Spans) -> None:
    import torch

    modules = [layer(4) for _ in range(12)]
    for module in modules:
        module.to(torch.bfloat16)
    load = spans.load()
    assert set(names_of(load)) == {"convert"}
    assert load["attributes"]["loadspan.size"] == 12 * 2 * MB


def test_components_of_a_pipeline_filled_one_after_the_other_from_one_file_each(spans: Spans, tmp_path: Path) -> None:
    """Nothing says that they are one model: each is a load of its own, or all are one, but no stage is lost."""
    import safetensors.torch

    for name in ("unet", "vae"):
        path = checkpoint(tmp_path, f"{name}.safetensors", 8)
        layer(8).load_state_dict(safetensors.torch.load_file(path))
    loads = spans.loads()
    assert [names_of(load) for load in loads] in (
        [["deserialize", "load_state_dict"]] * 2,
        [["deserialize", "load_state_dict", "deserialize", "load_state_dict"]],
    )


# Several loads


def test_two_adapter_switches_two_seconds_apart_are_two_loads(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    model = layer(20)
    for index in (1, 2):
        if index == 2:
            rest(2.0)
        path = checkpoint(tmp_path, f"adapter-{index}.safetensors", 20)
        begun = time.time_ns()
        state = safetensors.torch.load_file(path)
        model.load_state_dict(state)
        del state
    loads = spans.loads()
    assert [names_of(load) for load in loads] == [["deserialize", "load_state_dict"]] * 2
    assert all(load["duration"] < 1.0 for load in loads)
    assert loads[1]["start"] >= begun


def test_two_adapter_switches_are_two_loads_while_the_first_adapters_tensors_live(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    spans.set(idle_timeout=0.2)
    model, cache = layer(8), []
    for index in (1, 2):
        cache.append(safetensors.torch.load_file(checkpoint(tmp_path, f"adapter-{index}.safetensors", 8)))
        model.load_state_dict(cache[-1])
        rest(0.5)
    assert [names_of(load) for load in spans.loads()] == [["deserialize", "load_state_dict"]] * 2


def test_requests_in_two_threads_are_two_loads(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    paths = [checkpoint(tmp_path, f"{name}.safetensors", 8) for name in ("left", "right")]
    together = threading.Barrier(2)

    def serve(path: Path) -> None:
        together.wait()
        state = safetensors.torch.load_file(path)
        together.wait()
        model = layer(8)
        model.load_state_dict(state)
        together.wait()
        model.to(torch.float16)

    threads = [threading.Thread(target=serve, args=(path,), name=path.stem) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loads = spans.loads()
    assert len(loads) == 2, outline(loads)
    for load in loads:
        assert [name for name in names_of(load) if name != "initialize"] == ["deserialize", "load_state_dict", "convert"]
        assert len({span["attributes"]["thread.name"] for span in walk(load)}) == 1
        assert load["attributes"]["loadspan.size"] == 8 * MB


def test_requests_in_two_tasks_are_two_loads(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    paths = [checkpoint(tmp_path, f"{name}.safetensors", 8) for name in ("left", "right")]

    async def serve(path: Path) -> None:
        state = await asyncio.to_thread(safetensors.torch.load_file, path)
        model = layer(8)
        await asyncio.sleep(0.02)
        await asyncio.to_thread(model.load_state_dict, state)
        await asyncio.sleep(0.02)
        await asyncio.to_thread(model.to, torch.float16)

    async def main() -> None:
        await asyncio.gather(*(serve(path) for path in paths))

    asyncio.run(main())
    loads = spans.loads()
    assert [sorted(names_of(load)) for load in loads] == [["convert", "deserialize", "load_state_dict"]] * 2, outline(loads)


def test_requests_under_two_spans_of_the_host_are_two_loads_each_under_its_own(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    tracer = spans.provider.get_tracer("server")
    spans.set(idle_timeout=5.0)
    for name in ("one", "two"):
        with tracer.start_as_current_span(f"POST /{name}"):
            path = checkpoint(tmp_path, f"{name}.safetensors", 8)
            layer(8).load_state_dict(safetensors.torch.load_file(path))
    spans.finish()
    assert outline(spans.all()) == [
        {"POST /one": [{"load model": ["deserialize", "load_state_dict"]}]},
        {"POST /two": [{"load model": ["deserialize", "load_state_dict"]}]},
    ]


def test_a_move_of_a_module_whose_load_has_ended_is_linked_to_it(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    spans.set(idle_timeout=0.1)
    model = layer(20)
    model.load_state_dict(safetensors.torch.load_file(checkpoint(tmp_path, megabytes=20)))
    until_closed(spans)
    model.to(torch.float16)
    first, second = spans.loads()
    assert names_of(second) == ["convert"]
    assert second["trace_id"] != first["trace_id"]
    assert second["links"] == [first["span_id"]]
    assert first["links"] == []


def test_an_explicit_load_ends_the_quiet_one_before_it(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    state = safetensors.torch.load_file(checkpoint(tmp_path, megabytes=8))
    with loadspan.load("unrelated"):
        rest()
        assert [load.explicit for load in spans.recorder.loads] == [True]
    del state
    implicit, explicit = spans.loads()
    assert names_of(implicit) == ["deserialize"]
    assert implicit["end"] <= explicit["start"]
