"""Bytes of tensors in what a loader returns or takes. Imports nothing: a tensor is whatever torch says is one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIMIT = 200_000  # objects looked at: a pickle may hold anything


def find(result: Any) -> Iterator[Any]:
    """Tensors in nested mappings, lists and tuples, and in modules; meta tensors left out."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    todo, seen = [result], 0
    while todo and seen < _LIMIT:
        thing = todo.pop()
        seen += 1
        if isinstance(thing, torch.Tensor):
            if thing.device.type != "meta":
                yield thing
        elif isinstance(thing, dict):
            todo.extend(thing.values())
        elif isinstance(thing, list | tuple):
            todo.extend(thing)
        elif isinstance(thing, torch.nn.Module):
            todo.extend(thing.parameters())
            todo.extend(thing.buffers())


def unique_size(tensors: list[Any]) -> int:
    """Bytes of the distinct storages behind *tensors*: a view brings its whole storage, two views bring it once."""
    return sum(dict(map(_storage, tensors)).values())


def _storage(tensor: Any) -> tuple[int, int]:
    """Identity and bytes of the storage of *tensor*."""
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr() or id(tensor), storage.nbytes()
    except (NotImplementedError, RuntimeError):  # sparse, quantized and wrapped tensors have none
        return id(tensor), tensor.nbytes
