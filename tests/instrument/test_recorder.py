"""Loads and stages: nesting, threads, tasks, and real libraries."""

from __future__ import annotations

import _thread
import asyncio
import inspect
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from work import MB, checkpoint, fine, layer, rest

import loadspan
from loadspan.names import STAGES
from recorded import Spans, check, outline, parts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# Nesting


def test_stages_of_a_load_are_its_children_in_order(spans: Spans) -> None:
    with loadspan.load("sdxl", loader="mine", device="cuda:1"):
        with loadspan.stage("read", size=10 * MB, path="/nowhere/model.enc"):
            rest()
        with loadspan.stage("decrypt"):
            rest()
        with loadspan.stage("load_state_dict"):
            rest()
    load = spans.load()
    assert outline(load) == [{"load model": ["read", "decrypt", "load_state_dict"]}]
    check(load)
    attributes = load["attributes"]
    assert attributes["loadspan.model.name"] == attributes["gen_ai.request.model"] == "sdxl"
    assert attributes["loadspan.loader"] == "mine"
    assert attributes["loadspan.device.type"] == "cuda"
    assert attributes["loadspan.device.index"] == 1
    assert attributes["loadspan.size"] == 10 * MB
    assert "loadspan.implicit" not in attributes
    assert set(parts(load)) == {"read", "decrypt", "load_state_dict", "loadspan", "other"}
    for stage in load["children"]:
        assert stage["attributes"]["loadspan.stage"] == stage["name"]
        assert stage["attributes"]["loadspan.model.name"] == "sdxl"
        assert stage["attributes"]["thread.name"] == "MainThread"
        assert parts(load)[stage["name"]] == pytest.approx(stage["duration"], abs=0.001)
    read, decrypt, _ = load["children"]
    assert read["attributes"]["loadspan.throughput"] == pytest.approx(10 * MB / read["duration"], rel=0.05)
    assert "loadspan.size" not in decrypt["attributes"]
    assert "loadspan.throughput" not in decrypt["attributes"]


def test_a_stage_in_another_takes_its_time_from_it(spans: Spans) -> None:
    with loadspan.load(), loadspan.stage("deserialize", size=1000):
        rest(0.01)
        with loadspan.stage("read", size=1000):
            rest(0.08)
    load = spans.load()
    assert outline(load) == [{"load model": [{"deserialize": ["read"]}]}]
    check(load)
    assert parts(load)["read"] >= 0.08
    assert 0.01 <= parts(load)["deserialize"] < 0.08
    deserialize = load["children"][0]["attributes"]
    assert deserialize["loadspan.busy_time"] < 0.08
    assert deserialize["loadspan.throughput"] == pytest.approx(1000 / deserialize["loadspan.busy_time"])


def test_the_same_stage_in_itself_is_counted_and_has_no_span(spans: Spans) -> None:
    with loadspan.load(), loadspan.stage("read"):
        for _ in range(3):
            with loadspan.stage("read", size=10, path="/nowhere/shard"):
                rest()
    load = spans.load()
    assert outline(load) == [{"load model": ["read"]}]
    check(load)
    attributes = load["children"][0]["attributes"]
    assert attributes["loadspan.size"] == 30
    assert attributes["loadspan.operation.count"] == 3
    assert attributes["file.path"] == "/nowhere/shard"
    assert load["attributes"]["loadspan.size"] == 30


def test_the_same_stage_deep_inside_itself_is_counted_at_the_outermost(spans: Spans) -> None:
    with loadspan.load(), loadspan.stage("read"), loadspan.stage("decrypt"):
        rest()
        with loadspan.stage("read", size=7):
            rest()
    load = spans.load()
    assert outline(load) == [{"load model": [{"read": ["decrypt"]}]}]
    assert load["children"][0]["attributes"]["loadspan.size"] == 7
    assert "loadspan.size" not in load["children"][0]["children"][0]["attributes"]


def test_one_scope_may_be_entered_again_while_it_is_open(spans: Spans) -> None:
    @loadspan.stage("convert")
    def halve(depth: int) -> int:
        rest(0.001)
        return depth if depth == 0 else halve(depth - 1)

    again = loadspan.load("twice")
    with again, again:
        assert halve(3) == 0
    load = spans.load()
    assert outline(load) == [{"load model": [{"load model": ["convert"]}]}]
    assert load["children"][0]["children"][0]["attributes"]["loadspan.operation.count"] == 3


def test_an_inner_load_is_a_part_of_the_outer_one(spans: Spans) -> None:
    with loadspan.load("pipeline"):
        with loadspan.load("unet"), loadspan.stage("read", size=100):
            rest(0.01)
        with loadspan.load("vae"):
            rest(0.01)
            with loadspan.stage("read", size=10):
                rest(0.01)
    load = spans.load()
    assert outline(load) == [{"load model": [{"load model": ["read"]}, {"load model": ["read"]}]}]
    for one in (load, *load["children"]):
        check(one)
    assert [child["attributes"]["loadspan.model.name"] for child in load["children"]] == ["unet", "vae"]
    assert load["attributes"]["loadspan.size"] == 110
    assert parts(load)["read"] == pytest.approx(sum(parts(child)["read"] for child in load["children"]), abs=0.001)
    assert parts(load)["other"] >= 0.01


def test_an_inner_load_in_a_stage_takes_its_stages_time_from_that(spans: Spans) -> None:
    with loadspan.load("outer"), loadspan.stage("initialize"):
        rest(0.01)
        with loadspan.load("inner"):
            fine(spans.recorder, "read", 5, seconds=0.08)
    load = spans.load()
    assert outline(load) == [{"load model": [{"initialize": [{"load model": ["read"]}]}]}]
    check(load)
    assert parts(load)["read"] >= 0.08
    assert 0.01 <= parts(load)["initialize"] < 0.08


def test_what_is_said_while_it_runs_is_on_the_span(spans: Spans) -> None:
    with loadspan.load() as load_handle:
        load_handle.set(model="llama", device="cpu")
        with loadspan.stage("merge_lora") as handle:
            rest()
            handle.add(3)
            handle.add(4)
            handle.set(adapter="style", format="safetensors", path=["/a/one", "/a/two"])
            loadspan.current().add(5)
        with loadspan.stage("cache", cache_hit=False, deferred=True, size=9):
            rest()
    load = spans.load()
    merge, cache = load["children"]
    assert merge["attributes"]["loadspan.size"] == 12
    assert merge["attributes"]["loadspan.adapter.name"] == "style"
    assert merge["attributes"]["loadspan.format"] == "safetensors"
    assert merge["attributes"]["loadspan.file.count"] == 2
    assert cache["attributes"]["loadspan.cache.hit"] is False
    assert cache["attributes"]["loadspan.deferred"] is True
    assert "loadspan.throughput" not in cache["attributes"]
    assert load["attributes"]["loadspan.model.name"] == "llama"
    assert load["attributes"]["loadspan.device.type"] == "cpu"
    assert "loadspan.device.index" not in load["attributes"]


def test_outside_of_everything_the_handle_does_nothing(spans: Spans) -> None:
    loadspan.current().add(5)
    loadspan.current().set(size=7)
    assert spans.loads() == []


def test_a_fact_or_stage_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'open' is not a stage"):
        loadspan.stage("open")
    with pytest.raises(TypeError, match="unknown fact 'bytes'"):
        loadspan.current().set(bytes=3)


# Threads


def test_a_thread_works_for_the_load_that_started_it(spans: Spans) -> None:
    def work() -> None:
        with loadspan.stage("decrypt"):
            rest()

    with loadspan.load("one"), loadspan.stage("deserialize"):
        thread = threading.Thread(target=work, name="decryptor")
        thread.start()
        thread.join()
    load = spans.load()
    assert outline(load) == [{"load model": [{"deserialize": ["decrypt"]}]}]
    assert load["children"][0]["children"][0]["attributes"]["thread.name"] == "decryptor"
    check(load)


def test_a_pool_job_works_for_whoever_submitted_it_not_for_whoever_started_the_thread(spans: Spans) -> None:
    def work(name: str) -> str:
        with loadspan.stage("read", model=name):
            rest()
        return name

    with ThreadPoolExecutor(1) as pool:
        with loadspan.load("one"):
            assert pool.submit(work, "one").result() == "one"
        with loadspan.load("two"):
            assert list(pool.map(work, ["two", "two"])) == ["two", "two"]
    loads = spans.loads()
    assert [outline(load) for load in loads] == [[{"load model": ["read"]}], [{"load model": ["read", "read"]}]]
    for load in loads:
        check(load)
        assert {stage["attributes"]["loadspan.model.name"] for stage in load["children"]} == {load["attributes"]["loadspan.model.name"]}


def test_a_bare_thread_born_in_a_load_works_for_it(spans: Spans) -> None:
    done = _thread.allocate_lock()
    done.acquire()

    def work() -> None:
        try:
            with loadspan.stage("read"):
                rest()
        finally:
            done.release()

    with loadspan.load():
        _thread.start_new_thread(work, ())
        done.acquire()
    load = spans.load()
    assert outline(load) == [{"load model": ["read"]}]
    check(load)


def test_stages_of_sixteen_threads_share_every_instant_and_add_up(spans: Spans) -> None:
    chance = random.Random(7)  # noqa: S311 - a plan, no secret
    plans = [[(chance.choice(STAGES), chance.choice(STAGES), chance.random() / 500) for _ in range(8)] for _ in range(16)]

    def work(plan: list[tuple[str, str, float]]) -> None:
        for outer, inner, seconds in plan:
            with loadspan.stage(outer):
                rest(seconds)
                with loadspan.stage(inner):
                    fine(spans.recorder, "read", 1, seconds=seconds) if "read" not in {outer, inner} else rest(seconds)

    with loadspan.load():
        threads = [threading.Thread(target=work, args=(plan,)) for plan in plans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    check(spans.load())


def test_a_stage_that_outlives_its_load_harms_nothing(spans: Spans) -> None:
    go = threading.Event()

    def work() -> None:
        with loadspan.stage("read"):
            go.wait(5)
            fine(spans.recorder, "decrypt", 1)

    with loadspan.load():
        thread = threading.Thread(target=work)
        thread.start()
        rest(0.01)
    go.set()
    thread.join()
    loads = [load for load in spans.loads() if "loadspan.implicit" not in load["attributes"]]
    check(loads[0])
    assert parts(loads[0])["read"] >= 0.005


# asyncio


def test_tasks_at_once_have_loads_of_their_own(spans: Spans) -> None:
    async def serve(name: str) -> None:
        async with loadspan.load(name):
            for stage in ("read", "decrypt", "deserialize"):
                async with loadspan.stage(stage):
                    await asyncio.sleep(0.005)
            await asyncio.to_thread(convert)

    @loadspan.stage("convert")
    def convert() -> None:
        rest()

    async def main() -> None:
        await asyncio.gather(*(serve(f"model-{index}") for index in range(5)))

    asyncio.run(main())
    loads = spans.loads()
    assert sorted(load["attributes"]["loadspan.model.name"] for load in loads) == [f"model-{index}" for index in range(5)]
    for load in loads:
        assert outline(load) == [{"load model": ["read", "decrypt", "deserialize", "convert"]}]
        check(load)


def test_tasks_begun_in_a_load_are_parts_of_it(spans: Spans) -> None:
    @loadspan.stage("download")
    async def fetch() -> int:
        await asyncio.sleep(0.03)
        return 3

    async def main() -> list[int]:
        async with loadspan.load():
            return await asyncio.gather(*(fetch() for _ in range(4)))

    assert asyncio.run(main()) == [3, 3, 3, 3]
    load = spans.load()
    assert outline(load) == [{"load model": ["download"] * 4}]
    check(load)
    assert parts(load)["download"] < 0.1  # shared, not added


def test_a_decorated_coroutine_function_stays_one() -> None:
    @loadspan.stage("read")
    async def coroutine() -> None: ...

    @loadspan.stage("read")
    def generator() -> Iterator[int]:
        yield 1

    @loadspan.stage("read")
    async def both() -> Any:
        yield 1

    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(both)


# Real libraries in one load


def test_a_real_load_is_covered_and_adds_up(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    path = checkpoint(tmp_path, megabytes=40)
    with loadspan.load("base", path=path):
        model = layer(40)
        state = safetensors.torch.load_file(path)
        model.load_state_dict(state)
        model.to(torch.float16)
    load = spans.load()
    assert [name for name in outline(load["children"]) if name != "initialize"] == ["deserialize", "load_state_dict", "convert"]
    check(load)
    assert load["attributes"]["loadspan.size"] == 40 * MB
    deserialize, load_state_dict, convert = (child for child in load["children"] if child["name"] != "initialize")
    assert deserialize["attributes"]["loadspan.size"] == 40 * MB
    assert load_state_dict["attributes"]["loadspan.size"] == 40 * MB
    assert convert["attributes"]["loadspan.size"] == 20 * MB
    assert convert["attributes"]["loadspan.dtype"] == "float16"
