"""The same load from a cold and from a warm page cache, by each way of reading: what came from the disk, and where it was waited for."""

from __future__ import annotations

import fcntl
import mmap
import os
from multiprocessing import shared_memory
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pages import MIB, SIZE, chill, heat, make, on_disk, undisturbed

import loadspan
from recorded import outline, walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from recorded import Spans

SHARED = "/dev/shm"  # noqa: S108 - no file of ours is made there by name
BLOCK = 4 * MIB


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    on_disk(folder)
    return make(folder / "weights.bin")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("model")
    on_disk(folder)
    save_file({f"{number}.weight": torch.randn(1024, 1024) for number in range(12)}, folder / "model.safetensors")
    return folder / "model.safetensors"


def buffered(path: Path) -> None:
    path.read_bytes()


def direct(path: Path) -> None:
    with path.open("rb", buffering=0) as file, mmap.mmap(-1, BLOCK) as aligned:
        try:
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
        except OSError:
            pytest.skip("the filesystem has no O_DIRECT")
        while file.readinto(aligned):
            pass


def by_numpy(path: Path) -> None:
    array = np.memmap(path, np.uint8, "r")
    with loadspan.stage("convert", size=len(array)):
        array[:: mmap.PAGESIZE].sum()


def by_mmap(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping, loadspan.stage("convert"):
        memoryview(mapping)[:: mmap.PAGESIZE].tolist()


def by_safetensors(path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(path)
    with loadspan.stage("convert"):
        for name in state:
            state[name] = state[name].clone()


def into_module(path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    with torch.device("meta"):
        module = torch.nn.ModuleList(torch.nn.Linear(1024, 1024, bias=False) for _ in range(12))
    module.to_empty(device="cpu").load_state_dict(load_file(path))


def loaded(spans: Spans, way: Callable[[Path], None], path: Path) -> dict[str, Any]:
    with loadspan.load("model"):
        way(path)
    return spans.loads()[-1]


def stages(load: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = [span for span in walk(load) if span is not load]
    assert len({span["name"] for span in found}) == len(found), outline(load)
    return {span["name"]: span["attributes"] for span in found}


def near(size: int) -> Any:
    return pytest.approx(size, rel=0.01)


WAYS: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "buffered": (buffered, "weights", "read", "buffered"),
    "numpy.memmap": (by_numpy, "weights", "read", "mmap"),
    "mmap": (by_mmap, "weights", "read", "mmap"),
    "safetensors": (by_safetensors, "model", "deserialize", "mmap"),
    "load_state_dict": (into_module, "model", "deserialize", "mmap"),
}
ALL = pytest.mark.parametrize("way", WAYS)


@ALL
def test_a_cold_load_has_all_its_bytes_from_the_disk_and_waits_for_them(spans: Spans, request: pytest.FixtureRequest, way: str) -> None:
    run, fixture, first, method = WAYS[way]
    path: Path = request.getfixturevalue(fixture)
    size = path.stat().st_size
    loaded(spans, run, path)  # what the program itself reads from the disk at the first time is not the load's
    load = undisturbed(path, chill, lambda: loaded(spans, run, path), 1.0, size * 1.01)
    found = load["attributes"]
    assert found["loadspan.cache.residency"] == pytest.approx(0, abs=0.02)
    assert found["loadspan.io.storage_read"] == near(size)
    assert found["loadspan.blocked_time"] > 0
    parts = stages(load)
    assert parts[first]["loadspan.read.method"] == method
    assert parts[first]["loadspan.cache.residency"] == found["loadspan.cache.residency"]
    assert sum(part["loadspan.io.storage_read"] for part in parts.values()) == near(size)
    if method == "buffered":
        assert parts[first]["loadspan.cache.cold"] == pytest.approx(1, abs=0.01)
        assert parts[first]["loadspan.io.read"] == size
    else:
        # The bytes of a mapping come when they are touched.
        assert parts[first]["loadspan.deferred"] is True
        assert "loadspan.cache.cold" not in parts[first]
        assert found["loadspan.io.read"] < 0.05 * size


@ALL
def test_a_warm_load_has_nothing_from_the_disk(spans: Spans, request: pytest.FixtureRequest, way: str) -> None:
    run, fixture, first, method = WAYS[way]
    path: Path = request.getfixturevalue(fixture)
    load = undisturbed(path, heat, lambda: loaded(spans, run, path), 1.0, 0)
    found = load["attributes"]
    assert (found["loadspan.cache.residency"], found["loadspan.io.storage_read"]) == (1.0, 0)
    parts = stages(load)
    assert parts[first]["loadspan.read.method"] == method
    assert {part["loadspan.io.storage_read"] for part in parts.values()} == {0}
    assert parts[first].get("loadspan.cache.cold") == (0.0 if method == "buffered" else None)


def test_half_a_file_in_the_cache_is_half_a_file_from_the_disk(spans: Spans, weights: Path) -> None:
    def halve(path: Path) -> None:
        heat(path)
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), SIZE // 2, SIZE // 2, os.POSIX_FADV_DONTNEED)

    load = undisturbed(weights, halve, lambda: loaded(spans, buffered, weights), 1.0, SIZE * 0.52)
    found, (read,) = load["attributes"], stages(load).values()
    assert found["loadspan.cache.residency"] == read["loadspan.cache.residency"] == pytest.approx(0.5, abs=0.02)
    assert read["loadspan.cache.cold"] == pytest.approx(0.5, abs=0.02)
    assert found["loadspan.io.storage_read"] == pytest.approx(SIZE / 2, rel=0.04)


@pytest.mark.parametrize(("prepare", "share"), [(chill, 0.0), (heat, 1.0)])
def test_a_direct_read_has_all_its_bytes_from_the_disk_whatever_is_cached(
    spans: Spans, weights: Path, prepare: Callable[[Path], None], share: float
) -> None:
    load = undisturbed(weights, prepare, lambda: loaded(spans, direct, weights), share)
    found, (read,) = load["attributes"], stages(load).values()
    assert read["loadspan.read.method"] == "direct"
    assert found["loadspan.cache.residency"] == read["loadspan.cache.residency"] == share
    assert found["loadspan.io.storage_read"] == read["loadspan.io.storage_read"] == near(SIZE)
    assert read["loadspan.io.read"] == SIZE
    assert found["loadspan.blocked_time"] > 0
    # The page cache had no part in it: that says nothing about whether it was warm.
    assert "loadspan.cache.cold" not in read


def test_direct_reads_of_a_descriptor_are_seen_by_a_stage_around_them(spans: Spans, weights: Path) -> None:
    def by_descriptor(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with loadspan.stage("read", path=path) as stage, mmap.mmap(-1, BLOCK) as aligned:
            while count := os.readv(descriptor, [aligned]):
                stage.add(count)
        os.close(descriptor)

    load = undisturbed(weights, heat, lambda: loaded(spans, by_descriptor, weights), 1.0)
    (read,) = stages(load).values()
    assert read["loadspan.size"] == SIZE
    assert read["loadspan.cache.residency"] == 1.0
    assert read["loadspan.io.storage_read"] == near(SIZE)


@pytest.mark.parametrize("way", [buffered, by_mmap, by_numpy])
def test_a_file_in_memory_is_told_by_its_filesystem(spans: Spans, way: Callable[[Path], None]) -> None:
    with NamedTemporaryFile(dir=SHARED) as file:
        load = loaded(spans, way, make(Path(file.name)))
    found, read = load["attributes"], stages(load)["read"]
    assert (read["system.filesystem.type"], read["loadspan.storage.kind"]) == ("tmpfs", "memory")
    assert read["loadspan.read.method"] == ("buffered" if way is buffered else "mmap")
    assert found["loadspan.io.storage_read"] == 0
    for span in (found, read):
        assert not {"loadspan.cache.residency", "loadspan.cache.cold", "system.device", "loadspan.disk.read"} & span.keys()


def test_shared_memory_that_a_program_attaches_is_no_read_and_a_stage_around_it_says_where_it_is(spans: Spans) -> None:
    memory = shared_memory.SharedMemory(create=True, size=SIZE)
    try:
        with loadspan.load("model"), loadspan.stage("cache", path=f"{SHARED}/{memory.name}", cache_hit=True) as stage:
            attached = shared_memory.SharedMemory(memory.name)
            stage.add(len(bytes(attached.buf)))
            attached.close()
    finally:
        memory.close()
        memory.unlink()
    (cache,) = stages(spans.loads()[-1]).items()
    assert cache[0] == "cache"
    assert (cache[1]["system.filesystem.type"], cache[1]["loadspan.storage.kind"]) == ("tmpfs", "memory")
    assert (cache[1]["loadspan.io.storage_read"], cache[1]["loadspan.size"]) == (0, SIZE)
    assert "loadspan.cache.residency" not in cache[1]


def test_bytes_that_are_in_memory_already_are_neither_cold_nor_warm(spans: Spans, model: Path) -> None:
    from safetensors.torch import load as load_bytes

    heat(model)
    with loadspan.load("model"):
        load_bytes(model.read_bytes())
    parts = stages(spans.loads()[-1])
    assert parts["deserialize"]["loadspan.read.method"] == "memory"
    assert "loadspan.cache.cold" not in parts["deserialize"]
    assert "loadspan.cache.residency" not in parts["deserialize"]
    assert parts["read"]["loadspan.cache.cold"] == 0.0


def test_what_a_disk_does_after_an_implicit_load_is_not_the_load_s(spans: Spans, model: Path, weights: Path) -> None:
    chill(model)
    by_safetensors(model)
    for _ in range(4):
        chill(weights)
        descriptor = os.open(weights, os.O_RDONLY)
        while os.read(descriptor, MIB):
            pass
        os.close(descriptor)
    load = spans.load()
    assert load["attributes"]["loadspan.implicit"] is True
    assert load["attributes"].get("loadspan.disk.read", 0) < 2 * model.stat().st_size
