"""The rows of all libraries, a file each. To add a library: write its file, and name it here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan.instrument.targets import (
    accelerate,
    accelerate_hooks,
    arrays,
    compiled,
    crypto,
    diffusers,
    distributed_checkpoint,
    files,
    fsspec,
    gguf,
    hub,
    jax,
    keras,
    key_derivation,
    mapped_files,
    moves,
    onnxruntime,
    openvino,
    peft,
    s3,
    safetensors,
    sentence_transformers,
    shared_memory,
    timm,
    torch,
    torch_hub,
    transformers,
    transformers_4,
)

if TYPE_CHECKING:
    from loadspan.instrument.patching import Target
    from loadspan.settings import Settings


def rows(settings: Settings) -> list[Target]:
    """Every row that *settings* ask for."""
    files_rows = (*files.ROWS, *mapped_files.ROWS) if settings.file_reads else ()
    return [
        *files_rows,
        *crypto.ROWS,
        *key_derivation.ROWS,
        *safetensors.ROWS,
        *torch.ROWS,
        *moves.ROWS,
        *accelerate_hooks.ROWS,
        *accelerate.ROWS,
        *compiled.ROWS,
        *torch_hub.ROWS,
        *distributed_checkpoint.ROWS,
        *peft.ROWS,
        *diffusers.ROWS,
        *transformers.ROWS,
        *transformers_4.ROWS,
        *gguf.ROWS,
        *timm.ROWS,
        *sentence_transformers.ROWS,
        *shared_memory.ROWS,
        *hub.ROWS,
        *fsspec.ROWS,
        *s3.ROWS,
        *arrays.ROWS,
        *jax.ROWS,
        *keras.ROWS,
        *onnxruntime.ROWS,
        *openvino.ROWS,
    ]
