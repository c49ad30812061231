"""
The encrypted files of the example: how their bytes are laid out, and the key that opens them.

A sealed file is a header (magic, salt) and one or more frames (nonce, length, ciphertext with its tag). The key comes from a passphrase
and the salt by scrypt, once a file. The parameters of scrypt are far below what protects a real passphrase: this is an example.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_HEADER = struct.Struct("<8s16s")
_FRAME = struct.Struct("<12sI")
HEADER_SIZE = _HEADER.size
FRAME_SIZE = _FRAME.size
_MAGIC = b"SEALED1\n"
_CHUNK = 4 << 20


class Frame(NamedTuple):
    """What stands before each ciphertext: its nonce and its length in bytes."""

    nonce: bytes
    length: int


def derive_key(passphrase: bytes, header: bytes) -> bytes:
    """
    Return the key of the file that begins with *header*.

    Raises:
        ValueError: *header* is not that of a sealed file.
    """
    if len(header) != HEADER_SIZE or not header.startswith(_MAGIC):
        raise ValueError("not a sealed file")
    _, salt = _HEADER.unpack(header)
    return Scrypt(salt=salt, length=32, n=2**14, r=8, p=1).derive(passphrase)


def read_frame(head: bytes) -> Frame:
    """Take the head of a frame apart."""
    return Frame(*_FRAME.unpack(head))


def seal_chunked(path: Path, data: bytes, passphrase: bytes, salt: bytes) -> None:
    """Write *data* to *path* as frames of 4 MiB, AES-256-GCM: a base model, too large to decrypt in one piece."""
    header = _HEADER.pack(_MAGIC, salt)
    encrypt = AESGCM(derive_key(passphrase, header)).encrypt
    view = memoryview(data)
    _write(path, header, encrypt, (view[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)))


def seal_whole(path: Path, data: bytes, passphrase: bytes, salt: bytes) -> None:
    """Write *data* to *path* as one frame, ChaCha20-Poly1305: an adapter."""
    header = _HEADER.pack(_MAGIC, salt)
    _write(path, header, ChaCha20Poly1305(derive_key(passphrase, header)).encrypt, [data])


def _write(path: Path, header: bytes, encrypt: Callable[[bytes, bytes, bytes], bytes], chunks: Iterable[bytes | memoryview]) -> None:
    # A name that is not looked for until the file is whole: whoever finds `path` finds all of it.
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        file.write(header)
        for number, chunk in enumerate(chunks):
            # A number is a good nonce here: the salt, hence the key, is this file's alone. The header is authenticated with each frame.
            nonce = number.to_bytes(12, "little")
            ciphertext = encrypt(nonce, chunk, header)
            file.write(_FRAME.pack(nonce, len(ciphertext)))
            file.write(ciphertext)
    unfinished.replace(path)
