"""Bytes of tensors in what a loader returns or takes. Imports nothing: a tensor is whatever torch says is one."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LIMIT = 200_000  # objects looked at: a pickle may hold anything
_PARTS = {
    "torch.sparse_coo": ("_indices", "_values"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values"),
}
_SHARDED, _LOCAL = "torch.distributed.tensor", "_local_tensor"
"""A tensor of which each rank holds a part is counted with the part that is here."""


def find(result: Any) -> Iterator[Any]:
    """Tensors in nested mappings, lists and tuples, and in modules; meta tensors left out."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    todo, seen = deque([result]), 0
    while todo and seen < _LIMIT:
        thing = todo.popleft()  # in the order of the result: others recognize a state dict by a sample of it
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


def size(tensor: Any) -> int:
    """Bytes of *tensor*; of a sparse one, those of its parts; none of one that is not initialized."""
    if _SHARDED in sys.modules:
        tensor = getattr(tensor, _LOCAL, tensor)
    try:
        return int(tensor.nbytes)
    except (RuntimeError, ValueError):
        return sum(int(getattr(tensor, part)().nbytes) for part in _PARTS.get(str(tensor.layout), ()))


def sizes(tensors: Collection[Any]) -> int:
    """Bytes of *tensors*, those on the meta device left out."""
    # In one pass: each tensor lies where nothing else was read, and to go there again costs as much again.
    if _SHARDED in sys.modules:
        tensors = [getattr(tensor, _LOCAL, tensor) for tensor in tensors]
    try:
        return sum([tensor.nbytes for tensor in tensors if not tensor.is_meta])
    except (RuntimeError, ValueError):  # one of them is no plain tensor
        return sum(size(tensor) for tensor in tensors if not tensor.is_meta)


def unique_size(tensors: list[Any]) -> int:
    """Bytes of the distinct storages behind *tensors*: a view brings its whole storage, two views bring it once."""
    return sum(dict(map(_storage, tensors)).values())


def _storage(tensor: Any) -> tuple[int, int]:
    """Identity and bytes of the storage of *tensor*."""
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr() or id(tensor), storage.nbytes()
    except (RuntimeError, ValueError):  # sparse, wrapped and uninitialized tensors have none
        return id(tensor), size(tensor)
