"""
The rows of all libraries, a file each, imported when the library is. To add a library: write its file, and name it here.

Most programs import few of these libraries, and many processes none: what is not needed costs them nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadspan.instrument.patching import Target
    from loadspan.settings import Settings

_FILES = ("files", "mapped_files")
_PYTHON = ("key_derivation", "shared_memory")
"""Files that have rows of Python's own modules, which are there from the beginning."""

LIBRARIES = {
    "Crypto": ("crypto",),
    "Cryptodome": ("crypto",),
    "accelerate": ("accelerate", "accelerate_hooks"),
    "boto3": ("s3",),
    "botocore": ("s3",),
    "cryptography": ("crypto",),
    "diffusers": ("diffusers",),
    "flax": ("jax",),
    "fastsafetensors": ("fastsafetensors",),
    "fsspec": ("fsspec",),
    "gguf": ("gguf",),
    "h5py": ("keras",),
    "huggingface_hub": ("hub", "fsspec"),
    "jax": ("jax",),
    "keras": ("keras",),
    "nacl": ("crypto",),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "orbax": ("jax",),
    "peft": ("peft",),
    "pyrage": ("crypto",),
    "runai_model_streamer": ("runai",),
    "safetensors": ("safetensors", "arrays"),
    "sentence_transformers": ("sentence_transformers",),
    "tensorflow": ("tensorflow", "tensorflow_1"),
    "tensorizer": ("tensorizer",),
    "timm": ("timm",),
    "tink": ("crypto",),
    "torch": ("torch", "moves", "compiled", "torch_hub", "distributed_checkpoint"),
    "transformers": ("transformers", "transformers_4", "transformers_parts"),
}
"""Libraries by the name of their package, and the files with rows of them."""


def _rows(file: str) -> tuple[Target, ...]:
    rows: tuple[Target, ...] = import_module(f"{__name__}.{file}").ROWS
    return rows


def at_once(settings: Settings) -> list[Target]:
    """The rows that *settings* ask for and that wait for no library."""
    return [row for file in (*(_FILES if settings.file_reads else ()), *_PYTHON) for row in _rows(file)]


def of(library: str) -> list[Target]:
    """The rows for *library*, one of `LIBRARIES`, and for what it uses of Python's own."""
    mine = (library, *sys.stdlib_module_names)
    return [row for file in LIBRARIES[library] for row in _rows(file) if row.module.partition(".")[0] in mine]


def rows(settings: Settings) -> list[Target]:
    """Every row that *settings* ask for: imports all files."""
    files = dict.fromkeys(file for found in LIBRARIES.values() for file in found)
    return [*at_once(settings), *(row for file in files for row in _rows(file))]
