"""torch: checkpoints and state dicts. The host gets what it would have; bytes, format and file are those of the checkpoint."""

from __future__ import annotations

import io
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hosts import equal, failure, layer, the, told

import loadspan
from loadspan import LoadspanInstrumentor
from recorded import check, outline, walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recorded import Spans

MIB = 1 << 20
SIZE = 2_000_000
STATE = SIZE + 4000


class Block(torch.nn.Module):
    """A module of the host's own, pickled whole."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1000, 500)
        self.register_buffer("scale", torch.ones(500))


def checkpoint(path: Path, *, legacy: bool = False, elements: int = SIZE // 4) -> Path:
    torch.manual_seed(0)
    state = {"weight": torch.randn(elements), "nested": {"list": [torch.arange(1000, dtype=torch.int32)]}, "step": 7}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


def opened(path: Path) -> Any:
    with path.open("rb") as file:
        return torch.load(file)


def named(path: Path) -> Any:
    class File(io.BytesIO):
        name = str(path)

    return torch.load(File(path.read_bytes()))


def numbered(path: Path) -> Any:
    with open(os.open(path, os.O_RDONLY), "rb") as file:  # noqa: PTH123 - its name is a number
        return torch.load(file)


SOURCES: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "text": (lambda path: torch.load(str(path)), {}),
    "path": (lambda path: torch.load(path, "cpu"), {}),
    "relative": (lambda path: torch.load(os.path.relpath(path)), {}),
    "keyword": (lambda path: torch.load(f=path, map_location="cpu"), {}),
    "open file": (opened, {}),
    "memory": (lambda path: torch.load(io.BytesIO(path.read_bytes())), {"file.path": None, "loadspan.read.method": "memory"}),
    "named memory": (named, {"file.path": None, "loadspan.read.method": "memory"}),
    "numbered file": (numbered, {"file.path": None}),
    "mapped": (lambda path: torch.load(path, mmap=True), {"loadspan.deferred": True, "loadspan.read.method": "mmap"}),
    "mapped text": (lambda path: torch.load(str(path), mmap=True), {"loadspan.deferred": True, "loadspan.read.method": "mmap"}),
    "unsafe": (lambda path: torch.load(path, weights_only=False), {}),
}


# torch cannot map the legacy format.
@pytest.mark.parametrize(
    ("source", "legacy"), [(source, legacy) for legacy in (False, True) for source in SOURCES if not (legacy and "mapped" in source)]
)
def test_a_checkpoint_is_deserialized_with_its_bytes_format_and_file(
    recording: Callable[..., Spans], tmp_path: Path, source: str, *, legacy: bool
) -> None:
    path = checkpoint(tmp_path / "model.pt", legacy=legacy)
    load, differs = SOURCES[source]
    bare = load(path)
    spans = recording()
    with loadspan.load("model"):
        assert equal(load(path), bare)
    tree = spans.load()
    check(tree)
    assert outline(tree) == [{"load model": ["deserialize"]}]
    attributes = the(tree, "deserialize")
    expected = {"file.path": str(path), "loadspan.deferred": None, "loadspan.read.method": None} | differs
    assert {key: attributes.get(key) for key in expected} == expected
    assert attributes["loadspan.size"] == STATE
    assert attributes["loadspan.format"] == ("pickle" if legacy else "zip")
    assert attributes.get("file.size") == (path.stat().st_size if expected["file.path"] else None)
    assert ("loadspan.throughput" in attributes) is not bool(expected["loadspan.deferred"])


def test_a_view_brings_its_whole_storage_and_two_views_bring_it_once(spans: Spans, tmp_path: Path) -> None:
    base = torch.zeros(500_000)
    torch.save({"a": base[:10], "b": base[5:20].view(3, 5), "own": torch.zeros(3), "empty": torch.zeros(0)}, tmp_path / "views.pt")
    with loadspan.load():
        torch.load(tmp_path / "views.pt")
    assert the(spans.load(), "deserialize")["loadspan.size"] == 4 * 500_000 + 12


def test_what_has_no_storage_is_counted_by_its_parts(spans: Spans, tmp_path: Path) -> None:
    torch.save({"sparse": torch.eye(1000).to_sparse(), "dense": torch.zeros(1000)}, tmp_path / "sparse.pt")
    with loadspan.load():
        found = torch.load(tmp_path / "sparse.pt")
    assert found["sparse"].is_sparse
    assert the(spans.load(), "deserialize")["loadspan.size"] == 1000 * 8 * 2 + 1000 * 4 + 4000


@pytest.mark.parametrize("mapped", [False, True])
def test_a_module_is_counted_with_its_parameters_and_buffers(spans: Spans, tmp_path: Path, *, mapped: bool) -> None:
    block = Block()
    torch.save(block, tmp_path / "module.pt")
    with loadspan.load():
        assert equal(torch.load(tmp_path / "module.pt", weights_only=False, mmap=mapped), block)
    assert the(spans.load(), "deserialize")["loadspan.size"] == 4 * (500_000 + 500 + 500)


@pytest.mark.parametrize("mapped", [False, True])
def test_tensors_on_meta_bring_no_bytes(spans: Spans, tmp_path: Path, *, mapped: bool) -> None:
    path = checkpoint(tmp_path / "model.pt")
    with loadspan.load():
        assert torch.load(path, map_location="meta", mmap=mapped)["weight"].is_meta
    attributes = the(spans.load(), "deserialize")
    assert "loadspan.size" not in attributes
    assert "loadspan.throughput" not in attributes


def test_what_holds_no_tensors_has_no_size(spans: Spans, tmp_path: Path) -> None:
    torch.save({"step": 7}, tmp_path / "step.pt")
    with loadspan.load():
        assert torch.load(tmp_path / "step.pt") == {"step": 7}
    assert "loadspan.size" not in the(spans.load(), "deserialize")


class Counting(io.FileIO):
    """The host's own raw file, which knows what was read from it."""

    taken = 0

    def readinto(self, buffer: Any, /) -> int:
        """Count what `read` of the reader above takes."""
        count = super().readinto(buffer)
        self.taken += count
        return count

    def readall(self) -> bytes:
        """Count what `read()` without a size takes."""
        found = super().readall()
        self.taken += len(found)
        return found


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_big_file_is_read_inside_deserialize_byte_for_byte(recording: Callable[..., Spans], tmp_path: Path, *, legacy: bool) -> None:
    path = checkpoint(tmp_path / "big.pt", legacy=legacy, elements=5 * MIB)
    with path.open("rb") as file:
        buffered = file.raw._blksize  # noqa: SLF001 - the buffer that `open` chose
    counting = Counting(path)
    with io.BufferedReader(counting, buffered) as file:
        bare = torch.load(file)
    spans = recording()
    with loadspan.load():
        found = torch.load(path)
    assert equal(found, bare)
    tree = spans.load()
    check(tree)
    read = the(tree, "read")
    if legacy:  # its storages are read from the descriptor, past the file object
        assert read["loadspan.size"] <= counting.taken
    else:
        assert read["loadspan.size"] == counting.taken >= 20 * MIB
    assert read["file.path"] == str(path)
    deserialize = the(tree, "deserialize")
    assert deserialize["loadspan.size"] == 20 * MIB + 4000
    assert deserialize["loadspan.io.read"] >= 20 * MIB


FAILURES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda folder: torch.load(folder / "missing.pt"),
    "missing mapped": lambda folder: torch.load(folder / "missing.pt", mmap=True),
    "truncated": lambda folder: torch.load(folder / "truncated.pt"),
    "truncated open": lambda folder: opened(folder / "truncated.pt"),
    "truncated legacy": lambda folder: torch.load(folder / "legacy.pt"),
    "empty": lambda folder: torch.load(folder / "empty.pt"),
    "folder": lambda folder: torch.load(folder, "cpu"),
    "unsafe": lambda folder: torch.load(folder / "module.pt"),
    "number": lambda _: torch.load(5),
    "none": lambda _: torch.load(None),
    "option": lambda folder: torch.load(folder / "module.pt", nonsense=1),
    "map": lambda folder: torch.load(folder / "whole.pt", map_location="cuda"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_checkpoint_that_fails_fails_as_it_did_and_is_told_once(recording: Callable[..., Spans], tmp_path: Path, what: str) -> None:
    whole = checkpoint(tmp_path / "whole.pt").read_bytes()
    (tmp_path / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    legacy = checkpoint(tmp_path / "legacy.pt", legacy=True).read_bytes()
    (tmp_path / "legacy.pt").write_bytes(legacy[: len(legacy) // 2])
    (tmp_path / "empty.pt").touch()
    torch.save(Block(), tmp_path / "module.pt")

    def load() -> Any:
        return FAILURES[what](tmp_path)

    expected = failure(load)
    spans = recording()

    def recorded_load() -> None:
        with loadspan.load("model"):
            load()

    with pytest.raises(expected[0]):
        recorded_load()
    assert failure(load) == expected
    tree = spans.loads()[0]
    name = f"{expected[0].__module__}.{expected[0].__qualname__}".removeprefix("builtins.")
    assert outline(tree) == [{"load model": ["deserialize"]}]
    assert told(tree) == [("deserialize", name)]
    assert [span["attributes"]["error.type"] for span in walk(tree)] == [name] * 2
    assert "loadspan.size" not in the(tree, "deserialize")


def test_torch_load_is_one_object_everywhere_and_comes_back(recording: Callable[..., Spans]) -> None:
    original = torch.load
    assert original is torch.serialization.load
    recording()
    assert torch.load is torch.serialization.load is not original
    assert pickle.loads(pickle.dumps(torch.load)) is torch.load  # noqa: S301 - our own
    LoadspanInstrumentor().uninstrument()
    assert torch.load is torch.serialization.load is original


# load_state_dict


def state() -> dict[str, Any]:
    torch.manual_seed(1)
    return {"weight": torch.randn(500, 1000)}


@pytest.mark.parametrize("options", [{}, {"assign": True}, {"strict": False}])
def test_a_state_dict_is_loaded_with_its_bytes(spans: Spans, options: dict[str, Any]) -> None:
    module, given = layer(), state()
    with loadspan.load("model"):
        result = module.load_state_dict(given, **options)
    assert result == ([], [])
    assert torch.equal(module.weight, given["weight"])
    assert (module.weight.data_ptr() == given["weight"].data_ptr()) is options.get("assign", False)
    attributes = the(spans.load(), "load_state_dict")
    assert attributes["loadspan.size"] == SIZE
    assert ("loadspan.throughput" in attributes) is not options.get("assign", False)


def test_assigning_by_position_has_no_throughput_either(spans: Spans) -> None:
    with loadspan.load("model"):
        layer().load_state_dict(state(), True, True)  # noqa: FBT003 - what is tested
    assert "loadspan.throughput" not in the(spans.load(), "load_state_dict")


def test_only_tensors_that_the_module_takes_are_counted(spans: Spans) -> None:
    given = {**state(), "unexpected": torch.zeros(1000), "meta": torch.zeros(1000, device="meta"), "step": 7}
    with loadspan.load("model"):
        result = layer().load_state_dict(state_dict=given, strict=False)
    assert sorted(result.unexpected_keys) == ["meta", "step", "unexpected"]
    assert the(spans.load(), "load_state_dict")["loadspan.size"] == SIZE


def test_submodules_and_hooks_are_part_of_the_one_stage(spans: Spans) -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layer()

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(*args, **kwargs)

    module, calls = Wrapper(), []
    module.register_load_state_dict_post_hook(lambda *_: calls.append(1))
    with loadspan.load("model"):
        module.load_state_dict({"inner.weight": state()["weight"]})
    assert calls == [1]
    assert outline(spans.load()) == [{"load model": ["load_state_dict"]}]
    assert the(spans.load(), "load_state_dict")["loadspan.size"] == SIZE


@pytest.mark.parametrize(
    "given",
    [{"weight": torch.zeros(3)}, {}, {**state(), "more": torch.zeros(1)}, {"weight": 5}, 5, None],
    ids=["shape", "missing", "unexpected", "number in it", "number", "none"],
)
def test_a_state_dict_that_does_not_fit_fails_as_it_did_and_is_told_once(recording: Callable[..., Spans], given: Any) -> None:
    module = layer()

    def load() -> Any:
        return module.load_state_dict(given)

    expected = failure(load)
    spans = recording()

    def recorded_load() -> None:
        with loadspan.load("model"):
            load()

    with pytest.raises(expected[0]):
        recorded_load()
    assert failure(load) == expected
    tree = spans.loads()[0]
    assert told(tree) == [("load_state_dict", expected[0].__name__)]
    assert "loadspan.size" not in the(tree, "load_state_dict")
