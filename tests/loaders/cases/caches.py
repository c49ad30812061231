"""Servers that keep weights in memory: encrypted files whose plaintext is in shared memory, adapters in a dictionary of their own."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections import OrderedDict
from multiprocessing import shared_memory
from typing import TYPE_CHECKING, Any

from case import Case, Truth

import loadspan

if TYPE_CHECKING:
    from pathlib import Path

_FILE = "base.enc"
_KEY, _NONCE = b"k" * 32, bytes(16)
_TENSORS, _SHAPE = 48, (2048, 1024)
_ONE = 2048 * 1024 * 4
_SIZE = _TENSORS * _ONE
_CHUNK = 16 << 20


def _cipher() -> Any:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES(_KEY), modes.CTR(_NONCE))


def _write(folder: Path) -> Truth:
    import torch

    plain = b"".join(torch.full(_SHAPE, index / 8).numpy().tobytes() for index in range(_TENSORS))
    (folder / _FILE).write_bytes(_cipher().encryptor().update(plain))
    return {"read": _SIZE, "decrypt": _SIZE, "cache": 2 * _SIZE, "load_state_dict": 2 * _SIZE, "convert": _SIZE}


def _module() -> Any:
    import torch

    module = torch.nn.Module()
    for index in range(_TENSORS):
        module.register_parameter(f"p{index}", torch.nn.Parameter(torch.empty(_SHAPE), requires_grad=False))
    return module


def _plaintext(name: str, path: Path, decryptor: Any, chunk: memoryview) -> shared_memory.SharedMemory:
    """The decrypted file: as another process has left it, else decrypted into shared memory for those that come later."""
    try:
        return shared_memory.SharedMemory(name)
    except FileNotFoundError:
        segment = shared_memory.SharedMemory(name, create=True, size=path.stat().st_size)
    at = 0
    with path.open("rb") as file:
        while size := file.readinto(chunk):
            at += decryptor.update_into(chunk[:size], segment.buf[at : at + size])
    return segment


def _request(name: str, path: Path) -> str:
    """Bring the base model; returns a checksum of it."""
    import torch

    module, decryptor, chunk = _module(), _cipher().decryptor(), memoryview(bytearray(_CHUNK))
    with loadspan.load("base", loader="server"):
        segment = _plaintext(name, path, decryptor, chunk)
        state = {f"p{i}": torch.frombuffer(segment.buf, dtype=torch.float32, count=_ONE // 4, offset=i * _ONE) for i in range(_TENSORS)}
        module.load_state_dict({key: tensor.view(_SHAPE) for key, tensor in state.items()})
        module.half()
    del state
    segment.close()
    found = hashlib.sha256()
    for tensor in module.parameters():
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def _answer(name: str, path: Path, answer: Any) -> None:
    answer.put(_request(name, path))


def _shared(folder: Path) -> Any:
    name, path = f"loadspan-case-{os.getpid()}", folder / _FILE
    first = _request(name, path)
    spawn = multiprocessing.get_context("spawn")
    answer = spawn.SimpleQueue()
    other = spawn.Process(target=_answer, args=(name, path, answer))
    other.start()
    second = answer.get()
    other.join()
    segment = shared_memory.SharedMemory(name)
    segment.close()
    segment.unlink()
    return first, second, other.exitcode


class _Cache:
    """The adapters used last."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self._folder, self._load = folder, load_file
        self._known: OrderedDict[str, Any] = OrderedDict()

    def __getitem__(self, name: str) -> Any:
        with loadspan.stage("cache") as stage:
            known = self._known.get(name)
            stage.set(cache_hit=known is not None, size=_SIZE if known is not None else None)
        if known is None:
            known = self._known[name] = self._load(self._folder / f"{name}.safetensors")
        return known


def _write_one(folder: Path) -> Truth:
    import torch
    from safetensors.torch import save_file

    save_file({f"p{index}": torch.full(_SHAPE, index / 8) for index in range(_TENSORS)}, folder / "style.safetensors")
    return {"deserialize": _SIZE, "cache": _SIZE, "load_state_dict": 2 * _SIZE, "convert": _SIZE}


def _dictionary(folder: Path) -> Any:
    cache, modules = _Cache(folder), [_module(), _module()]
    for module in modules:
        with loadspan.load("style", loader="server"):
            module.load_state_dict(cache["style"])
            module.half()
    return modules


CASES = [
    Case(
        name="decrypted into shared memory, and found there by another process",
        library="cryptography",
        write=_write,
        load=_shared,
        loader="server",
        stages=("read", "decrypt", "cache", "load_state_dict", "convert"),
        loads=2,
        needs=("torch", "cryptography"),
    ),
    Case(
        name="a dictionary of the program's own, a miss and a hit",
        library="safetensors",
        write=_write_one,
        load=_dictionary,
        loader="server",
        stages=("deserialize", "cache", "load_state_dict", "convert"),
        loads=2,
        needs=("torch",),
    ),
]
