"""What a host sees of a call, to be compared with and without loadspan; and files that are cold."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Any

import loadspan
from recorded import walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OURS = os.path.dirname(loadspan.__file__)  # noqa: PTH120 - a prefix of file names in tracebacks


def failure(call: Callable[[], Any]) -> list[Any]:
    """Type and arguments of what *call* raises and of what it was raised from, and the frames it came through that are not ours."""
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is compared
        found: list[Any] = []
        chain: BaseException | None = error
        while chain is not None:
            frames = traceback.extract_tb(chain.__traceback__)
            found += [type(chain), chain.args, [(frame.filename, frame.lineno) for frame in frames if not frame.filename.startswith(OURS)]]
            chain = chain.__cause__ or chain.__context__
        return found
    raise AssertionError("nothing was raised")


def layer() -> Any:
    """A linear layer of two megabytes."""
    import torch

    return torch.nn.Linear(1000, 500, bias=False)


def the(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """Attributes of the one span *name* in a tree."""
    found = [span for span in walk(tree) if span["name"] == name]
    assert len(found) == 1, [span["name"] for span in walk(tree)]
    return dict(found[0]["attributes"])


def told(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """Name of the span and type of each exception that was written down."""
    return [(span["name"], event["exception.type"]) for span in walk(tree) for _, event in span["events"]]


def equal(left: Any, right: Any) -> bool:
    """Whether two results are bit for bit the same tensors under the same names."""
    import torch

    if isinstance(left, torch.nn.Module):
        return type(left) is type(right) and equal(dict(left.state_dict()), dict(right.state_dict()))
    if isinstance(left, torch.Tensor):
        same = left.dtype == right.dtype and left.device == right.device and left.stride() == right.stride()
        return same and (left.device.type == "meta" or bool(torch.equal(left, right)))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def make_cold(path: Path) -> bool:
    """Drop a file from the page cache; whether it has gone."""
    import ctypes
    import mmap

    import numpy as np

    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
            pages = np.zeros(-(-len(mapping) // mmap.PAGESIZE), np.uint8)
            array = np.frombuffer(mapping, np.uint8)
            libc = ctypes.CDLL(None, use_errno=True)
            failed = libc.mincore(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(len(mapping)), ctypes.c_void_p(pages.ctypes.data))
            del array
    return not failed and not (pages & 1).any()
