"""Big files read through `open`: the host gets what it would have, and every byte is counted where it was read."""

from __future__ import annotations

import builtins
import copy
import gc
import inspect
import io
import os
import pickle
import resource
import subprocess
import sys
import traceback
import types
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bigfiles import BUFFERED_WAYS, ORIGINAL, SIZE, WAYS, digest, random_bytes, reads, sparse

import loadspan
from loadspan import LoadspanInstrumentor

if TYPE_CHECKING:
    from collections.abc import Callable

    from recorded import Spans


# Two bytes at a time, or a line byte by byte, would take minutes.
SIZES = {
    way: [size for size in (0, 2, 100_000) if not (size == 2 and "chunks" in way) and not (size == 0 and way == "lines")] for way in WAYS
}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bytes(tmp_path_factory.mktemp("big") / "weights.bin")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.bin"
    path.write_bytes(b"x" * 5000)
    return path


def is_ours(file: Any) -> bool:
    return type(getattr(file, "raw", file)) is not io.FileIO


# The replacement


def test_every_name_of_open_is_one_object_and_the_original_comes_back(recording: Callable[..., Spans]) -> None:
    import _io

    recording()
    assert builtins.open is io.open is _io.open
    assert open is not ORIGINAL["open"]
    LoadspanInstrumentor().uninstrument()
    assert builtins.open is io.open is _io.open is ORIGINAL["open"]


@pytest.mark.usefixtures("spans")
def test_open_looks_like_the_original() -> None:
    original = ORIGINAL["open"]
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__text_signature__", "__self__"):
        assert getattr(open, name) == getattr(original, name)
    assert repr(open) == repr(original)
    assert inspect.signature(open) == inspect.signature(original)
    assert inspect.isbuiltin(open)
    assert isinstance(open, types.BuiltinFunctionType)
    assert weakref.ref(open)() is open


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_open_pickles_and_copies_by_reference(recording: Callable[..., Spans], protocol: int) -> None:
    before = pickle.dumps(ORIGINAL["open"], protocol)
    recording()
    assert pickle.dumps(open, protocol) == before
    assert pickle.loads(before) is open  # noqa: S301 - our own
    assert copy.deepcopy(open) is copy.copy(open) is open


@pytest.mark.usefixtures("spans")
def test_open_as_the_attribute_of_a_class_is_no_method(small: Path) -> None:
    class Reader:
        opener = open

    with Reader().opener(small, "rb") as file:
        assert len(file.read()) == 5000


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("missing", "rb"), {}),
        (("missing",), {"mode": "r"}),
        ((".", "rb"), {}),
        (("x", "rz"), {}),
        (("x", "rb"), {"encoding": "utf-8"}),
        (("x", "rb", 0, None, None, None, False), {}),
        ((), {}),
        (("x",), {"self": 1}),
        ((987_654, "rb"), {}),
        (("x\0y", "rb"), {}),
        (("x", "rb"), {"opener": lambda *_: -5}),
    ],
    ids=repr,
)
def test_open_fails_as_the_original_does(recording: Callable[..., Spans], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    def failure() -> tuple[type, Any, list[str]]:
        try:
            builtins.open(*args, **kwargs)  # noqa: PTH123, SIM115 - what is tested, and it fails
        except Exception as error:  # noqa: BLE001 - compared with another
            return type(error), error.args, [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        raise AssertionError

    kind, values, frames = failure()
    recording()
    assert failure() == (kind, values, [*frames, "__call__"])


@pytest.mark.usefixtures("spans")
def test_the_original_is_called_once_with_the_very_arguments(big: Path) -> None:
    calls = []

    def opener(path: str, flags: int) -> int:
        calls.append((path, flags))
        return os.open(path, flags)

    with open(str(big), "rb", opener=opener) as file:
        assert digest(file.read()) == digest(big.read_bytes())
    assert calls == [(str(big), os.O_RDONLY | os.O_CLOEXEC)]


# What it returns


@pytest.mark.parametrize("way", [*WAYS, *BUFFERED_WAYS])
def test_a_big_file_reads_as_before(recording: Callable[..., Spans], big: Path, way: str) -> None:
    read = {**WAYS, **BUFFERED_WAYS}[way]
    with big.open("rb") as file:
        before = read(file)
    recording()
    with big.open("rb") as file:
        assert is_ours(file)
        assert read(file) == before


@pytest.mark.parametrize(("way", "buffering"), [(way, size) for way in WAYS for size in SIZES[way]])
def test_a_big_file_reads_as_before_with_another_buffer_or_none(
    recording: Callable[..., Spans], big: Path, way: str, buffering: int
) -> None:
    with big.open("rb", buffering) as file:
        before = WAYS[way](file)
    recording()
    with big.open("rb", buffering) as file:
        assert is_ours(file)
        assert isinstance(file, io.BufferedReader if buffering else io.FileIO)
        assert WAYS[way](file) == before


def test_a_detached_raw_file_reads_on(spans: Spans, big: Path) -> None:
    with loadspan.load(), big.open("rb").detach() as raw:
        assert digest(raw.read()) == digest(Path(big).read_bytes())
        assert raw.name == str(big)
    assert reads(spans.load())["attributes"]["loadspan.size"] == 2 * SIZE


@pytest.mark.usefixtures("spans")
def test_a_raw_file_is_a_file_io_of_the_same_name(big: Path) -> None:
    with big.open("rb") as file:
        assert isinstance(file.raw, io.FileIO)
        assert type(file.raw).__name__ == "FileIO"
        assert weakref.ref(file)() is file
        with pytest.raises(TypeError, match="cannot pickle"):
            pickle.dumps(file.raw)


def test_bytes_and_relative_names_stay_what_they_are(spans: Spans, big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(big.parent)
    with open(os.fsencode(big.name), "rb") as named, open(big.name, "rb") as relative:  # noqa: PTH123 - what is tested
        assert named.name == os.fsencode(big.name)
        assert relative.name == big.name
        with loadspan.load():
            relative.read()
    assert reads(spans.load())["attributes"]["file.path"] == str(big)


@pytest.mark.usefixtures("spans")
def test_files_of_others_and_all_that_is_not_a_big_binary_read_are_left_alone(big: Path, small: Path, tmp_path: Path) -> None:
    fd = os.open(big, os.O_RDONLY)
    writable = sparse(tmp_path / "writable", SIZE)
    with (
        open(fd, "rb", closefd=False) as lent,
        open(fd, "rb") as given,  # noqa: PTH123 - as above
        open(big, "rb", opener=os.open) as opened,
        open(small, "rb") as little,  # noqa: PTH123 - as above
        open("/dev/zero", "rb") as device,  # noqa: PTH123 - as above
        open(writable, "r+b") as both,  # noqa: PTH123 - as above
        open(writable, "r+b", 0) as unbuffered,  # noqa: PTH123 - as above
        open(big, encoding="latin-1") as text,  # noqa: PTH123 - as above
    ):
        assert given.fileno() == fd
        assert type(text) is io.TextIOWrapper
        assert type(both) is io.BufferedRandom
        assert [is_ours(file) for file in (lent, given, opened, little, device, both, unbuffered, text.buffer)] == [False] * 8


def test_a_file_left_open_is_warned_of_as_before(recording: Callable[..., Spans], big: Path) -> None:
    def warned() -> list[tuple[str, str]]:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            big.open("rb")
            big.open("rb", 0)
            gc.collect()
        return [(str(warning.message), Path(warning.filename).name) for warning in found]

    before = warned()
    assert len(before) == 2
    recording()
    assert warned() == before


@pytest.mark.usefixtures("spans")
def test_no_descriptor_is_left_behind(big: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers only
    files = [big.open("rb") for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before + 20  # noqa: PTH208 - as above
    for file in files:
        file.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


@pytest.mark.usefixtures("spans")
def test_without_descriptors_to_spare_the_file_stays_the_original(big: Path) -> None:
    import loadspan.guard

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    loadspan.guard.raising = False
    probe = os.open(big, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 1, hard))
    try:
        with big.open("rb") as file:
            assert not is_ours(file)
            assert file.read(5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_small_and_text_files_cost_one_call_and_one_fstat(spans: Spans, small: Path) -> None:
    path = str(small)
    events: list[tuple[str, str]] = []

    def profile(frame: Any, event: str, called: Any) -> None:
        if event == "call":
            events.append(("call", frame.f_code.co_name))
        elif event == "c_call":
            events.append(("c_call", called.__name__))

    def opened(mode: str) -> list[str]:
        events.clear()
        sys.setprofile(profile)
        try:
            file = builtins.open(path, mode)  # noqa: PTH123, SIM115 - nothing else may be called here
        finally:
            sys.setprofile(None)
        file.close()
        return [name for _, name in events if name != "setprofile"]

    text = opened("r")
    assert [name for name in text if "codecs" not in name and name not in ("getstate", "__init__")] == ["__call__", "open"]
    assert opened("rb") == ["__call__", "open", "safely", "_recorded", "fileno", "fstat"]
    assert spans.loads() == []


def test_nothing_is_replaced_where_file_reads_are_off(big: Path) -> None:
    program = """
import builtins, io, mmap, sys
import numpy as np
original = [builtins.open, mmap.mmap, np.fromfile, vars(np.memmap)["__new__"]]
from opentelemetry.sdk.trace import TracerProvider
from loadspan import LoadspanInstrumentor
LoadspanInstrumentor().instrument(tracer_provider=TracerProvider())
now = [builtins.open, mmap.mmap, np.fromfile, vars(np.memmap)["__new__"]]
assert all(a is b for a, b in zip(original, now)), now
assert type(open(sys.argv[1], "rb").raw) is io.FileIO
"""
    environment = os.environ | {"LOADSPAN_FILE_READS": "off"}
    subprocess.run([sys.executable, "-c", program, str(big)], check=True, env=environment)


def test_a_program_that_uses_files_until_the_interpreter_is_gone_ends_as_before(big: Path) -> None:
    instrument = """
from opentelemetry.sdk.trace import TracerProvider
from loadspan import LoadspanInstrumentor
LoadspanInstrumentor().instrument(tracer_provider=TracerProvider())
"""
    program = """
import mmap, os, sys
keep = open(sys.argv[1], "rb")
for _ in range(100):
    keep.read(10_000)
class Late:
    def __del__(self, opener=open, path=sys.argv[1], mmap=mmap.mmap, write=os.write):
        with opener(path, "rb") as file:
            write(1, b"%d %d" % (len(file.read(6_000_000)), len(mmap(file.fileno(), 0, access=1))))
late = Late()
late.late = late
"""

    def run(program: str) -> tuple[str, str]:
        result = subprocess.run([sys.executable, "-c", program, str(big)], check=True, capture_output=True, text=True)
        return result.stdout, result.stderr

    before = run(program)
    assert before[0] == f"6000000 {SIZE}"
    assert run(instrument + program) == before
