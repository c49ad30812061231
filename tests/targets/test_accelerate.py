"""accelerate: where a load is one and what is in it, and what an offloaded model brings at every forward."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hosts import failure

import loadspan
from loadspan.instrument.live import recorder
from recorded import check, walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recorded import Spans

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    import accelerate
    from accelerate import hooks

LAYERS, WIDTH = 8, 256
SIZE = LAYERS * 4 * (WIDTH * WIDTH + WIDTH)
INPUT = torch.ones(1, WIDTH)


def model(device: str = "cpu") -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        return torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_file(model().state_dict(), path, metadata={"format": "pt"})
    return path


def answer(module: Any) -> Any:
    with torch.no_grad():
        return module(INPUT)


def folded(spans: Spans) -> list[Any]:
    return [load["attributes"] for load in spans.loads() if "loadspan.folded.count" in load["attributes"]]


def test_a_checkpoint_that_is_dispatched_is_one_load(spans: Spans, checkpoint: Path) -> None:
    found = accelerate.load_checkpoint_and_dispatch(model("meta"), str(checkpoint), device_map={"": "cpu"})
    (load,) = spans.loads()
    check(load)
    assert torch.equal(answer(found), answer(model()))
    assert (load["attributes"]["loadspan.loader"], load["attributes"]["loadspan.model.name"]) == ("accelerate", "model.safetensors")
    stages = {span["name"]: span["attributes"] for span in walk(load)}
    assert stages["deserialize"]["loadspan.size"] == stages["load_state_dict"]["loadspan.size"] == SIZE
    assert "loadspan.throughput" not in stages["load_state_dict"], "the tensors are views on the file"


def test_a_checkpoint_into_a_model_is_a_load_of_its_own(spans: Spans, checkpoint: Path) -> None:
    accelerate.load_checkpoint_in_model(model(), str(checkpoint))
    (load,) = spans.loads()
    assert load["attributes"]["loadspan.loader"] == "accelerate"
    assert {span["name"] for span in walk(load)} == {"load model", "load_state_dict", "deserialize"}


def test_a_checkpoint_that_does_not_fit_fails_as_it_did(recording: Callable[..., Spans], checkpoint: Path) -> None:
    def call() -> None:
        module = model("meta")
        module[LAYERS - 1] = torch.nn.Linear(3, 3, device="meta")
        accelerate.load_checkpoint_and_dispatch(module, str(checkpoint), device_map={"": "cpu"})

    expected = failure(call)
    spans = recording()
    assert failure(call) == expected
    (load,) = spans.loads()
    assert load["error"] is not None


@pytest.mark.parametrize("forwards", [1, 12])
def test_forwards_of_a_model_on_disk_are_one_load_of_their_bytes(recording: Callable[..., Spans], tmp_path: Path, forwards: int) -> None:
    expected = answer(model())
    spans = recording()
    spans.set(min_size=0)
    module = accelerate.disk_offload(model(), str(tmp_path))
    recorder.close_all()
    for _ in range(forwards):
        assert torch.equal(answer(module), expected)
    assert recorder.loads == []
    spans.finish()
    (attributes,) = folded(spans)
    assert attributes["loadspan.folded.count"] == forwards
    assert attributes["loadspan.size"] == forwards * SIZE
    assert attributes["loadspan.loader"] == "accelerate"
    assert attributes["loadspan.partition.read"] == pytest.approx(attributes["loadspan.busy_time"])


def test_the_first_forward_inside_a_load_is_a_stage_of_it(spans: Spans, tmp_path: Path) -> None:
    module = accelerate.disk_offload(model(), str(tmp_path))
    spans.finish()
    with loadspan.load("warm-up"):
        answer(module)
    load = spans.loads()[-1]
    check(load)
    (stage,) = load["children"]
    assert stage["name"] == "read"
    assert (stage["attributes"]["loadspan.size"], stage["attributes"]["loadspan.operation.count"]) == (SIZE, LAYERS)
    assert folded(spans) == []


def test_weights_that_wait_in_safetensors_are_not_told_one_by_one(recording: Callable[..., Spans], checkpoint: Path) -> None:
    expected = answer(model())
    spans = recording()
    index = {name: {"safetensors_file": str(checkpoint), "weight_name": name} for name in model().state_dict()}
    module = accelerate.dispatch_model(model("meta"), {"": "disk"}, offload_index=index)
    recorder.close_all()
    for _ in range(3):
        assert torch.equal(answer(module), expected)
    spans.finish()
    (attributes,) = folded(spans)
    assert (attributes["loadspan.folded.count"], attributes["loadspan.size"]) == (3, 3 * SIZE)
    assert "loadspan.partition.deserialize" in attributes
    assert not any(span["name"] == "deserialize" for load in spans.loads() for span in walk(load))


def test_two_models_are_two_loads(spans: Spans, tmp_path: Path) -> None:
    spans.set(min_size=0)
    modules = [accelerate.disk_offload(model(), str(tmp_path / name)) for name in "ab"]
    recorder.close_all()
    for module in (*modules, modules[0]):
        answer(module)
    spans.finish()
    assert sorted(attributes["loadspan.folded.count"] for attributes in folded(spans)) == [1, 2]


def test_a_model_that_stays_in_memory_on_the_processor_brings_nothing(spans: Spans) -> None:
    module = accelerate.cpu_offload(model())
    recorder.close_all()
    answer(module)
    spans.finish()
    assert folded(spans) == []


def test_a_forward_that_fails_fails_as_it_did(recording: Callable[..., Spans], tmp_path: Path) -> None:
    def call() -> None:
        answer(module)

    module = accelerate.disk_offload(model(), str(tmp_path))
    (tmp_path / "3.weight.dat").unlink()
    expected = failure(call)
    spans = recording()
    assert failure(call) == expected
    with loadspan.load("warm-up"):
        assert failure(call) == expected
    spans.finish()
    assert spans.loads()


def test_hooks_come_back(recording: Callable[..., Spans]) -> None:
    before = hooks.AlignDevicesHook.pre_forward
    recording()
    assert hooks.AlignDevicesHook.pre_forward is not before
    loadspan.LoadspanInstrumentor().uninstrument()
    assert hooks.AlignDevicesHook.pre_forward is before
