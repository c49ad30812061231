"""accelerate: checkpoints spread over memory and disk, and models that are offloaded."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LAYERS, _WIDTH = 60, 1024
_LAYER = 4 * (_WIDTH * _WIDTH // 2 + _WIDTH // 2)
_SIZE = _LAYERS * _LAYER


def _module(device: str = "meta") -> Any:
    import torch

    with torch.device(device):
        return torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH // 2) for _ in range(_LAYERS)))


def _state() -> dict[str, Any]:
    import torch

    state = {}
    for index in range(_LAYERS):
        state[f"{index}.weight"] = torch.full((_WIDTH // 2, _WIDTH), index / 8)
        state[f"{index}.bias"] = torch.full((_WIDTH // 2,), index / 8)
    return state


def _write(folder: Path) -> Truth:
    from safetensors.torch import save_file

    save_file(_state(), folder / "model.safetensors", metadata={"format": "pt"})
    return {"deserialize": _SIZE, "load_state_dict": _SIZE}


def _write_shards(folder: Path) -> Truth:
    import json

    from safetensors.torch import save_file

    state, shards = list(_state().items()), {}
    for shard in range(4):
        name = f"model-{shard + 1:05}-of-00004.safetensors"
        save_file(dict(state[shard::4]), folder / name, metadata={"format": "pt"})
        shards |= {key: name for key, _ in state[shard::4]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return {"deserialize": _SIZE, "load_state_dict": _SIZE}


def _write_pickle(folder: Path) -> Truth:
    import torch

    torch.save(_state(), folder / "pytorch_model.bin")
    return {"deserialize": _SIZE, "load_state_dict": _SIZE}


def _dispatch(**options: Any) -> Callable[[Path], Any]:
    def load(folder: Path) -> Any:
        from accelerate import load_checkpoint_and_dispatch

        return load_checkpoint_and_dispatch(_module(), str(folder), **options)

    return load


def _in_model(folder: Path) -> Any:
    from accelerate import load_checkpoint_in_model

    module = _module("cpu")
    load_checkpoint_in_model(module, str(folder))
    return module


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    aside = folder.with_name(f"{folder.name}-aside")
    try:
        yield aside
    finally:
        shutil.rmtree(aside)


def _disk(folder: Path) -> Any:
    from accelerate import load_checkpoint_and_dispatch

    halves: dict[str, Any] = {str(index): "cpu" if index % 2 else "disk" for index in range(_LAYERS)}
    with _aside(folder) as aside:
        module = load_checkpoint_and_dispatch(_module(), str(folder), device_map=halves, offload_folder=aside, offload_state_dict=False)
        return {name: layer._hf_hook.weights_map["weight"].clone() for name, layer in module.named_children() if int(name) % 2 == 0}  # noqa: SLF001 - no other way to them


_STAGES = ("deserialize", "load_state_dict")


def _case(name: str, load: Callable[[Path], Any], stages: tuple[str, ...] = _STAGES, **options: Any) -> Case:
    known = {"name": name, "library": "accelerate", "write": _write, "load": load, "loader": "accelerate", "stages": stages}
    return Case(**known | {"needs": ("accelerate", "safetensors")} | options)


CASES = [
    _case("load_checkpoint_and_dispatch", _dispatch(device_map={"": "cpu"})),
    _case("load_checkpoint_and_dispatch, auto", _dispatch(device_map="auto"), (*_STAGES, "initialize")),
    _case("load_checkpoint_and_dispatch, sharded", _dispatch(device_map={"": "cpu"}), write=_write_shards),
    _case("load_checkpoint_and_dispatch, .bin", _dispatch(device_map={"": "cpu"}), write=_write_pickle),
    _case("load_checkpoint_and_dispatch, half to disk", _disk, (*_STAGES, "cache", "initialize")),
    _case("load_checkpoint_in_model", _in_model),
]
