"""torch.distributed.checkpoint: sharded checkpoints, in its own format and as safetensors, and what is loaded with them."""

from __future__ import annotations

import warnings
import zipfile
from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from pathlib import Path

_TENSORS, _SHAPE = 147, (3072, 1024)
_SIZE = _TENSORS * 3072 * 1024 * 4
_READ = ("read", "deserialize", "load_state_dict")


def _state(value: float = 0.0) -> dict[str, Any]:
    import torch

    return {f"layers.{index}.weight": torch.full(_SHAPE, value * index / 8) for index in range(_TENSORS)}


def _quiet() -> None:
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _write(folder: Path) -> Truth:
    import torch.distributed.checkpoint as dcp

    _quiet()
    dcp.save({"model": _state(1.0), "step": 7}, checkpoint_id=folder)
    return {"deserialize": _SIZE, "load_state_dict": _SIZE}


def _write_safetensors(folder: Path) -> Truth:
    from safetensors.torch import save_file

    state = list(_state(1.0).items())
    for shard in range(4):
        save_file(dict(state[shard::4]), folder / f"model-{shard + 1:05}-of-00004.safetensors")
    return {"deserialize": _SIZE, "load_state_dict": _SIZE}


def _load(folder: Path) -> Any:
    import torch.distributed.checkpoint as dcp

    _quiet()
    state = {"model": _state(), "step": 0}
    dcp.load(state, checkpoint_id=folder)
    return state


def _safetensors(folder: Path) -> Any:
    import torch.distributed.checkpoint as dcp

    _quiet()
    state = _state()
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    return state


def _safetensors_by_threads(folder: Path) -> Any:
    import torch.distributed.checkpoint as dcp

    _quiet()
    state = _state()
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder), thread_count=2))
    return state


def _to_torch_save(folder: Path) -> Any:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    out = folder.with_suffix(".pt")
    dcp_to_torch_save(folder, out)
    try:
        with zipfile.ZipFile(out) as archive:
            return [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]
    finally:
        out.unlink()


CASES = [
    Case(name="dcp.load", library="torch", write=_write, load=_load, loader="torch", stages=_READ, needs=("torch>=2.2",)),
    Case(
        name="dcp.load, safetensors",
        library="torch",
        write=_write_safetensors,
        load=_safetensors,
        loader="torch",
        stages=_READ,
        needs=("safetensors", "torch>=2.9"),
    ),
    Case(
        name="dcp.load, safetensors by two threads",
        library="torch",
        write=_write_safetensors,
        load=_safetensors_by_threads,
        loader="torch",
        stages=_READ,
        needs=("safetensors", "torch>=2.9"),
    ),
    Case(
        name="dcp_to_torch_save",
        library="torch",
        write=_write,
        load=_to_torch_save,
        loader="torch",
        stages=(*_READ, "initialize"),
        needs=("torch>=2.2",),
    ),
]
