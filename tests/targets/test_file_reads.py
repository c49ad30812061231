"""What is recorded of reads of big files: every byte once, where it was read, and nothing that was not measured."""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import resource
import threading
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bigfiles import MIB, ORIGINAL, SIZE, archive, digest, random_bytes, reads

import loadspan
from loadspan import LoadspanInstrumentor
from loadspan.instrument import state
from loadspan.instrument.live import recorder
from recorded import outline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recorded import Spans


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bytes(tmp_path_factory.mktemp("big") / "weights.bin")


def test_a_read_has_its_bytes_its_file_and_its_method(spans: Spans, big: Path) -> None:
    with loadspan.load("model"):
        big.read_bytes()
    load = spans.load()
    assert outline(load) == [{"load model": ["read"]}]
    attributes = reads(load)["attributes"]
    assert attributes["loadspan.size"] == attributes["file.size"] == attributes["loadspan.io.read"] == SIZE
    assert attributes["file.path"] == str(big)
    assert attributes["loadspan.read.method"] == "buffered"
    assert attributes["loadspan.throughput"] == pytest.approx(SIZE / attributes["loadspan.busy_time"])
    assert load["attributes"]["loadspan.size"] == SIZE


@pytest.mark.parametrize("chunk", [4096, 8192, 64 << 10, MIB])
def test_every_byte_and_raw_read_of_many_is_counted(spans: Spans, big: Path, chunk: int) -> None:
    with loadspan.load("model"), big.open("rb", 0) as file:
        count = sum(1 for _ in iter(lambda: file.read(chunk), b""))
    with loadspan.load("model"), big.open("rb") as file:
        while file.read(chunk):
            pass
    unbuffered, buffered = spans.loads()
    assert reads(unbuffered)["attributes"]["loadspan.operation.count"] == count + 1
    for load in (unbuffered, buffered):
        attributes = reads(load)["attributes"]
        assert attributes["loadspan.size"] == SIZE
        assert attributes["loadspan.concurrency"] == 1
        assert attributes["loadspan.busy_time"] <= reads(load)["duration"]
        parts = [value for name, value in load["attributes"].items() if name.startswith("loadspan.partition.")]
        assert sum(parts) == pytest.approx(load["duration"], abs=2e-6)
        assert load["attributes"]["loadspan.partition.read"] == pytest.approx(attributes["loadspan.busy_time"], rel=0.02)


def test_the_state_of_a_load_has_every_byte_of_reads_that_go_on(spans: Spans, big: Path) -> None:
    buffer, size = bytearray(4096), 0
    with loadspan.load("model"), big.open("rb", 0) as file:
        while size < SIZE // 2:
            size += file.readinto(buffer)
        told = state._state(recorder, recorder.loads, ended=False)  # noqa: SLF001 - the file has what the sampler wrote last
    (load,) = told["loads"]
    assert (load["size"], [(stage["name"], stage["size"]) for stage in load["stages"]]) == (size, [("read", size)])
    assert spans.load()["attributes"]["loadspan.size"] == size


def test_reads_between_other_work_take_no_time_of_it(spans: Spans, big: Path) -> None:
    with loadspan.load("outer"), loadspan.load("model"), loadspan.stage("decrypt", size=SIZE), big.open("rb") as file:
        for chunk in iter(lambda: file.read(32 << 10), b""):
            digest(chunk)
    (outer,) = spans.loads()
    (model,) = outer["children"]
    assert outline(model) == [{"load model": [{"decrypt": ["read"]}]}]
    decrypt, read = model["children"][0], reads(model)
    assert read["attributes"]["loadspan.size"] == SIZE
    busy = read["attributes"]["loadspan.busy_time"]
    for load in (outer, model):
        assert load["attributes"]["loadspan.partition.read"] == pytest.approx(busy, rel=0.02)
    own, ours = (model["attributes"].get(f"loadspan.partition.{part}", 0.0) for part in ("decrypt", "loadspan"))
    left = decrypt["duration"] - busy  # its own work, and what loadspan did around the first reads
    assert 0.98 * (left - ours) <= own <= 1.02 * left
    assert decrypt["attributes"]["loadspan.busy_time"] == pytest.approx(left, rel=0.02)


def test_reads_inside_a_declared_read_are_its_bytes(spans: Spans, big: Path) -> None:
    with loadspan.load(), loadspan.stage("read"), big.open("rb") as file:
        while file.read(MIB):
            pass
    assert reads(spans.load())["attributes"]["loadspan.size"] == SIZE


def test_a_file_opened_before_a_load_and_one_read_after_it_count_where_they_are_read(spans: Spans, big: Path) -> None:
    with big.open("rb") as file:
        with loadspan.load("first"):
            file.read(10 * MIB)
            other = big.open("rb")
        spans.finish()
        assert file.read(5) == other.read(10 * MIB + 5)[-5:]
        with loadspan.load("second"):
            file.read()
            other.close()
    sizes = {load["attributes"].get("loadspan.model.name"): load["attributes"]["loadspan.size"] for load in spans.loads()}
    ahead = 8192  # what the buffer may have read ahead
    assert sizes["first"] in range(10 * MIB, 10 * MIB + ahead)
    assert sizes[None] in range(10 * MIB, 10 * MIB + 2 * ahead)
    assert sizes["second"] in range(SIZE - 10 * MIB - ahead, SIZE - 10 * MIB + 1)


def test_a_file_opened_before_we_are_removed_reads_on(recording: Callable[..., Spans], big: Path) -> None:
    spans = recording()
    with big.open("rb") as file:
        first = file.read(MIB)
        LoadspanInstrumentor().uninstrument()
        assert digest(first + file.read()) == digest(big.read_bytes())
    assert spans.load()["attributes"]["loadspan.size"] < 2 * MIB


def test_one_handle_and_many_handles_of_many_threads_give_all_bytes_once(spans: Spans, big: Path) -> None:
    expected = big.read_bytes()
    spans.finish()
    pieces: list[bytes] = []

    def shared(file: Any) -> None:
        pieces.extend(iter(lambda: file.read(48 << 10), b""))

    def own() -> None:
        with big.open("rb") as file:
            assert digest(b"".join(iter(lambda: file.read(24 << 10), b""))) == digest(expected)

    def run(target: Callable[..., None], *args: Any) -> None:
        threads = [threading.Thread(target=target, args=args) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with loadspan.load("shared"), big.open("rb") as file:
        run(shared, file)
    with loadspan.load("own"):
        run(own)
    assert sorted(map(digest, pieces)) == sorted(digest(expected[start : start + (48 << 10)]) for start in range(0, SIZE, 48 << 10))
    sizes = {load["attributes"].get("loadspan.model.name"): reads(load)["attributes"]["loadspan.size"] for load in spans.loads()[-2:]}
    assert sizes == {"shared": SIZE, "own": 4 * SIZE}


def test_a_forked_child_reads_a_handle_of_its_parent(spans: Spans, big: Path) -> None:
    with loadspan.load("model"), big.open("rb") as file:
        for _ in range(20):
            file.read(8192)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if len(file.read(8192)) == 8192 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert reads(spans.load())["attributes"]["loadspan.size"] == 20 * 8192


def test_pickles_archives_and_arrays_are_counted_to_the_byte(spans: Spans, tmp_path: Path) -> None:
    pickled, packed, array = tmp_path / "a.pickle", archive(tmp_path / "a.zip"), tmp_path / "a.npy"
    pickled.write_bytes(pickle.dumps({"weights": os.urandom(SIZE)}))
    np.save(array, np.arange(3 * MIB))

    def unpickle() -> Any:
        with pickled.open("rb") as file:
            return pickle.load(file)  # noqa: S301 - our own

    def unpack() -> Any:
        with zipfile.ZipFile(packed) as file:
            return file.read("weights")

    for path, work in ((pickled, unpickle), (packed, unpack), (array, lambda: np.load(array))):
        with loadspan.load(path.name):
            work()
        attributes = reads(spans.loads()[-1])["attributes"]
        assert attributes["loadspan.size"] in range(path.stat().st_size - 16, path.stat().st_size + 32768)
        assert attributes["file.path"] == str(path)


def test_torch_loads_from_an_open_file(spans: Spans, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "model.pt"
    torch.save({"weight": torch.arange(5 * MIB)}, path)
    with loadspan.load("model"), path.open("rb") as file:
        assert torch.load(file)["weight"].sum() == torch.arange(5 * MIB).sum()
    assert reads(spans.load())["attributes"]["loadspan.size"] >= 40 * MIB


def test_a_cold_read_tells_what_storage_delivered(spans: Spans, tmp_path: Path) -> None:
    path = tmp_path / "cold.bin"
    path.write_bytes(os.urandom(SIZE))

    def evict() -> None:
        with ORIGINAL["open"](path, "r+b", 0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def delivered(work: Callable[[], Any]) -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
        work()
        return (resource.getrusage(resource.RUSAGE_THREAD).ru_inblock - before) * 512

    evict()
    with ORIGINAL["open"](path, "rb", 0) as file:
        if delivered(file.readall) < SIZE // 2:
            pytest.skip("this filesystem does not count, or does not let go of its cache")
    for chunk in (-1, 16 << 10):
        evict()
        with loadspan.load(str(chunk)), path.open("rb") as file:
            while file.read(chunk):
                pass
        with loadspan.load("warm"), path.open("rb") as file:
            while file.read(chunk):
                pass
        cold, warm = (reads(load)["attributes"] for load in spans.loads()[-2:])
        assert cold["loadspan.io.storage_read"] >= SIZE * 0.9
        assert cold["loadspan.cache.cold"] > 0.9
        assert warm["loadspan.cache.cold"] < 0.1


def test_direct_reads_are_called_direct(spans: Spans, big: Path) -> None:
    with loadspan.load(), big.open("rb", 0) as file, mmap.mmap(-1, MIB) as aligned:
        try:
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
            assert file.readinto(aligned) == MIB
        except OSError:
            pytest.skip("no direct reads here")
    assert reads(spans.load())["attributes"]["loadspan.read.method"] == "direct"
