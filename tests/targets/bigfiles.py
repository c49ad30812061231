"""Big files, the originals of what is patched, and ways in which programs read."""

from __future__ import annotations

import builtins
import hashlib
import io
import mmap
import os
import pickle
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from recorded import outline, walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
SIZE = 17 * MIB + 123
# In a dictionary: names of modules are rebound when we are installed.
ORIGINAL: dict[str, Any] = {"open": builtins.open, "mmap": mmap.mmap, "fromfile": np.fromfile, "memmap": vars(np.memmap)["__new__"]}


def digest(data: Any) -> str:
    """What stands for many bytes when results are compared."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def random_bytes(path: Path) -> Path:
    """A file of 17 MiB and some bytes."""
    path.write_bytes(os.urandom(SIZE))
    return path


def reads(load: dict[str, Any]) -> dict[str, Any]:
    """The one read of a load."""
    found = [span for span in walk(load) if span["name"] == "read"]
    assert len(found) == 1, outline(load)
    return found[0]


def sparse(path: Path, size: int) -> Path:
    """A file of holes, with some bytes at both ends."""
    with path.open("wb") as file:
        file.write(b"begin")
        file.truncate(size)
        file.seek(-3, os.SEEK_END)
        file.write(b"end")
    return path


def _chunks(size: int) -> Callable[[Any], Any]:
    return lambda file: [digest(b"".join(iter(lambda: file.read(size), b""))), file.tell()]


def _readinto(file: Any) -> Any:
    buffer = bytearray(3 * MIB)
    return [(count, digest(buffer[:count])) for count in iter(lambda: file.readinto(buffer), 0)]


def _seeks(file: Any) -> Any:
    found = [file.read(10), file.tell(), file.seek(-100, os.SEEK_END), file.read(1000), file.seek(12), file.tell(), file.read(0)]
    return [*found, file.seek(SIZE * 2), file.read(5), os.lseek(file.fileno(), 0, os.SEEK_CUR)]


def _lines(file: Any) -> Any:
    return [digest(file.readline()), digest(next(file)), len(file.readlines(5000)), file.tell()]


def _copy(file: Any) -> Any:
    target = io.BytesIO()
    shutil.copyfileobj(file, target)
    return digest(target.getvalue())


def _text(file: Any) -> Any:
    with io.TextIOWrapper(file, encoding="latin-1") as text:
        return [text.read(7), repr(text)]


def _mapped(file: Any) -> Any:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        return digest(mapping)


def _raised(function: Callable[[], Any]) -> tuple[type, Any]:
    try:
        function()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        return type(error), error.args
    return type(None), None


def _failures(file: Any) -> Any:
    found = [_raised(lambda: file.write(b"x")), _raised(lambda: file.readinto(b"fixed")), _raised(lambda: file.read("many"))]
    found.append(_raised(lambda: file.seek(-5)))
    file.close()
    return [*found, _raised(file.read), _raised(file.fileno), _raised(lambda: file.readinto(bytearray(4))), repr(file), file.closed]


def _looks(file: Any) -> Any:
    raw = getattr(file, "raw", file)
    flags = file.readable(), file.writable(), file.seekable(), file.isatty(), raw.closefd, os.get_inheritable(file.fileno())
    return [repr(file), repr(raw), repr(type(raw)), file.name, raw.name, file.mode, raw.mode, raw._blksize, vars(raw)["name"], *flags]  # noqa: SLF001 - as the original


WAYS: dict[str, Callable[[Any], Any]] = {
    "read": lambda file: digest(file.read()),
    "read in two": lambda file: [digest(file.read(5 * MIB)), digest(file.read())],
    "read None": lambda file: digest(file.read(None)),
    "chunks of 3000 bytes": _chunks(3000),
    "chunks of 64 KiB": _chunks(64 << 10),
    "chunks of 1 MiB": _chunks(MIB),
    "readinto": _readinto,
    "seek and tell": _seeks,
    "lines": _lines,
    "copyfileobj": _copy,
    "mmap": _mapped,
    "failures": _failures,
    "looks": _looks,
    "readall": lambda file: digest(getattr(file, "raw", file).readall()),
    "fromfile": lambda file: [digest(np.fromfile(file, np.uint8, count=5 * MIB)), file.tell(), digest(np.fromfile(file, np.uint8))],
}
BUFFERED_WAYS: dict[str, Callable[[Any], Any]] = {
    "peek": lambda file: [file.peek(10)[:10], file.tell(), file.read(5)],
    "read1": lambda file: [len(file.read1()), len(file.read1(MIB)), file.tell()],
    "readinto1": lambda file: [file.readinto1(bytearray(9)), file.tell()],
    "type": lambda file: [type(file), file.__sizeof__()],
    "pickled": lambda file: _raised(lambda: pickle.dumps(file)),
    "text": _text,
}


def archive(path: Path) -> Path:
    """A zip file with one big member."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("weights", os.urandom(SIZE))
    return path
