"""
Write the files that `serve.py` serves: an encrypted base model, two encrypted LoRA adapters and the passphrase that opens them.

    python make_models.py FOLDER [--size MB]

    FOLDER/passphrase
    FOLDER/base/base.json    width and number of blocks
    FOLDER/base/base.enc     safetensors, AES-256-GCM in frames of 4 MiB
    FOLDER/lora/a.enc        a `torch.save` file, ChaCha20-Poly1305 in one piece
    FOLDER/lora/b.enc

The weights are random but the same every time. What is already there and whole is left alone, so a second call returns at once.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from pathlib import Path

import safetensors.torch
import torch
from sealed import seal_chunked, seal_whole
from toy_model import ATTENTION, MLP_RATIO, VOCABULARY, Config, Transformer

ADAPTERS = ("a", "b")
RANK = 64
ALPHA = 64.0
SMALLEST = 5
"""Megabytes; in less, the adapters would outweigh the model."""
_STEP = 16
_BLOCKS = 8
_DTYPE = torch.bfloat16
_PASSPHRASE = b"open sesame"


def say(text: str) -> None:
    """Tell the user what is being done."""
    print(f"make_models: {text}", file=sys.stderr, flush=True)


def choose_config(size: int) -> Config:
    """Return the widest model whose files together take at most *size* bytes."""
    width = _STEP
    while _total_size(width + _STEP) <= size:
        width += _STEP
    return Config(width, _BLOCKS)


def _total_size(width: int) -> int:
    block = len(ATTENTION) * width * width + 2 * MLP_RATIO * width * width
    adapter = _BLOCKS * len(ATTENTION) * 2 * width * RANK
    return _DTYPE.itemsize * (VOCABULARY * width + _BLOCKS * block + len(ADAPTERS) * adapter)


def _random(shape: torch.Size | tuple[int, ...], generator: torch.Generator, deviation: float) -> torch.Tensor:
    return torch.randn(shape, generator=generator).mul_(deviation).to(_DTYPE)


def make_base(config: Config) -> bytes:
    """Weights of a base model, as safetensors bytes."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weights = {name: _random(shape, generator, shape[-1] ** -0.5) for name, shape in shapes.items()}
    data: bytes = safetensors.torch.save(weights)
    return data


def make_adapter(config: Config, name: str) -> bytes:
    """LoRA weights for every attention layer, as the bytes of a `torch.save` file."""
    generator = torch.Generator().manual_seed(1 + ADAPTERS.index(name))
    weights = {}
    for block in range(config.blocks):
        for layer in ATTENTION:
            prefix = f"blocks.{block}.attention.{layer}"
            weights[f"{prefix}.lora_A"] = _random((RANK, config.width), generator, config.width**-0.5)
            weights[f"{prefix}.lora_B"] = _random((config.width, RANK), generator, RANK**-0.5)
    buffer = io.BytesIO()
    torch.save({"alpha": ALPHA, "weights": weights}, buffer)
    return buffer.getvalue()


def _salt(name: str, config: Config) -> bytes:
    # Of the content, which name and config determine: no two files share a key.
    return hashlib.sha256(f"{name} {config}".encode()).digest()[:16]


def make(folder: Path, size: int) -> None:
    """Write into *folder* files of about *size* bytes in all, unless it holds them already."""
    config = choose_config(size)
    passphrase, base, description = folder / "passphrase", folder / "base" / "base.enc", folder / "base" / "base.json"
    adapters = {name: folder / "lora" / f"{name}.enc" for name in ADAPTERS}
    wanted = json.dumps(config._asdict())
    # The description goes first and comes last: while it is there, the files are whole and of its size.
    if description.exists() and description.read_text() == wanted and all(path.exists() for path in (passphrase, base, *adapters.values())):
        say(f"{folder}: already complete")
        return
    for path in (base, *adapters.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
    description.unlink(missing_ok=True)
    passphrase.write_bytes(_PASSPHRASE)
    say(f"{base}: base model, {config.blocks} blocks of width {config.width}")
    seal_chunked(base, make_base(config), _PASSPHRASE, _salt("base", config))
    for name, path in adapters.items():
        say(f"{path}: LoRA adapter of rank {RANK}")
        seal_whole(path, make_adapter(config, name), _PASSPHRASE, _salt(name, config))
    description.write_text(wanted)
    total = sum(path.stat().st_size for path in (base, *adapters.values()))
    say(f"{folder}: complete, {total / 1e6:.0f} MB")


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description="Write an encrypted base model and two encrypted LoRA adapters.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write; made where it is missing")
    parser.add_argument("--size", type=int, default=300, metavar="MB", help="size of all files together (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.size < SMALLEST:
        parser.error(f"--size {chosen.size}: too small. Ask for {SMALLEST} or more.")
    make(chosen.folder, chosen.size * 1_000_000)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
