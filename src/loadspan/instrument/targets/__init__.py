"""The rows of all libraries, a file each. To add a library: write its file, and name it here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan.instrument.targets import (
    compiled,
    crypto,
    diffusers,
    distributed_checkpoint,
    files,
    fsspec,
    hub,
    key_derivation,
    mapped_files,
    moves,
    peft,
    s3,
    safetensors,
    sentence_transformers,
    shared_memory,
    timm,
    torch,
    torch_hub,
    transformers,
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
        *compiled.ROWS,
        *torch_hub.ROWS,
        *distributed_checkpoint.ROWS,
        *peft.ROWS,
        *diffusers.ROWS,
        *transformers.ROWS,
        *timm.ROWS,
        *sentence_transformers.ROWS,
        *shared_memory.ROWS,
        *hub.ROWS,
        *fsspec.ROWS,
        *s3.ROWS,
    ]
