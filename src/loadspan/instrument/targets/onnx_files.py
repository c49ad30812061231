"""
Which files beside an ONNX file have weights of it, and how many bytes: the runtime maps them and tells nobody.

Of the format this knows where a model has its graph, a graph its initializers and an initializer the place of its data (`onnx.proto`,
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Data that is in the file itself is passed over by its length.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_GRAPH, _INITIALIZER, _EXTERNAL, _KEY, _VALUE = 7, 5, 13, 1, 2  # fields of ModelProto, GraphProto, TensorProto, StringStringEntryProto
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # how a field is written
_AT_ONCE = 1 << 12  # bytes: what is between two tensors that are in the file is not read
_LONGEST = 10  # bytes of a number
_SHORT = 4096  # bytes of a file's name and of numbers written out


class _File:
    """Bytes of a file that is walked from the front to the back."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._window, self._begin = b"", 0
        self.size = os.fstat(descriptor).st_size

    def get(self, begin: int, size: int) -> bytes:
        """So many bytes, fewer at the end of the file."""
        if not self._begin <= begin <= begin + size <= self._begin + len(self._window):
            os.lseek(self._descriptor, begin, os.SEEK_SET)
            self._window, self._begin = os.read(self._descriptor, max(size, _AT_ONCE)), begin
        return self._window[begin - self._begin : begin - self._begin + size]

    def number(self, begin: int) -> tuple[int, int]:
        """A number of seven bits a byte, and where it ends."""
        found = 0
        for place, byte in enumerate(self.get(begin, _LONGEST)):
            found |= (byte & 0x7F) << 7 * place
            if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follow
                return found, begin + place + 1
        raise ValueError("no number")

    def messages(self, wanted: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Begin and end of each field *wanted* of the message between *begin* and *end*."""
        while begin < end:
            tag, begin = self.number(begin)
            if tag & 7 == _BYTES:
                length, begin = self.number(begin)
                if tag >> 3 == wanted:
                    yield begin, min(begin + length, end)
                begin += length
            elif tag & 7 == _VARINT:
                _, begin = self.number(begin)
            elif tag & 7 in (_EIGHT, _FOUR):
                begin += 8 if tag & 7 == _EIGHT else 4
            else:
                raise ValueError("no such field")

    def text(self, wanted: int, begin: int, end: int) -> str:
        """The text that is the field *wanted*."""
        found = next(self.messages(wanted, begin, end), (0, 0))
        return self.get(found[0], min(found[1] - found[0], _SHORT)).decode("utf-8", "surrogateescape")


def beside(path: str) -> dict[str, int]:
    """
    Paths of the files that have weights of the model *path*, with the bytes that it has there; empty for what is no such model.

    Raises:
        OSError: the model cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return _places(_File(descriptor), os.path.dirname(path))  # noqa: PTH120 - no Path object on the recording side
    except ValueError:  # the runtime reads other formats, too
        return {}
    finally:
        os.close(descriptor)


def _places(file: _File, folder: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    found: dict[str, int] = {}
    for graph in file.messages(_GRAPH, 0, file.size):
        for initializer in file.messages(_INITIALIZER, *graph):
            said = {file.text(_KEY, *entry): file.text(_VALUE, *entry) for entry in file.messages(_EXTERNAL, *initializer)}
            if "location" not in said:
                continue
            where = os.path.join(folder, said["location"])  # noqa: PTH118 - as above
            if where not in sizes:
                sizes[where] = os.stat(where).st_size if os.path.isfile(where) else 0  # noqa: PTH113, PTH116 - as above
            rest = max(sizes[where] - int(said.get("offset", 0)), 0)
            if rest:
                found[where] = found.get(where, 0) + min(max(int(said.get("length", rest)), 0), rest)
    return found
