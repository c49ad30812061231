"""timm: a model by its name, with weights out of a file of timm's or a checkpoint of the user's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "vit_small_patch16_224"


def _model() -> Any:
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(_NAME)


def _truth(model: Any) -> Truth:
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {"deserialize": size, "load_state_dict": size}


def _write(folder: Path) -> Truth:
    import torch
    from safetensors.torch import save_file

    model = _model()
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(model.state_dict(), folder / "model.pth")
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}, "epoch": 3}, folder / "last.pth.tar")
    return _truth(model)


def _checkpoint(folder: Path, file: str) -> Any:
    import timm

    return timm.create_model(_NAME, checkpoint_path=str(folder / file))


def _pretrained(folder: Path) -> Any:
    import timm

    return timm.create_model(_NAME, pretrained=True, pretrained_cfg_overlay={"file": str(folder / "model.safetensors")})


def _into(folder: Path) -> Any:
    from timm.models import load_checkpoint

    model = _model()
    load_checkpoint(model, str(folder / "model.safetensors"))
    return model


_STAGES = ("initialize", "deserialize", "load_state_dict")
_case = partial(Case, library="timm", loader="timm", write=_write, needs=("torch", "timm", "torchvision"))
CASES = [
    _case(name="create_model, checkpoint in safetensors", load=partial(_checkpoint, file="model.safetensors"), stages=_STAGES),
    _case(name="create_model, checkpoint of a training", load=partial(_checkpoint, file="last.pth.tar"), stages=_STAGES),
    # Older ones take any file of weights for a vision transformer for one of NumPy's.
    _case(name="create_model, pretrained", load=_pretrained, stages=_STAGES, needs=("torch", "timm>=1.0.31", "torchvision")),
    _case(name="load_checkpoint into a model", load=_into, stages=_STAGES[1:]),
    _case(
        name="create_model, no such file",
        load=partial(_checkpoint, file="none.pth"),
        stages=_STAGES[:1],
        sizes=lambda _: {},
        raises="FileNotFoundError",
    ),
]
