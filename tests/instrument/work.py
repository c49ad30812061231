"""Work to be recorded: real files, modules and calls, small and quick."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MB = 1_000_000
LONG = 0.002
"""Seconds after which a coarse call has a span of its own, with some to spare."""


def rest(seconds: float = LONG) -> None:
    """Let time pass; never less than asked for."""
    until = time.perf_counter() + seconds
    while (left := until - time.perf_counter()) > 0:
        time.sleep(left)


def fail(error: BaseException, seconds: float = LONG) -> None:
    """Work for a while in vain."""
    rest(seconds)
    raise error


def fine(recorder: Any, stage: str, size: int | None = None, *, seconds: float = 0.0, **facts: Any) -> None:
    """One fine call as a row makes it."""
    call = recorder.begin_fine(stage, **facts)
    assert call is not None
    if seconds:
        rest(seconds)
    recorder.end_fine(call, size)


def layer(megabytes: float = 2.0) -> Any:
    """A linear layer of about so many megabytes."""
    import torch

    return torch.nn.Linear(1000, int(megabytes * 250), bias=False)


def checkpoint(folder: Path, name: str = "model.safetensors", megabytes: float = 2.0) -> Path:
    """A safetensors file that fits `layer(megabytes)`."""
    import safetensors.torch
    import torch

    path = folder / name
    safetensors.torch.save_file({"weight": torch.zeros(int(megabytes * 250), 1000)}, path)
    return path


def many_tensors(folder: Path, count: int) -> Path:
    """A safetensors file of *count* tensors of 16 bytes."""
    import safetensors.torch
    import torch

    path = folder / f"{count}.safetensors"
    safetensors.torch.save_file({f"layers.{index}": torch.zeros(4) for index in range(count)}, path)
    return path
