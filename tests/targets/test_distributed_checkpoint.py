"""torch.distributed.checkpoint: one load of many pieces, with the bytes that this rank holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import loadspan
from recorded import check, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from recorded import Spans

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # one process, as it says

PIECES, SHAPE = 12, (64, 128)
SIZE = PIECES * 64 * 128 * 4


def state(value: float = 0.0) -> dict[str, Any]:
    return {f"layers.{index}": torch.full(SHAPE, value * index) for index in range(PIECES)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    with pytest.warns(UserWarning, match="disabled"):
        dcp.save(state(1.0) | {"step": 7}, checkpoint_id=folder)
    return folder


def of(load: Any, name: str) -> Any:
    (found,) = [span["attributes"] for span in walk(load) if span["name"] == name]
    return found


def test_all_pieces_are_one_stage_and_their_copies_another(spans: Spans, checkpoint: Path) -> None:
    found = state() | {"step": 0}
    dcp.load(found, checkpoint_id=checkpoint)
    (load,) = spans.loads()
    check(load)
    assert found["step"] == 7
    assert all(torch.equal(found[key], value) for key, value in state(1.0).items())
    assert (load["attributes"]["loadspan.loader"], load["attributes"]["loadspan.model.name"]) == ("torch", checkpoint.name)
    pieces, copies = of(load, "deserialize"), of(load, "load_state_dict")
    assert pieces["loadspan.size"] == copies["loadspan.size"] == SIZE
    assert (pieces["loadspan.operation.count"], copies["loadspan.operation.count"]) == (PIECES + 1, PIECES)
    assert (pieces["file.path"], pieces["loadspan.read.method"]) == (str(checkpoint / "__0_0.distcp"), "buffered")


def test_a_part_of_a_checkpoint_has_the_bytes_of_the_part(spans: Spans, checkpoint: Path) -> None:
    dcp.load({"layers.3": torch.zeros(SHAPE)}, checkpoint_id=checkpoint)
    (load,) = spans.loads()
    assert of(load, "deserialize")["loadspan.size"] == of(load, "load_state_dict")["loadspan.size"] == SIZE // PIECES


def test_what_is_converted_is_one_load(spans: Spans, checkpoint: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(checkpoint, tmp_path / "model.pt")
    (load,) = spans.loads()
    assert of(load, "deserialize")["loadspan.size"] == SIZE


def test_a_piece_that_cannot_be_read_fails_as_it_did_and_no_copy_stays_open(
    recording: Callable[..., Spans], checkpoint: Path, tmp_path: Path
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: SIZE // 2])

    def call() -> Any:
        with pytest.raises(dcp.CheckpointException) as caught:
            dcp.load(state(), checkpoint_id=tmp_path)
        return [(rank, type(error), error.args) for rank, (error, _) in caught.value.failures.items()]  # its text has a traceback

    expected = call()
    spans = recording()
    assert call() == expected
    with loadspan.load("next"):
        torch.nn.Linear(2, 2).load_state_dict(torch.nn.Linear(2, 2).state_dict())
    failed, after = spans.loads()
    assert failed["error"] is not None
    assert of(after, "load_state_dict")["loadspan.size"] == 24


@pytest.fixture
def two_ranks() -> Iterator[Any]:
    """The first of two ranks, of which the other is only said to be there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield dist.init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_a_sharded_tensor_counts_with_the_part_that_this_rank_holds(spans: Spans, two_ranks: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    module = torch.nn.Linear(64, 64, bias=False)
    module.weight = torch.nn.Parameter(distribute_tensor(torch.ones(64, 64), two_ranks, [Shard(0)]))
    with loadspan.load("model"):
        module.load_state_dict({"weight": distribute_tensor(torch.ones(64, 64), two_ranks, [Shard(0)])})
    assert of(spans.loads()[0], "load_state_dict")["loadspan.size"] == 64 * 64 * 4 // 2
