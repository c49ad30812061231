"""safetensors: whole files, handles, slices and bytes. Bytes are counted once, deferred where they come later."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
import safetensors.torch
import torch
from hosts import equal, failure, layer, make_cold, the, told

import loadspan
from loadspan import LoadspanInstrumentor
from recorded import check, outline, walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from recorded import Spans

SHAPES = {"a": (500, 1000), "b": (1000,), "c": (3, 5)}
SIZE = 4 * (500_000 + 1000 + 15)
PREAD = pytest.param("pread", marks=pytest.mark.skipif(not hasattr(safetensors.safe_open, "get_tensors"), reason="back ends came with 0.8"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({name: torch.randn(shape) for name, shape in SHAPES.items()}, path)
    return path


def by_tensor(path: Path, **options: Any) -> Any:
    with safetensors.safe_open(path, "pt", **options) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - a handle is no mapping


def by_slice(path: Path, **options: Any) -> Any:
    with safetensors.safe_open(path, framework="pt", **options) as handle:
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - as above
        return {name: found[:] for name, found in slices.items()}


def by_name(path: Path, **options: Any) -> Any:
    with safetensors.safe_open(filename=path, framework="pt", **options) as handle:
        return {name: handle.get_tensor(name=name) for name in handle.keys()}  # noqa: SIM118 - as above


def all_at_once(path: Path, **options: Any) -> Any:
    with safetensors.safe_open(str(path), "torch", "cpu", **options) as handle:
        return handle.get_tensors()


WAYS: dict[str, tuple[Callable[..., Any], int | None]] = {
    "get_tensor": (by_tensor, 3),
    "get_slice": (by_slice, 3),
    "keywords": (by_name, 3),
    "get_tensors": (all_at_once, 1),
    "load_file": (lambda path, **options: safetensors.torch.load_file(filename=path, **options), None),
    "load_file of text": (lambda path, **options: safetensors.torch.load_file(str(path), "cpu", **options), None),
}


@pytest.mark.parametrize("back_end", [None, PREAD])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_read_a_file_is_one_deserialize_of_its_bytes(
    recording: Callable[..., Spans], file: Path, way: str, back_end: str | None
) -> None:
    call, count = WAYS[way]
    options = {"backend": back_end} if back_end else {}
    bare = call(file, **options)
    spans = recording()
    with loadspan.load("model"):
        assert equal(call(file, **options), bare)
    tree = spans.load()
    check(tree)
    assert outline(tree) == [{"load model": ["deserialize"]}]
    attributes = the(tree, "deserialize")
    assert attributes["loadspan.size"] == SIZE
    assert attributes["file.path"] == str(file)
    assert attributes["file.size"] == file.stat().st_size
    assert attributes["loadspan.format"] == "safetensors"
    assert attributes["loadspan.read.method"] == ("buffered" if back_end else "mmap")
    assert attributes.get("loadspan.deferred", False) is (back_end is None)
    assert ("loadspan.throughput" in attributes) is (back_end is not None)
    assert ("loadspan.cache.cold" in attributes) is (back_end is not None)
    if count is not None:
        assert attributes["loadspan.operation.count"] == count
    assert tree["attributes"]["loadspan.size"] == SIZE


def test_parts_of_tensors_are_counted_as_parts(spans: Spans, file: Path) -> None:
    whole = safetensors.torch.load_file(file)["a"]
    spans.finish()
    with loadspan.load("model"), safetensors.safe_open(file, "pt") as handle:
        found = handle.get_slice("a")
        assert found.get_shape() == [500, 1000]
        assert torch.equal(found[10:20], whole[10:20])
        assert torch.equal(found[:, 5:7], whole[:, 5:7])
        assert torch.equal(found[3], whole[3])
        assert torch.equal(found[...], whole)
    attributes = the(spans.loads()[-1], "deserialize")
    assert attributes["loadspan.size"] == 4 * (10 * 1000 + 500 * 2 + 1000 + 500_000)
    assert attributes["loadspan.operation.count"] == 4
    assert attributes["file.path"] == str(file)


def test_arrays_are_copies_out_of_the_mapping(spans: Spans, file: Path) -> None:
    import numpy as np

    with loadspan.load("model"), safetensors.safe_open(file, "np") as handle:
        assert isinstance(handle.get_tensor("a"), np.ndarray)
        assert isinstance(handle.get_slice("b")[:], np.ndarray)
    attributes = the(spans.load(), "deserialize")
    assert attributes["loadspan.size"] == 4 * 501_000
    assert attributes["loadspan.read.method"] == "mmap"
    assert "loadspan.deferred" not in attributes
    assert attributes["loadspan.throughput"] > 0


def test_bytes_in_memory_are_deserialized_with_a_throughput_and_no_file(recording: Callable[..., Spans], file: Path) -> None:
    data = file.read_bytes()
    bare = safetensors.torch.load(data)
    spans = recording()
    with loadspan.load("model"):
        assert equal(safetensors.torch.load(data), bare)
    with loadspan.load("model"):
        assert equal(safetensors.torch.load(data=data), bare)
    for tree in spans.loads():
        attributes = the(tree, "deserialize")
        assert attributes["loadspan.size"] == SIZE
        assert attributes["loadspan.read.method"] == "memory"
        assert attributes["loadspan.format"] == "safetensors"
        assert attributes["loadspan.throughput"] > 0
        assert "file.path" not in attributes


def test_a_model_is_filled_in_one_load_state_dict_tied_weights_included(recording: Callable[..., Spans], tmp_path: Path) -> None:
    def model() -> Any:
        found = torch.nn.Sequential(layer(), layer())
        found[1].weight = found[0].weight
        return found

    path, source = tmp_path / "tied.safetensors", model()
    safetensors.torch.save_model(source, str(path))
    spans, filled = recording(), model()
    with loadspan.load("model"):
        assert safetensors.torch.load_model(filled, path) == (set(), [])
    assert equal(filled, source)
    assert filled[1].weight is filled[0].weight
    tree = spans.load()
    check(tree)
    (stage,) = tree["children"]
    assert stage["name"] == "load_state_dict"
    assert stage["attributes"]["loadspan.size"] == 2_000_000
    assert stage["attributes"]["file.path"] == str(path)
    (inner,) = stage["children"]
    assert (inner["name"], inner["attributes"]["loadspan.size"], inner["attributes"]["loadspan.deferred"]) == (
        "deserialize",
        2_000_000,
        True,
    )


def test_threads_that_slice_one_handle_are_counted_together(spans: Spans, file: Path) -> None:
    barrier = threading.Barrier(8)

    def work(handle: Any) -> None:
        barrier.wait()
        for row in range(100):
            found = handle.get_slice("a")[row : row + 1]
            assert found.shape == (1, 1000)

    with loadspan.load("model"), safetensors.safe_open(file, "pt") as handle:
        threads = [threading.Thread(target=work, args=(handle,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    attributes = the(spans.load(), "deserialize")
    assert attributes["loadspan.size"] == 8 * 100 * 4000
    assert attributes["loadspan.operation.count"] == 800
    assert attributes["file.path"] == str(file)


def test_handles_and_slices_opened_before_us_are_counted_and_nothing_is_made_up_about_them(
    recording: Callable[..., Spans], file: Path
) -> None:
    with safetensors.safe_open(file, "pt") as handle:
        early = handle.get_slice("b")
        spans = recording()
        with loadspan.load("model"):
            handle.get_tensor("a")
            late = handle.get_slice("c")[:]
            assert late.shape == (3, 5)
            assert early[:10].shape == (10,)
    attributes = the(spans.load(), "deserialize")
    assert attributes["loadspan.size"] == 4 * (500_000 + 15 + 10)
    assert not {"file.path", "loadspan.read.method", "loadspan.throughput"} & attributes.keys()


def test_a_handle_opened_while_we_were_away_is_not_taken_for_an_earlier_one(recording: Callable[..., Spans], file: Path) -> None:
    spans = recording()
    for _ in range(20):  # identities are used again
        safetensors.safe_open(file, "pt").get_slice("a")
    LoadspanInstrumentor().uninstrument()
    other = file.rename(file.with_name("other.safetensors"))
    handles = [safetensors.safe_open(other, "pt") for _ in range(20)]
    slices = [handle.get_slice("a") for handle in handles]
    LoadspanInstrumentor().instrument(tracer_provider=spans.provider)
    with loadspan.load("model"):
        for handle, found in zip(handles, slices, strict=True):
            handle.get_tensor("b")
            found[0]
    assert "file.path" not in the(spans.load(), "deserialize")


FAILURES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda folder: safetensors.torch.load_file(folder / "missing.safetensors"),
    "truncated": lambda folder: safetensors.torch.load_file(folder / "truncated.safetensors"),
    "device": lambda folder: safetensors.torch.load_file(folder / "model.safetensors", device="nonsense"),
    "bytes": lambda folder: safetensors.torch.load((folder / "truncated.safetensors").read_bytes()),
    "no bytes": lambda _: safetensors.torch.load(5),
    "shape": lambda folder: safetensors.torch.load_model(layer(), folder / "model.safetensors"),
    "open missing": lambda folder: safetensors.safe_open(folder / "missing.safetensors", "pt"),
    "open bytes": lambda folder: safetensors.safe_open(str(folder / "model.safetensors").encode(), "pt"),
    "no framework": lambda folder: safetensors.safe_open(folder / "model.safetensors"),
    "no such tensor": lambda folder: safetensors.safe_open(folder / "model.safetensors", "pt").get_tensor("nonsense"),
    "no such slice": lambda folder: safetensors.safe_open(folder / "model.safetensors", "pt").get_slice("nonsense"),
    "index": lambda folder: safetensors.safe_open(folder / "model.safetensors", "pt").get_slice("b")["x"],
}
UNSEEN = {"open missing", "open bytes", "no framework", "no such slice"}  # nothing was to be read yet


@pytest.mark.parametrize("what", FAILURES)
def test_what_fails_fails_as_it_did_and_is_told_once(recording: Callable[..., Spans], file: Path, what: str) -> None:
    (file.parent / "truncated.safetensors").write_bytes(file.read_bytes()[:1_000_000])

    def call() -> Any:
        return FAILURES[what](file.parent)

    expected = failure(call)
    spans = recording()

    def recorded_call() -> None:
        with loadspan.load("model"):
            call()

    with pytest.raises(expected[0]):
        recorded_call()
    assert failure(call) == expected
    tree = spans.loads()[0]
    assert len(told(tree)) == 1
    assert told(tree)[0][0] == ("load model" if what in UNSEEN else "load_state_dict" if what == "shape" else "deserialize")
    assert [span["error"] is None for span in walk(tree)] in ([False], [False] * 2, [False, False, True])


def test_types_come_back_as_they_were(recording: Callable[..., Spans], file: Path) -> None:
    with safetensors.safe_open(file, "pt") as handle:
        kinds = (safetensors.safe_open, type(handle.get_slice("a")))
    before = [dict(vars(kind)) for kind in kinds]
    functions = {name: getattr(safetensors.torch, name) for name in ("load_file", "load", "load_model", "safe_open")}
    recording()
    for _ in range(2):
        by_slice(file)
        assert vars(kinds[1])["__getitem__"] is not before[1]["__getitem__"]
        assert vars(kinds[0])["get_tensor"] is not before[0]["get_tensor"]
        assert safetensors.torch.load_file is not functions["load_file"]
        LoadspanInstrumentor().uninstrument()
        for kind, old in zip(kinds, before, strict=True):
            now = dict(vars(kind))
            assert now.keys() == old.keys()
            assert [name for name in now if now[name] is not old[name]] == []
        assert all(getattr(safetensors.torch, name) is function for name, function in functions.items())
        LoadspanInstrumentor().instrument()


EARLIER = """
from safetensors import safe_open
from safetensors.torch import load, load_file, load_model
import sys, torch, loadspan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from recorded import provider_of
exporter = InMemorySpanExporter()
loadspan.LoadspanInstrumentor().instrument(tracer_provider=provider_of(exporter))
path = sys.argv[1]
with loadspan.load():
    with safe_open(path, "pt") as handle:
        handle.get_tensor("a")
    load_file(path)
    load(open(path, "rb").read())
    load_model(torch.nn.Module(), path, strict=False)
spans = exporter.get_finished_spans()
print(sum(span.attributes.get("loadspan.size", 0) for span in spans if span.name == "deserialize"))
print(sum(span.name == "load_state_dict" for span in spans))
"""


def test_names_imported_before_us_are_recorded(file: Path) -> None:
    paths = [str(Path(__file__).parent.parent), *sys.path]
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", EARLIER, file],
        env={"PYTHONPATH": ":".join(paths)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.stdout.split() == [str(4 * 500_000 + 3 * SIZE), "1"]


def test_a_handle_is_the_hosts_own_kind(spans: Spans, file: Path) -> None:
    with safetensors.safe_open(file, "pt") as handle:
        assert type(handle) is safetensors.safe_open
        assert isinstance(handle, safetensors.safe_open)
        assert sorted(handle.keys()) == ["a", "b", "c"]
        assert handle.metadata() is None
    assert spans.loads() == []


# Where the disk is waited for


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    safetensors.torch.save_file({f"layers.{index}.weight": torch.full((1000, 2000), float(index)) for index in range(14)}, path)
    return path


def test_a_mapped_file_is_read_from_the_disk_where_its_bytes_are_used(spans: Spans, large: Path) -> None:
    module = torch.nn.Module()
    module.layers = torch.nn.ModuleList([torch.nn.Linear(2000, 1000, bias=False) for _ in range(14)])
    size = 14 * 8_000_000
    for state in ("cold", "warm"):
        if state == "cold" and not make_cold(large):
            pytest.skip("files of this filesystem cannot be made cold")
        with loadspan.load(state):
            module.load_state_dict(safetensors.torch.load_file(large))
    assert module.layers[13].weight[0, 0].item() == 13.0
    # To see whether the file is cold is a load of its own.
    cold, warm = (tree for tree in spans.loads() if "loadspan.model.name" in tree["attributes"])
    for tree in (cold, warm):
        check(tree)
        assert outline(tree) == [{"load model": ["deserialize", "load_state_dict"]}]
        assert the(tree, "deserialize")["loadspan.deferred"] is True
        assert the(tree, "load_state_dict")["loadspan.size"] == the(tree, "deserialize")["loadspan.size"] == size
        assert "loadspan.cache.cold" not in the(tree, "deserialize")
    read = sum(the(cold, stage)["loadspan.io.storage_read"] for stage in ("deserialize", "load_state_dict"))
    if read == 0:
        pytest.skip("the kernel does not count what this filesystem reads")
    assert read == pytest.approx(large.stat().st_size, rel=0.05)
    assert sum(the(warm, stage)["loadspan.io.storage_read"] for stage in ("deserialize", "load_state_dict")) < size * 0.01
