"""Big files that are mapped or read past `open`: numpy and `mmap` stay what they are, and what they bring is counted once."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import mmap
import os
import pickle
import traceback
from multiprocessing import shared_memory
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bigfiles import MIB, ORIGINAL, SIZE, digest, reads, sparse

import loadspan
from loadspan import LoadspanInstrumentor
from recorded import outline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recorded import Spans

from numpy import fromfile as by_name  # a copy made before we come is what is tested


@pytest.fixture
def big(tmp_path: Path) -> Path:
    return sparse(tmp_path / "weights.bin", SIZE)


def mapped(path: Path, **options: Any) -> Any:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, **(options or {"access": mmap.ACCESS_READ}))


# mmap.mmap


def test_mmap_comes_back_and_pickles_by_reference(recording: Callable[..., Spans]) -> None:
    original = ORIGINAL["mmap"]
    recording()
    assert mmap.mmap is not original
    assert pickle.loads(pickle.dumps(mmap.mmap)) is mmap.mmap  # noqa: S301 - our own
    assert (mmap.mmap.__name__, mmap.mmap.__qualname__, mmap.mmap.__module__) == ("mmap", "mmap", "mmap")
    assert mmap.mmap.__doc__ == original.__doc__
    assert repr(mmap.mmap) == repr(original)
    assert [name for name in dir(original) if not hasattr(mmap.mmap, name)] == []
    assert mmap.mmap.find is original.find
    assert inspect.isclass(mmap.mmap)
    LoadspanInstrumentor().uninstrument()
    assert mmap.mmap is original


@pytest.mark.usefixtures("spans")
def test_mappings_are_of_the_original_type_and_pass_every_check(big: Path) -> None:
    original = ORIGINAL["mmap"]
    before = original(-1, 4096)
    now = mapped(big)
    assert type(now) is original
    assert type(now) == mmap.mmap  # noqa: E721 - the one comparison that fails is `is`
    assert {mmap.mmap: 1}[type(now)] == 1
    for mapping in (before, now):
        assert isinstance(mapping, mmap.mmap)
        assert isinstance(mapping, (bytes, mmap.mmap))
    assert issubclass(original, mmap.mmap)
    assert issubclass(mmap.mmap, original)
    assert not isinstance(b"", mmap.mmap)
    assert not issubclass(bytes, mmap.mmap)
    match now:
        case mmap.mmap():
            pass
        case _:
            raise AssertionError

    @functools.singledispatch
    def kind(_: Any) -> str:
        return "other"

    kind.register(mmap.mmap, lambda _: "mapping")
    assert kind(now) == "mapping"
    assert now[:5] == b"begin"


def test_classes_derive_from_mmap_and_live_on_without_us(recording: Callable[..., Spans], big: Path) -> None:
    spans = recording()

    class Mapping(mmap.mmap):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return super().__new__(cls, *args, **kwargs)

        def first(self) -> bytes:
            return self[:5]

    class Sized(mmap.mmap, collections.abc.Sized):
        pass

    mapping, sized = mapped_as(Mapping, big), Sized(-1, 4096)
    assert (type(mapping), type(sized)) == (Mapping, Sized)
    assert mapping.first() == b"begin"
    assert isinstance(mapping, mmap.mmap)
    assert isinstance(mapping, ORIGINAL["mmap"])
    assert isinstance(mapping, Mapping)
    assert not isinstance(mapped(big), Mapping)
    assert spans.load()["attributes"]["loadspan.size"] == 2 * SIZE
    LoadspanInstrumentor().uninstrument()
    assert isinstance(mapping, mmap.mmap)
    assert issubclass(Mapping, mmap.mmap)
    assert Mapping(-1, 4096).first() == bytes(5)


def mapped_as(kind: Any, path: Path) -> Any:
    with path.open("rb") as file:
        return kind(file.fileno(), 0, access=mmap.ACCESS_READ)


@pytest.mark.parametrize("args", [(), (-1, 0), (-1, -5), ("x", 5), (987_654, 5), (-1, 4096, 0)], ids=repr)
def test_mmap_fails_as_the_original_does(recording: Callable[..., Spans], args: tuple[Any, ...]) -> None:
    def failure() -> tuple[type, Any, int]:
        try:
            mmap.mmap(*args)
        except Exception as error:  # noqa: BLE001 - compared with another
            return type(error), error.args, len(traceback.extract_tb(error.__traceback__))
        raise AssertionError

    kind, values, frames = failure()
    recording()
    found = failure()
    assert found[:2] == (kind, values)
    assert found[2] <= frames + 3


def test_a_mapping_that_cannot_be_written_fails_as_the_original_does(spans: Spans, big: Path) -> None:
    with big.open("rb") as file, pytest.raises(PermissionError):
        mmap.mmap(file.fileno(), 0)
    assert spans.load()["children"][0]["error"]


def test_a_mapping_is_a_deferred_read_of_its_size_without_throughput(spans: Spans, big: Path) -> None:
    with loadspan.load("model"):
        assert digest(mapped(big)) == digest(big.read_bytes())
    with loadspan.load("protection"):
        mapped(big, prot=mmap.PROT_READ)
    attributes = reads(spans.loads()[1])["attributes"]
    assert attributes["loadspan.size"] == attributes["file.size"] == SIZE
    assert attributes["file.path"] == str(big)
    assert attributes["loadspan.deferred"] is True
    assert attributes["loadspan.read.method"] == "mmap"
    assert "loadspan.throughput" not in attributes
    assert "loadspan.io.read" not in attributes
    assert "loadspan.cache.cold" not in attributes


def test_memory_that_is_no_file_to_be_read_is_no_read(spans: Spans, big: Path, tmp_path: Path) -> None:
    with loadspan.load("model"):
        mmap.mmap(-1, 64 * MIB)
        mapped(sparse(tmp_path / "small", MIB))
        with big.open("rb") as file:
            mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_READ)
        with big.open("r+b") as file:
            mmap.mmap(file.fileno(), 0)
        memory = shared_memory.SharedMemory(create=True, size=32 * MIB)
        memory.close()
        memory.unlink()
    assert [child["name"] for child in spans.load()["children"] if child["name"] != "cache"] == []  # the shared memory


# numpy


def test_numpy_is_as_it_was_afterwards(recording: Callable[..., Spans]) -> None:
    from numpy._core import multiarray

    recording()
    assert np.fromfile is multiarray.fromfile is by_name
    assert np.fromfile is not ORIGINAL["fromfile"]
    assert pickle.loads(pickle.dumps(np.fromfile)) is np.fromfile  # noqa: S301 - our own
    assert np.fromfile.__doc__ == ORIGINAL["fromfile"].__doc__
    assert np.memmap.__new__.__doc__ == ORIGINAL["memmap"].__func__.__doc__
    LoadspanInstrumentor().uninstrument()
    assert np.fromfile is multiarray.fromfile is by_name is ORIGINAL["fromfile"]
    assert vars(np.memmap)["__new__"] is ORIGINAL["memmap"]


@pytest.mark.parametrize("how", ["path", "text", "file", "name"])
def test_fromfile_is_a_read_of_the_bytes_it_returns(spans: Spans, big: Path, how: str) -> None:
    with loadspan.load("model"), big.open("rb") as file:
        source = {"path": big, "text": str(big), "file": file, "name": big}[how]
        array = (by_name if how == "name" else np.fromfile)(source, dtype=np.uint8)
    assert array.nbytes == SIZE
    assert array[:5].tobytes() == b"begin"
    attributes = reads(spans.load())["attributes"]
    assert attributes["loadspan.size"] == attributes["loadspan.io.read"] == SIZE
    assert attributes["file.path"] == str(big)
    assert attributes["loadspan.read.method"] == "buffered"
    assert attributes["loadspan.operation.count"] == 1
    assert attributes["loadspan.throughput"] > 0


def test_fromfile_of_small_and_missing_files_is_left_alone(spans: Spans, tmp_path: Path) -> None:
    with loadspan.load("model"):
        np.fromfile(sparse(tmp_path / "small", 1000), np.uint8)
        with pytest.raises(FileNotFoundError):
            np.fromfile(tmp_path / "missing", np.uint8)
        with pytest.raises(TypeError):
            np.fromfile()  # type: ignore[call-overload] # what is tested
    assert [child["name"] for child in spans.load()["children"] if child["name"] != "cache"] == []  # the shared memory


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_memmap_is_one_deferred_read_of_the_mapping(spans: Spans, big: Path, mode: str) -> None:
    with loadspan.load("model"):
        array = np.memmap(big, np.uint8, mode)
    assert type(array) is np.memmap
    assert type(array._mmap) is ORIGINAL["mmap"]  # noqa: SLF001 - what numpy mapped through
    assert array[-3:].tobytes() == b"end"
    attributes = reads(spans.load())["attributes"]
    assert attributes["loadspan.size"] == SIZE
    assert attributes["loadspan.operation.count"] == 1
    assert attributes["loadspan.deferred"] is True
    assert attributes["loadspan.read.method"] == "mmap"
    assert "loadspan.throughput" not in attributes


def test_memmap_of_classes_and_open_files_is_counted_too(spans: Spans, big: Path) -> None:
    class Weights(np.memmap):
        pass

    with loadspan.load("model"), big.open("rb") as file:
        weights = Weights(file, dtype=np.uint8, mode="r", offset=MIB)
    assert type(weights) is Weights
    attributes = reads(spans.load())["attributes"]
    assert attributes["loadspan.size"] in range(SIZE - MIB, SIZE + 1)
    assert attributes["file.path"] == str(big)


def test_a_memmap_that_makes_a_file_is_no_read(spans: Spans, tmp_path: Path) -> None:
    with loadspan.load("model"):
        np.memmap(tmp_path / "made", np.uint8, "w+", shape=SIZE)
        np.lib.format.open_memmap(tmp_path / "made.npy", "w+", np.uint8, (SIZE,))
        with pytest.raises(FileNotFoundError):
            np.memmap(tmp_path / "missing", np.uint8, "r")
    assert spans.load()["children"] == []
    assert (tmp_path / "made").stat().st_size == SIZE


def test_numpy_load_counts_the_array_once_read_or_mapped(spans: Spans, tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.arange(3 * MIB))
    for mode in (None, "r"):
        with loadspan.load():
            assert int(np.load(path, mmap_mode=mode)[-1]) == 3 * MIB - 1
    read, deferred = (reads(load)["attributes"] for load in spans.loads())
    for attributes in (read, deferred):
        assert attributes["loadspan.size"] in range(24 * MIB, 24 * MIB + 16384)
    assert "loadspan.deferred" not in read
    assert deferred["loadspan.deferred"] is True


# Loads that only read


def test_two_loads_that_only_read_are_shown_and_the_rest_are_one(spans: Spans, tmp_path: Path) -> None:
    paths = [sparse(tmp_path / f"part{name}.bin", SIZE) for name in "abcdefgh"]
    for index, path in enumerate(paths):
        [path.read_bytes, lambda path=path: np.fromfile(path, np.uint8), lambda path=path: mapped(path)][index % 3]()
        for load in list(spans.recorder.implicit_loads()):
            spans.recorder._finish(load, load.last_end, None)  # noqa: SLF001 - as if its time were up
    loads = spans.loads()
    assert [load["attributes"].get("loadspan.folded.count") for load in loads] == [None, None, 6]
    assert loads[2]["attributes"]["loadspan.size"] == 6 * SIZE
    assert loads[2]["attributes"]["loadspan.partition.read"] == pytest.approx(loads[2]["attributes"]["loadspan.busy_time"])
    assert outline(loads[:2]) == [{"load model": ["read"]}] * 2
    assert loads[2]["children"] == []


def test_a_load_that_goes_on_after_its_reads_is_shown_each_time(spans: Spans, tmp_path: Path) -> None:
    for name in "abcd":
        sparse(tmp_path / f"part{name}.bin", SIZE).read_bytes()
        with loadspan.stage("decrypt", size=SIZE):
            digest(bytes(4 * MIB))
        spans.recorder._finish(spans.recorder.implicit_loads()[-1], 0, None)  # noqa: SLF001 - as if its time were up
    assert [sorted(outline(load)[0]["load model"]) for load in spans.loads()] == [["decrypt", "read"]] * 4


def test_a_load_that_only_reads_takes_no_file_after_a_pause_or_a_minute(spans: Spans, tmp_path: Path) -> None:
    first, second, third, shard, other = (sparse(tmp_path / name, SIZE) for name in ("a", "b", "c", "d-0001.bin", "d-0002.bin"))
    first.read_bytes()
    second.read_bytes()
    (load,) = spans.recorder.implicit_loads()
    load.last_end -= 2_000_000_000
    third.read_bytes()
    assert len(spans.recorder.implicit_loads()) == 2
    first.read_bytes()  # the very file goes on
    assert len(spans.recorder.implicit_loads()) == 2
    spans.finish()
    shard.read_bytes()
    (load,) = spans.recorder.implicit_loads()
    load.last_end -= 5_000_000_000
    other.read_bytes()
    assert len(spans.recorder.implicit_loads()) == 1
    load.start -= 61_000_000_000
    first.read_bytes()
    assert len(spans.recorder.implicit_loads()) == 2


def test_os_level_copies_and_sizes_of_files_are_nobodys_reads(spans: Spans, big: Path) -> None:
    fd = os.open(big, os.O_RDONLY)
    os.pread(fd, MIB, 0)
    os.close(fd)
    assert spans.loads() == []
