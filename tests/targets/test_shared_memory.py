"""Weights in shared memory: who has them already, who has to bring them, and what that costs."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import weakref
from multiprocessing import shared_memory
from typing import TYPE_CHECKING, Any

import pytest
from hosts import failure, layer, the

import loadspan
from findings.advised import only
from instrument.work import fine, rest
from recorded import check, outline, parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recorded import Spans

MB = 1 << 20
LARGE = 32 * MB


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a segment, which is gone afterwards."""
    name = f"loadspan-test-{os.getpid()}"
    yield name
    with contextlib.suppress(FileNotFoundError):
        found = shared_memory.SharedMemory(name)
        found.close()
        found.unlink()


@contextlib.contextmanager
def made(name: str, size: int = LARGE) -> Iterator[shared_memory.SharedMemory]:
    segment = shared_memory.SharedMemory(name, create=True, size=size)
    try:
        yield segment
    finally:
        segment.close()


def caches(load: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
    """Hit, size and deferred of each `cache` stage."""
    keys = ("loadspan.cache.hit", "loadspan.size", "loadspan.deferred")
    return [tuple(span["attributes"].get(key) for key in keys) for span in load["children"] if span["name"] == "cache"]


def cost(load: dict[str, Any]) -> float:
    return float(load["attributes"]["loadspan.cache.miss_time"])


def test_a_segment_that_is_there_is_a_hit_whose_bytes_arrive_later(spans: Spans, name: str) -> None:
    with made(name):
        spans.finish()
        with loadspan.load("base"):
            shared_memory.SharedMemory(name).close()
    load = spans.loads()[-1]
    check(load)
    assert caches(load) == [(True, LARGE, True)]
    stage = the(load, "cache")
    assert stage["file.path"] == f"/dev/shm/{name}"  # noqa: S108 - where segments are
    assert stage["system.filesystem.type"] == "tmpfs"
    assert "loadspan.throughput" not in stage
    assert load["attributes"]["loadspan.cache.hit"] is True
    assert "loadspan.cache.miss_time" not in load["attributes"]


def test_a_segment_that_is_not_there_is_a_miss_and_no_failure(spans: Spans, name: str) -> None:
    with loadspan.load("base"), pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(name)
    load = spans.load()
    assert caches(load) == [(False, None, None)]
    assert load["error"] is None
    assert "error.type" not in the(load, "cache")
    assert load["attributes"]["loadspan.cache.hit"] is False
    assert "loadspan.cache.miss_time" not in load["attributes"]


def test_a_miss_costs_what_is_brought_until_the_segment_is_made(spans: Spans, name: str) -> None:
    with loadspan.load("base"):
        with loadspan.stage("decrypt", size=3 * MB):
            rest(0.02)  # of something else
        with contextlib.suppress(FileNotFoundError):
            shared_memory.SharedMemory(name)
        with loadspan.stage("decrypt", size=LARGE):
            rest(0.15)
        with made(name):
            pass
        with loadspan.stage("deserialize", size=LARGE):
            rest(0.1)
    load = spans.load()
    check(load)
    assert caches(load) == [(False, None, None), (False, LARGE, None)]
    assert 0.15 <= cost(load) < parts(load)["decrypt"] - 0.015


def test_answers_that_differ_are_shown_apart_and_equal_ones_together(spans: Spans) -> None:
    with loadspan.load("base"):
        for hit in (True, True, True, False, True):
            with loadspan.stage("cache", cache_hit=hit, size=MB):
                pass
    load = spans.load()
    assert caches(load) == [(True, 3 * MB, None), (False, MB, None), (True, MB, None)]


def test_a_miss_costs_what_is_brought_into_the_segment_made_for_it_but_not_what_a_hit_deserializes(spans: Spans, name: str) -> None:
    with loadspan.load("base"):
        with contextlib.suppress(FileNotFoundError):
            shared_memory.SharedMemory(name)
        fine(spans.recorder, "read", 64)  # its header
        with made(name), loadspan.stage("decrypt", size=LARGE):
            rest(0.05)
        with loadspan.stage("deserialize", size=LARGE):
            rest(0.1)
    load = spans.load()
    assert 0.05 <= cost(load) < 0.1


def test_tensors_that_are_put_into_a_segment_are_what_a_hit_spares(spans: Spans, name: str) -> None:
    with loadspan.load("base"), made(name), loadspan.stage("deserialize", size=LARGE):
        rest(0.05)
    load = spans.load()
    assert parts(load)["deserialize"] <= cost(load) < parts(load)["deserialize"] + 0.05


def test_what_follows_a_hit_is_no_cost_of_the_miss_before(spans: Spans) -> None:
    with loadspan.load("base+style"):
        with loadspan.stage("cache", cache_hit=False):
            pass
        with loadspan.stage("decrypt", size=MB):
            rest(0.02)
        with loadspan.stage("cache", cache_hit=True):
            rest(0.02)
        with loadspan.stage("decrypt", size=MB):
            rest(0.05)
        with loadspan.stage("merge_lora"):
            rest(0.02)
    load = spans.load()
    assert 0.02 <= cost(load) < parts(load)["decrypt"] - 0.045
    assert load["attributes"]["loadspan.cache.hit"] is False


def test_a_cache_stage_around_all_the_work_of_a_miss_has_its_cost(spans: Spans) -> None:
    with loadspan.load("base"):
        with loadspan.stage("cache") as stage:
            with loadspan.stage("decrypt", size=MB):
                rest(0.03)
            stage.set(cache_hit=False, size=MB)
        with loadspan.stage("deserialize", size=MB):
            rest(0.03)
    load = spans.load()
    assert cost(load) == pytest.approx(parts(load)["decrypt"] + parts(load)["cache"], abs=0.002)


def test_a_miss_whose_work_is_inside_the_lookup_is_over_with_it(spans: Spans) -> None:
    with loadspan.load("base"):
        for _ in range(2):  # as a hub does it, file by file
            with loadspan.stage("cache", cache_hit=False), loadspan.stage("download", size=MB):
                rest(0.02)
            with loadspan.stage("deserialize", size=MB):
                rest(0.03)
    load = spans.load()
    assert cost(load) == pytest.approx(parts(load)["download"] + parts(load)["cache"], abs=0.002)


def test_what_a_compile_cache_missed_is_compiled(spans: Spans) -> None:
    with loadspan.load("base"):
        with loadspan.stage("cache", cache_hit=False):
            pass
        with loadspan.stage("compile"):
            rest(0.02)
    assert cost(spans.load()) >= 0.02


def test_inner_and_outer_load_both_tell_of_the_miss(spans: Spans) -> None:
    with loadspan.load("pipeline"), loadspan.load("unet"):
        with loadspan.stage("cache", cache_hit=False):
            pass
        with loadspan.stage("decrypt", size=MB):
            rest(0.02)
    load = spans.load()
    assert cost(load) == pytest.approx(cost(load["children"][0]), abs=0.002)
    assert cost(load) >= 0.02


def test_fine_calls_before_the_miss_are_no_cost_of_it(spans: Spans) -> None:
    with loadspan.load("base"):
        for _ in range(40):
            fine(spans.recorder, "read", MB, seconds=0.001)
        with loadspan.stage("cache", cache_hit=False):
            pass
        fine(spans.recorder, "read", MB, seconds=0.02)
    load = spans.load()
    assert 0.02 <= cost(load) < 0.04


def test_small_segments_are_left_alone(spans: Spans, name: str) -> None:
    with loadspan.load("base"), made(name, MB - 1):
        shared_memory.SharedMemory(name).close()
    assert caches(spans.load()) == []


def test_without_a_load_a_lookup_that_fails_opens_none(spans: Spans, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(name)
    assert spans.loads() == []


def test_segments_that_nothing_is_loaded_from_are_no_load(spans: Spans, name: str) -> None:
    with made(name):
        shared_memory.SharedMemory(name).close()
    assert spans.loads() == []


def test_an_attached_segment_begins_the_load_that_what_follows_belongs_to(spans: Spans, name: str) -> None:
    import safetensors.torch
    import torch

    size = 2_000_000
    with made(name, size * 2):
        spans.finish()
        segment = shared_memory.SharedMemory(name)
        data = safetensors.torch.save({"weight": torch.zeros(500, 1000)})
        module = layer()
        module.load_state_dict(safetensors.torch.load(data))
        segment.close()
    loads = spans.loads()
    assert outline(loads) == [{"load model": ["cache", "deserialize", "load_state_dict"]}]
    assert loads[0]["attributes"]["loadspan.implicit"] is True
    assert caches(loads[0]) == [(True, 2 * size, True)]


def test_two_switches_to_models_in_shared_memory_are_two_loads(spans: Spans, name: str) -> None:
    import torch

    spans.set(idle_timeout=0.05)
    with made(name):
        spans.finish()
        for _ in range(2):
            segment = shared_memory.SharedMemory(name)
            weight = torch.frombuffer(segment.buf, dtype=torch.float32, count=500_000).view(500, 1000)
            layer().load_state_dict({"weight": weight})
            del weight
            segment.close()
            rest(0.3)
    assert [outline(load["children"]) for load in spans.loads()] == [["cache", "load_state_dict"]] * 2


def test_nothing_of_the_hosts_memory_is_kept_alive(spans: Spans, name: str) -> None:
    segment = shared_memory.SharedMemory(name, create=True, size=LARGE)
    gone = weakref.ref(segment)
    gc.disable()
    try:
        segment.close()
        del segment
        assert gone() is None
    finally:
        gc.enable()
    spans.finish()


@pytest.mark.usefixtures("spans")
def test_errors_are_the_hosts_own(name: str) -> None:
    def calls() -> list[Any]:
        return [
            failure(lambda: shared_memory.SharedMemory(name)),
            failure(lambda: shared_memory.SharedMemory(name, create=True, size=-1)),
            failure(lambda: shared_memory.SharedMemory(name, create=True)),
            failure(shared_memory.SharedMemory),
            failure(lambda: shared_memory.SharedMemory(name, size=LARGE, more=None)),  # type: ignore[call-arg]
        ]

    with loadspan.load("base"):
        ours = calls()
    loadspan.LoadspanInstrumentor().uninstrument()
    assert [found[:2] for found in ours] == [found[:2] for found in calls()]


def test_a_segment_that_is_there_already_fails_as_it_does_and_the_stage_says_so(spans: Spans, name: str) -> None:
    with made(name), loadspan.load("base"), pytest.raises(FileExistsError):
        shared_memory.SharedMemory(name, create=True, size=LARGE)
    load = spans.loads()[-1]
    assert the(load, "cache")["error.type"] == "FileExistsError"


def test_threads_that_attach_at_once_are_all_counted(spans: Spans, name: str) -> None:
    with made(name):
        spans.finish()
        with loadspan.load("base"):
            threads = [threading.Thread(target=lambda: shared_memory.SharedMemory(name).close()) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    load = spans.loads()[-1]
    assert sum(size for _, size, _ in caches(load)) == 8 * LARGE
    assert {hit for hit, _, _ in caches(load)} == {True}


def test_a_file_in_shared_memory_is_a_hit_of_the_stage_that_maps_it(spans: Spans, name: str) -> None:
    import numpy as np
    import safetensors.torch

    path = f"/dev/shm/{name}"  # noqa: S108 - as above
    safetensors.torch.save_file(state(20), path)
    with loadspan.load("base"):
        safetensors.torch.load_file(path)
    with loadspan.load("raw"):
        assert np.memmap(path, mode="r").nbytes > 20 * MB
    os.unlink(path)  # noqa: PTH108 - plain text
    base, raw = spans.loads()
    assert the(base, "deserialize")["loadspan.cache.hit"] is True
    assert the(raw, "read")["loadspan.cache.hit"] is True
    assert the(raw, "read")["loadspan.deferred"] is True


def state(megabytes: int = 4) -> dict[str, Any]:
    import torch

    return {f"p{index}": torch.full((1 << 18,), float(index)) for index in range(megabytes)}


def test_what_torch_shares_is_put_into_the_cache_once(spans: Spans) -> None:
    tensors = state()
    with loadspan.load("base"):
        for tensor in tensors.values():
            tensor.share_memory_()
        for tensor in tensors.values():
            tensor.share_memory_()
    load = spans.load()
    stage = the(load, "cache")
    assert (stage["loadspan.size"], stage["loadspan.operation.count"]) == (4 * MB, 4)
    assert "loadspan.cache.hit" not in stage
    assert "loadspan.cache.hit" not in load["attributes"]


def test_a_module_that_is_shared_is_no_move(spans: Spans) -> None:
    with loadspan.load("base"):
        layer().share_memory()
    load = spans.load()
    assert outline(load["children"]) == ["cache"]
    assert the(load, "cache")["loadspan.size"] == 2_000_000


@pytest.mark.parametrize("strategy", ["file_descriptor", "file_system"])
def test_tensors_of_another_process_are_attached(spans: Spans, strategy: str) -> None:
    import torch
    import torch.multiprocessing

    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy(strategy)
    try:
        received, answered, lent = torch.multiprocessing.SimpleQueue(), torch.multiprocessing.SimpleQueue(), shared()
        child = torch.multiprocessing.get_context("fork").Process(target=lend, args=(received, answered, lent))
        child.start()
        with loadspan.load("base"):
            tensors = received.get()
        total = {key: float(tensor.sum()) for key, tensor in tensors.items()}
        answered.put("done")
        child.join()
        del lent
    finally:
        torch.multiprocessing.set_sharing_strategy(before)
    assert total == {key: float(tensor.sum()) for key, tensor in state().items()}
    assert caches(spans.load()) == [(True, 4 * MB, True)]


def lend(queue: Any, answer: Any, tensors: dict[str, Any]) -> None:
    queue.put(tensors)  # made and shared before the fork: torch's threads do not survive one
    answer.get()


def shared() -> dict[str, Any]:
    return {key: tensor.share_memory_() for key, tensor in state().items()}


def test_what_a_data_loader_sends_is_no_load(spans: Spans) -> None:
    import torch.multiprocessing

    queue, answered = torch.multiprocessing.SimpleQueue(), torch.multiprocessing.SimpleQueue()
    child = torch.multiprocessing.get_context("fork").Process(target=lend, args=(queue, answered, shared()))
    child.start()
    queue.get()
    answered.put("done")
    child.join()
    assert spans.loads() == []


def test_the_finding_names_what_the_miss_cost() -> None:
    found = only({"loadspan.cache.miss_time": 4.0})
    assert (found.id, found.severity, found.seconds) == ("cache-missed", "major", 4.0)
    assert "4.00 s of 10.0 s" in found.sentence


def test_a_segment_of_another_process_is_a_hit(spans: Spans, name: str) -> None:
    code = (
        "import os; from multiprocessing import resource_tracker, shared_memory; "
        f"made = shared_memory.SharedMemory({name!r}, create=True, size={LARGE}); "
        "resource_tracker.unregister(made._name, 'shared_memory'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with loadspan.load("base"):
        shared_memory.SharedMemory(name).close()
    assert caches(spans.load()) == [(True, LARGE, True)]
