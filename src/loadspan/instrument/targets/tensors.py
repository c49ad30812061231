"""Bytes of tensors in what a loader returns or takes. Imports nothing: a tensor is whatever torch says is one."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LIMIT = 200_000  # objects looked at: a pickle may hold anything
_CARRIER = "bitsandbytes"
"""
Library whose tensors have their scales in attributes, and in objects there (https://github.com/bitsandbytes-foundation/bitsandbytes,
`nn/modules.py`). Attributes of any other may be anything, for example what it holds once more.
"""
_FEW = 16  # objects that one tensor carries
_PARTS = {
    "torch.sparse_coo": ("_indices", "_values"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values"),
}
_FLATTEN = "__tensor_flatten__"
"""
Method of a tensor that is made of others, and names them: a quantized one its values and scales, a sharded one the part that is here.

torch's own protocol (`torch.utils._python_dispatch.is_traceable_wrapper_subclass`).
"""


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


class _Plain(dict[type, bool]):
    """Whether a tensor of a class is all there is of it. Asked for every tensor: to look at a class takes longer than to look it up."""

    def __missing__(self, kind: type) -> bool:
        return self.setdefault(kind, kind.__module__.partition(".")[0] != _CARRIER and not hasattr(kind, _FLATTEN))


PLAIN = _Plain()


def plain(tensor: Any) -> list[Any]:
    """The tensors that hold the memory of *tensor*: itself, those that it is made of, those that it carries."""
    if PLAIN[type(tensor)]:
        return [tensor]
    if hasattr(type(tensor), _FLATTEN):
        torch: Any = sys.modules["torch"]
        made_of = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]  # a sharded one names its device mesh, too
        return [part for inner in made_of if isinstance(inner, torch.Tensor) for part in plain(inner)]
    return [tensor, *_carried(tensor)]


def _carried(tensor: Any) -> list[Any]:
    """Tensors of other memory than its own in attributes of *tensor*, and of objects of its library there."""
    torch: Any = sys.modules["torch"]
    found, seen, todo = {}, {id(tensor)}, deque([tensor])
    while todo and len(seen) < _FEW:
        for value in getattr(todo.popleft(), "__dict__", {}).values():
            if isinstance(value, torch.Tensor):
                if value.device.type != "meta":
                    found[_storage(value)[0]] = value
            elif type(value).__module__.partition(".")[0] == _CARRIER and id(value) not in seen and not isinstance(value, torch.nn.Module):
                seen.add(id(value))
                todo.append(value)
    found.pop(_storage(tensor)[0], None)
    return list(found.values())


def size(tensor: Any) -> int:
    """Bytes of *tensor* and of what it is made of and carries; none of one that is not initialized."""
    return _size(tensor) if PLAIN[type(tensor)] else sum(map(_size, plain(tensor)))


def _size(tensor: Any) -> int:
    """Bytes of a plain tensor; of a sparse one, those of its parts."""
    try:
        return int(tensor.nbytes)
    except (RuntimeError, ValueError):
        return sum(int(getattr(tensor, part)().nbytes) for part in _PARTS.get(str(tensor.layout), ()))


def sizes(tensors: Collection[Any]) -> int:
    """Bytes of *tensors*, those on the meta device left out."""
    # In one pass: each tensor lies where nothing else was read, and to go there again costs as much again.
    try:
        return sum([tensor.nbytes if PLAIN[type(tensor)] else size(tensor) for tensor in tensors if not tensor.is_meta])
    except (RuntimeError, ValueError):  # one of them is no plain tensor
        return sum(size(tensor) for tensor in tensors if not tensor.is_meta)


def unique_size(tensors: list[Any]) -> int:
    """Bytes of the distinct storages behind *tensors*: a view brings its whole storage, two views bring it once."""
    return sum(dict(_storage(part) for tensor in tensors for part in plain(tensor)).values())


def storages(things: Any) -> set[int]:
    """Identities of the storages behind the tensors in *things*."""
    return {_storage(part)[0] for tensor in find(things) for part in plain(tensor)}


def made(things: Any, given: Collection[int]) -> int:
    """Bytes of the tensors in *things* that are in other storages than those *given*."""
    parts = [part for tensor in find(things) for part in plain(tensor)]
    return sum(_size(part) for storage, part in {_storage(part)[0]: part for part in parts}.items() if storage not in given)


def _storage(tensor: Any) -> tuple[int, int]:
    """Identity and bytes of the storage of a plain tensor."""
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr() or id(tensor), storage.nbytes()
    except (RuntimeError, ValueError):  # sparse, wrapped and uninitialized tensors have none
        return id(tensor), _size(tensor)
