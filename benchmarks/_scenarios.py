"""
The loads whose time is measured: real libraries on real files, written here.

At scale 1 a warm load takes 0.5 to 1.5 s on two ordinary cores. `write` and `fresh` are not timed, `load` is.
"""

from __future__ import annotations

import importlib
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

MODEL = "model.safetensors"
SEALED = "model.enc"
_CHUNK = 4 << 20
_NONCE = 12
_GB = 1_000_000_000
_FLOAT = 4

Truth = dict[str, int]
"""Bytes by stage name, as the files and tensors themselves have them; "" for the load."""


@dataclass(frozen=True)
class Scenario:
    """One load."""

    name: str
    title: str
    needs: tuple[str, ...]
    """Modules it imports."""
    disk: float
    """Bytes of its files at scale 1."""
    write: Callable[[Path, float], Truth]
    """Write the files of a load of this scale into a folder."""
    fresh: Callable[[Path], Any]
    """What a program has before it loads: the module, where the library does not make it."""
    load: Callable[[Path, Any], Any]


# Plain modules and state dicts


def flat_module(shapes: Iterable[Sequence[int]]) -> Any:
    """A module of so many parameters, its memory not yet touched."""
    import torch

    module = torch.nn.Module()
    for index, shape in enumerate(shapes):
        module.register_parameter(f"p{index}", torch.nn.Parameter(torch.empty(shape), requires_grad=False))
    return module


def write_flat(path: Path, count: int, shape: Sequence[int]) -> int:
    """Write *count* float32 tensors; returns their bytes."""
    import torch
    from safetensors.torch import save_file

    save_file({f"p{index}": torch.full(tuple(shape), index % 7 / 8) for index in range(count)}, path)
    return count * math.prod(shape) * _FLOAT


def fresh_flat(folder: Path) -> Any:
    """The module that fits the file in *folder*."""
    from safetensors import safe_open

    with safe_open(folder / MODEL, framework="pt") as file:
        shape = file.get_slice("p0").get_shape()
        return flat_module([shape] * len(file.keys()))


def _write_147(folder: Path, scale: float) -> Truth:
    size = write_flat(folder / MODEL, 147, (max(1, round(4096 * scale)), 1024))
    return {"": size, names.DESERIALIZE: size, names.LOAD_STATE_DICT: size, names.CONVERT: size // 2}


def _write_20000(folder: Path, scale: float) -> Truth:
    # As many tensors at every scale above 1: it is they that cost.
    size = write_flat(folder / MODEL, max(10, round(20_000 * min(1.0, scale))), (64, round(160 * max(1.0, scale))))
    return {"": size, names.DESERIALIZE: size, names.LOAD_STATE_DICT: size, names.CONVERT: size // 2}


def _write_one_by_one(folder: Path, scale: float) -> Truth:
    truth = _write_20000(folder, scale)
    del truth[names.CONVERT]
    return truth


def load_whole(folder: Path, module: Any) -> Any:
    """File, module, half precision: as most programs do it."""
    import safetensors.torch
    import torch

    module.load_state_dict(safetensors.torch.load_file(folder / MODEL))
    return module.to(torch.bfloat16)


def _load_half(folder: Path, module: Any) -> Any:
    import safetensors.torch

    module.load_state_dict(safetensors.torch.load_file(folder / MODEL))
    return module.half()


def load_one_by_one(folder: Path, module: Any) -> Any:
    """Tensor by tensor, as many loaders do it."""
    import safetensors

    with safetensors.safe_open(folder / MODEL, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a handle is no mapping
    return module.load_state_dict(state)


# Encrypted


def _write_sealed(folder: Path, scale: float) -> Truth:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    size = write_flat(folder / MODEL, 147, (max(1, round(1300 * scale)), 1024))
    encrypt = AESGCM(bytes(32)).encrypt
    sealed = 0
    with (folder / MODEL).open("rb") as source, (folder / SEALED).open("wb") as target:
        while chunk := source.read(_CHUNK):
            nonce = os.urandom(_NONCE)
            data = encrypt(nonce, chunk, None)
            target.write(nonce + len(data).to_bytes(4, "little") + data)
            sealed += len(data)
    return {
        "": size,
        names.READ: (folder / SEALED).stat().st_size,
        names.DECRYPT: sealed,
        names.DESERIALIZE: size,
        names.LOAD_STATE_DICT: size,
    }


def _load_sealed(folder: Path, module: Any) -> Any:
    import safetensors.torch
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    decrypt = AESGCM(bytes(32)).decrypt
    chunks = []
    with open(folder / SEALED, "rb") as file:  # noqa: PTH123 - what hosts call
        while nonce := file.read(_NONCE):
            length = int.from_bytes(file.read(4), "little")
            chunks.append(decrypt(nonce, file.read(length), None))
    return module.load_state_dict(safetensors.torch.load(b"".join(chunks)))


# transformers and diffusers make the module themselves


def _no_module(folder: Path) -> None:  # noqa: ARG001 - the interface
    return None


def _write_weights(model: Any, path: Path) -> int:
    """A bfloat16 checkpoint for *model*, which is on the meta device: real initialization would take a minute."""
    import torch
    from safetensors.torch import save_file

    state = {key: torch.full(tensor.shape, 0.01, dtype=torch.bfloat16) for key, tensor in model.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})
    return sum(int(tensor.nbytes) for tensor in state.values())


def _write_llama(folder: Path, scale: float) -> Truth:
    import torch

    transformers: Any = importlib.import_module("transformers")
    width = 128 * max(1, round(20 * scale**0.5))
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 27 // 10,
        num_hidden_layers=16,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        vocab_size=max(100, round(32_000 * scale)),
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    size = _write_weights(model, folder / MODEL)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return {"": size, names.DESERIALIZE: size}


def _load_llama(folder: Path, module: None) -> Any:  # noqa: ARG001 - the interface
    import torch

    transformers: Any = importlib.import_module("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _write_unet(folder: Path, scale: float) -> Truth:
    import torch

    diffusers: Any = importlib.import_module("diffusers")
    width = 32 * max(1, round(22 * scale**0.5))
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(width, 2 * width, 2 * width),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=768,
        )
    size = _write_weights(model, folder / "diffusion_pytorch_model.safetensors")
    model.save_config(folder)
    return {"": size, names.DESERIALIZE: size}


def _load_unet(folder: Path, module: None) -> Any:  # noqa: ARG001 - the interface
    import torch

    diffusers: Any = importlib.import_module("diffusers")
    return diffusers.UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)


SCENARIOS = (
    Scenario(
        "safetensors",
        "safetensors, 147 tensors: load_file, load_state_dict, .to(bfloat16)",
        ("torch", "safetensors"),
        2.5 * _GB,
        _write_147,
        fresh_flat,
        load_whole,
    ),
    Scenario(
        "transformers",
        "transformers: LlamaForCausalLM.from_pretrained, bfloat16 to float32",
        ("torch", "transformers"),
        2.8 * _GB,
        _write_llama,
        _no_module,
        _load_llama,
    ),
    Scenario(
        "diffusers",
        "diffusers: UNet2DConditionModel.from_pretrained, bfloat16 to float32",
        ("torch", "diffusers"),
        2.8 * _GB,
        _write_unet,
        _no_module,
        _load_unet,
    ),
    Scenario(
        "many",
        "20 000 tensors: load_file, load_state_dict, .half()",
        ("torch", "safetensors"),
        0.9 * _GB,
        _write_20000,
        fresh_flat,
        _load_half,
    ),
    Scenario(
        "one-by-one",
        "20 000 tensors one by one: safe_open, get_tensor, load_state_dict",
        ("torch", "safetensors"),
        0.9 * _GB,
        _write_one_by_one,
        fresh_flat,
        load_one_by_one,
    ),
    Scenario(
        "encrypted",
        "encrypted: open().read, AES-GCM, safetensors.torch.load, load_state_dict",
        ("torch", "safetensors", "cryptography"),
        1.7 * _GB,
        _write_sealed,
        fresh_flat,
        _load_sealed,
    ),
)
