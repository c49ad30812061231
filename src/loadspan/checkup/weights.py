"""Which files below a path hold weights: a file, a model folder, a folder of the Hugging Face cache with its links."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

_SUFFIX = re.compile(
    "safetensors|gguf|ggml|bin|pt|pth|ckpt|onnx|h5|keras|msgpack|np[yz]|tensors|pb|tflite|engine|plan|llamafile|pkl|pickle|distcp|nemo|mar"
    "|model|enc|aes|age|gpg"
)
_SEALED = ("enc", "aes", "age", "gpg")  # of the file inside, the suffix before says what it is
_BIG = 16 << 20
"""Bytes from which a file counts as weights whatever its name says."""
_OTHER = "other"
_KERNEL = ("/proc", "/sys", "/dev")
"""Where no weights are, and where a walk would not end."""
_MOST = 20_000
_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class File:
    """One file with weights."""

    path: str
    """Absolute, links resolved."""
    size: int
    format: str
    """Its suffix, `other` where that says nothing."""
    readable: bool
    device: int
    """As stat(2) numbers the filesystem."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What was found below a path."""

    resolved: str
    folder: bool
    files: tuple[File, ...]
    broken: int
    """Links that lead nowhere."""
    complete: bool
    """Whether everything was looked at; a folder of very many files is not."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def formats(self) -> dict[str, int]:
        """How many files of each format, the most common first."""
        return dict(Counter(file.format for file in self.files).most_common())


@dataclass(slots=True)
class _Walk:
    found: dict[tuple[int, int], File] = field(default_factory=dict)
    folders: set[tuple[int, int]] = field(default_factory=set)
    seen: int = 0
    broken: int = 0
    complete: bool = True


def find(path: str) -> Weights | None:
    """What is below *path*; None where there is nothing, or it cannot be looked at."""
    try:
        resolved = os.path.realpath(path, strict=True)
        status = os.stat(resolved)  # noqa: PTH116 - names may be no text, and there are many
    except (OSError, ValueError):
        return None
    if not stat.S_ISDIR(status.st_mode):
        # A device can be read as well; its size is not in its status.
        alone = [_file(resolved, resolved, status)] if stat.S_ISREG(status.st_mode) else []
        return Weights(resolved, folder=False, files=tuple(alone), broken=0, complete=True)
    walk = _Walk()
    _below(resolved, walk)
    files = tuple(sorted(walk.found.values(), key=lambda file: file.path))
    weights = tuple(file for file in files if file.format != _OTHER or file.size >= _BIG)
    return Weights(resolved, folder=True, files=weights or files, broken=walk.broken, complete=walk.complete)


def _below(top: str, walk: _Walk) -> None:
    todo = [(top, 0)]
    while todo:
        folder, depth = todo.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    walk.seen += 1
                    if walk.seen > _MOST:
                        walk.complete = False
                        return
                    if _take(entry, walk) and entry.path not in _KERNEL:
                        if depth < _DEEPEST:
                            todo.append((entry.path, depth + 1))
                        else:
                            walk.complete = False
        except OSError:
            walk.complete = False


def _take(entry: os.DirEntry[str], walk: _Walk) -> bool:
    """Remember *entry* if it is a file; True for a folder that was not seen before, however many links lead to it."""
    try:
        status = entry.stat()
    except OSError:
        with suppress(OSError):
            walk.broken += entry.is_symlink()
        return False
    place = (status.st_dev, status.st_ino)
    if stat.S_ISDIR(status.st_mode):
        fresh = place not in walk.folders
        walk.folders.add(place)
        return fresh
    if stat.S_ISREG(status.st_mode):
        # The cache of Hugging Face has each file twice: without a suffix, and as a link that has one.
        before = walk.found.get(place)
        if before is None or before.format == _OTHER:
            walk.found[place] = _file(entry.path, os.path.realpath(entry.path), status)
    return False


def _file(name: str, resolved: str, status: os.stat_result) -> File:
    return File(resolved, status.st_size, _format(name), os.access(resolved, os.R_OK), status.st_dev)


def _format(name: str) -> str:
    parts = os.path.basename(name).lower().split(".")[1:]  # noqa: PTH119 - as above
    if not parts or not _SUFFIX.fullmatch(parts[-1]):
        return _OTHER
    return ".".join(parts[-2:]) if parts[-1] in _SEALED and len(parts) > 1 and _SUFFIX.fullmatch(parts[-2]) else parts[-1]
