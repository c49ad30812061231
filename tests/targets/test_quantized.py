"""Tensors that are not all there is of them, as quantizers make them: what they hold is counted, and torch may swap them."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from packed import Packed

from loadspan.instrument.targets import tensors

if TYPE_CHECKING:
    from pathlib import Path

    from recorded import Spans

torch = pytest.importorskip("torch")

_ROWS, _COLUMNS = 256, 512


class _Scales:
    """What a carrying tensor has its scales in, and knows the tensor's module by."""

    def __init__(self, scales: Any, module: Any) -> None:
        self.scales, self.again, self.module = scales, self, module


class _Cached(torch.nn.Parameter):  # type: ignore[misc,name-defined] # torch is what importorskip returned
    """A parameter that keeps something in an attribute that nobody knows the meaning of."""


class _Carrying(torch.nn.Parameter):  # type: ignore[misc,name-defined] # as above
    """A parameter of bytes with scales in an attribute: as bitsandbytes does it."""


def _packed(device: str = "cpu") -> Packed:
    return Packed(torch.ones(_ROWS, _COLUMNS, dtype=torch.int8, device=device), torch.ones(_ROWS, 1, device=device))


for _kind in (_Scales, _Carrying):
    _kind.__module__ = "bitsandbytes.nn.modules"


def _carrying() -> Any:
    made = _Carrying(torch.ones(_ROWS, _COLUMNS, dtype=torch.uint8), requires_grad=False)
    made.state = _Scales(torch.ones(_ROWS, 1), torch.nn.Linear(4, 4))
    made.same, made.also = made.data, made.state.scales
    return made


_HELD = _ROWS * _COLUMNS + 4 * _ROWS


@pytest.mark.parametrize("make", [_packed, _carrying, lambda: torch.nn.Parameter(_packed(), requires_grad=False)])
def test_what_a_quantized_tensor_holds_is_counted(make: Any) -> None:
    tensor = make()
    assert tensors.size(tensor) == _HELD
    assert tensors.sizes([tensor, torch.ones(10)]) == _HELD + 40
    assert tensors.unique_size([tensor, tensor]) == _HELD
    assert tensors.made({"weight": tensor}, ()) == _HELD
    assert tensors.made({"weight": tensor}, tensors.storages(tensor)) == 0


def test_what_an_attribute_of_an_unknown_library_holds_is_not() -> None:
    tensor = _Cached(torch.ones(100))
    tensor.copy = torch.ones(100)
    assert tensors.size(tensor) == tensors.sizes([tensor]) == 400


@pytest.mark.skipif(not hasattr(torch.utils, "swap_tensors"), reason="this torch does not swap tensors")
def test_tensors_that_were_loaded_can_be_swapped(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"weight": torch.ones(500, 1000)}, tmp_path / "model.safetensors")
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as opened:
        one_by_one = opened.get_tensor("weight")
    for tensor in (state["weight"], one_by_one):
        torch.utils.swap_tensors(torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(tensor))
        old = torch.zeros(2)
        torch.utils.swap_tensors(old, tensor)  # raises where something refers to one of them weakly
        assert old.shape == (500, 1000)
    module = torch.nn.Linear(1000, 500, bias=False)
    module.load_state_dict({"weight": old})
    assert {child["name"] for child in spans.load()["children"]} == {"deserialize", "load_state_dict"}


def test_a_load_that_brought_tensors_is_over_when_the_last_of_them_is_gone(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch

    spans.set(idle_timeout=60.0, pending_timeout=60.0)  # it is asked before the sampler ends it
    safetensors.torch.save_file({"weight": torch.ones(500, 1000)}, tmp_path / "model.safetensors")
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    view = state["weight"][10:]
    del state
    gc.collect()
    (load,) = spans.recorder.loads
    assert load.pending()
    del view
    gc.collect()
    assert not load.pending()
