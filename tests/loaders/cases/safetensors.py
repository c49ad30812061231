"""Programs that read safetensors themselves, put the tensors into a module of theirs, and cast it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from pathlib import Path

_FILE = "model.safetensors"
_TENSORS, _SHAPE = 300, (512, 1024)
_SIZE = _TENSORS * 512 * 1024 * 4


def _write(folder: Path) -> Truth:
    import torch
    from safetensors.torch import save_file

    save_file({f"p{index}": torch.full(_SHAPE, index / 8) for index in range(_TENSORS)}, folder / _FILE)
    return {"deserialize": _SIZE, "load_state_dict": _SIZE, "convert": _SIZE // 2}


def _module() -> Any:
    import torch

    module = torch.nn.Module()
    for index in range(_TENSORS):
        module.register_parameter(f"p{index}", torch.nn.Parameter(torch.empty(_SHAPE)))
    return module


def _load_file(folder: Path) -> Any:
    from safetensors.torch import load_file

    module, state = _module(), load_file(folder / _FILE)
    module.load_state_dict(state)
    return module.half()


def _one_by_one(folder: Path) -> Any:
    from safetensors import safe_open

    module = _module()
    with safe_open(folder / _FILE, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a handle is no mapping
        module.load_state_dict(state)
    return module.half()


def _another_key(folder: Path) -> Any:
    from safetensors.torch import load_file

    return _module().load_state_dict({**load_file(folder / _FILE), "more": None})


_STAGES = ("deserialize", "load_state_dict", "convert")
CASES = [
    Case(name="load_file", library="safetensors", write=_write, load=_load_file, loader="safetensors", stages=_STAGES, needs=("torch",)),
    Case(
        name="safe_open, tensor by tensor",
        library="safetensors",
        write=_write,
        load=_one_by_one,
        loader="safetensors",
        stages=_STAGES,
        needs=("torch",),
    ),
    Case(
        name="load_file, an unexpected key",
        library="safetensors",
        write=_write,
        load=_another_key,
        loader="safetensors",
        stages=_STAGES[:2],
        raises="RuntimeError",
        sizes=lambda truth: {"deserialize": truth["deserialize"]},
        needs=("torch",),
    ),
]
