"""
A FUSE filesystem of one file, in which every read takes a while, as from an object store. It speaks the kernel's protocol itself.

`mount` makes it in a process of its own, to be used in a mount namespace of the caller's: there it ends with the caller, however that ends.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import stat
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import children

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "weights.bin"
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 17, 18, 25, 26
OPENDIR, READDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = 27, 28, 29, 34, 36, 38, 42
_SILENT = (FORGET, BATCH_FORGET, INTERRUPT)  # they want no answer
_DONE = (RELEASE, FLUSH, RELEASEDIR, ACCESS, DESTROY)
_IN, _OUT = struct.Struct("=IIQQIIIHH"), struct.Struct("=IiQ")
_ATTRIBUTES = struct.Struct("=6Q10I")
_ROOT, _FILE = 1, 2
_VALID = 3600  # seconds that the kernel may remember
_OPCODES = 64
_BUFFER = (1 << 17) + 4096
_NO_ENTRY, _NO_FUNCTION = 2, 38
_DETACH, _DIES_WITH_PARENT = 2, 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Mounted:
    """The filesystem, for its caller."""

    point: str
    server: int
    counts: mmap.mmap = field(repr=False)

    def count(self, opcode: int) -> int:
        """Requests of this kind so far."""
        return int(struct.unpack_from("Q", self.counts, 8 * opcode)[0])

    def unmount(self) -> None:
        """End it at once, whoever has files open."""
        _LIBC.umount2(os.fsencode(self.point), _DETACH)
        os.kill(self.server, signal.SIGKILL)
        os.waitpid(self.server, 0)


def mount(point: str, size: int, latency: float) -> Mounted:
    """Mount the filesystem at *point*: a file of *size* bytes, *latency* seconds for each read request."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        children.skip(f"no FUSE here: {error}")
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    if _LIBC.mount(b"latencyfs", os.fsencode(point), b"fuse.latencyfs", 1, options.encode()):
        children.skip(f"FUSE cannot be mounted: {os.strerror(ctypes.get_errno())}")
    counts = mmap.mmap(-1, 8 * _OPCODES)
    server = os.fork()
    if server == 0:
        _LIBC.prctl(_DIES_WITH_PARENT, signal.SIGKILL)
        for descriptor in (1, 2):  # whoever reads what the caller prints must not wait for us
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        _Server(device, size, latency, counts).serve()
        os._exit(0)
    os.close(device)
    return Mounted(point, server, counts)


class _Server:
    def __init__(self, device: int, size: int, latency: float, counts: mmap.mmap) -> None:
        self._device, self._size, self._latency, self._counts = device, size, latency, counts
        self._answers: dict[int, Callable[[int, bytes], bytes | int]] = {
            INIT: self._init,
            LOOKUP: self._lookup,
            GETATTR: lambda node, _: struct.pack("=QII", _VALID, 0, 0) + self._attributes(node),
            OPEN: lambda *_: struct.pack("=QII", 0, 0, 0),
            OPENDIR: lambda *_: struct.pack("=QII", 0, 0, 0),
            READ: self._read,
            READDIR: self._list,
            STATFS: lambda *_: struct.pack("=5Q4I24x", 1 << 20, 0, 0, 1, 0, 4096, 255, 4096, 0),
        }

    def serve(self) -> None:
        """Answer until the filesystem is unmounted."""
        while True:
            try:
                request = os.read(self._device, _BUFFER)
            except InterruptedError:
                continue
            except OSError:
                return
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            if opcode < _OPCODES:
                struct.pack_into("Q", self._counts, 8 * opcode, struct.unpack_from("Q", self._counts, 8 * opcode)[0] + 1)
            if opcode in _SILENT:
                continue
            known = self._answers.get(opcode)
            answer = known(node, request[_IN.size :]) if known is not None else b"" if opcode in _DONE else _NO_FUNCTION
            body, error = (b"", -answer) if isinstance(answer, int) else (answer, 0)
            os.write(self._device, _OUT.pack(_OUT.size + len(body), error, unique) + body)

    def _init(self, _: int, body: bytes) -> bytes:
        _, _, read_ahead, _ = struct.unpack_from("=4I", body)
        return struct.pack("=4I2H2I2HI28x", 7, 31, read_ahead, 0, 16, 12, 4096, 1, 32, 0, 0)

    def _attributes(self, node: int) -> bytes:
        mode, size = (stat.S_IFDIR | 0o555, 4096) if node == _ROOT else (stat.S_IFREG | 0o444, self._size)
        return _ATTRIBUTES.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _lookup(self, _: int, body: bytes) -> bytes | int:
        if body.rstrip(b"\0") != NAME.encode():
            return _NO_ENTRY
        return struct.pack("=4Q2I", _FILE, 0, _VALID, _VALID, 0, 0) + self._attributes(_FILE)

    def _read(self, _: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        time.sleep(self._latency)
        return b"w" * max(0, min(size, self._size - offset))

    def _list(self, _: int, body: bytes) -> bytes:
        _, offset = struct.unpack_from("=QQ", body)
        name = NAME.encode()
        return b"" if offset else struct.pack("=QQII", _FILE, 1, len(name), stat.S_IFREG >> 12) + name.ljust(-(-len(name) // 8) * 8, b"\0")
