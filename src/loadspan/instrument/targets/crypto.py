"""
Decryption: cryptography (AEAD classes, `Cipher`, Fernet), pycryptodome, PyNaCl, pyrage (age) and Tink.

Programs decrypt small things all day: sessions, cookies, packets. Only what is as large as weights may open a load; below that a call
counts in a load that is declared, or in an implicit one that it demonstrably belongs to. Calls nest (`decrypt_and_verify` in `decrypt` in a
counter mode, Fernet in `Cipher`): the outermost is counted. Of what a call is given only its size is looked at.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.calls import wrap
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target
from loadspan.instrument.targets import arrays
from loadspan.instrument.targets.roots import OPENS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _Facts = Callable[[Args, Kwargs], dict[str, Any]]

JOINS = 1 << 15
"""Bytes from which a payload is a chunk of something larger: more than a TLS record (18 KiB), a cookie or a token."""

_AEAD_MODULE = "cryptography.hazmat.primitives.ciphers.aead"
_FERNET = "cryptography.fernet"
_CIPHER = "cryptography.hazmat.primitives.ciphers.base"
_AES_BLOCK = 16

_AEAD = {
    "AESGCM": "AES-GCM",
    "ChaCha20Poly1305": "ChaCha20-Poly1305",
    "AESGCMSIV": "AES-GCM-SIV",
    "AESSIV": "AES-SIV",
    "AESCCM": "AES-CCM",
    "AESOCB3": "AES-OCB3",
}
_PYCRYPTODOME_MODES = ("Gcm", "Ctr", "Cbc", "Eax", "Ocb", "Ccm", "Siv", "Cfb", "Ofb", "Ecb", "OpenPgp")
_PYCRYPTODOME_CIPHERS = (
    ("ChaCha20_Poly1305", "ChaCha20Poly1305Cipher", "ChaCha20-Poly1305"),
    ("ChaCha20", "ChaCha20Cipher", "ChaCha20"),
    ("Salsa20", "Salsa20Cipher", "Salsa20"),
)
_NACL_CLASSES = (
    ("nacl.secret", "SecretBox", "XSalsa20-Poly1305"),
    ("nacl.secret", "Aead", "XChaCha20-Poly1305"),
    ("nacl.public", "Box", "XSalsa20-Poly1305"),
    ("nacl.public", "SealedBox", "XSalsa20-Poly1305"),
)
_NACL_AEAD = {
    "chacha20poly1305_ietf": "ChaCha20-Poly1305",
    "chacha20poly1305": "ChaCha20-Poly1305",
    "xchacha20poly1305_ietf": "XChaCha20-Poly1305",
    "aegis256": "AEGIS-256",
    "aegis128l": "AEGIS-128L",
    "aes256gcm": "AES-GCM",
}


def size_of(data: Any) -> int | None:
    """Bytes of what was given to be decrypted: anything with a buffer, or the text of a token; None for anything else."""
    if type(data) is bytes:
        return len(data)
    if data is None:
        return None
    if isinstance(data, bytearray | str):
        return len(data)
    try:
        size = getattr(data, "nbytes", None)
        if isinstance(size, int):
            return size
        with memoryview(data) as view:
            return view.nbytes
    except (TypeError, ValueError, BufferError):
        return None  # no buffer, or one that was released: the host's call will say so


_NOWHERE = 1 << 10  # a position that no argument has


class _Given:
    """Where a function takes what it is to decrypt; nowhere without a name."""

    def __init__(self, position: int = _NOWHERE, name: str = "") -> None:
        self.position = position
        self._name = name

    def __call__(self, args: Args, kwargs: Kwargs) -> Any:
        """What a call was given."""
        return args[self.position] if len(args) > self.position else kwargs.get(self._name)


def _row(module: str, attribute: str, given: _Given, facts: _Facts, why: str) -> Target:
    def large(args: Args, kwargs: Kwargs) -> bool:
        return (size_of(given(args, kwargs)) or 0) >= OPENS

    plain = type(given) is _Given
    position = given.position if plain else _NOWHERE

    def worth_asking(args: Args, kwargs: Kwargs) -> bool:
        # All that a small call costs while nothing is being loaded, so the usual one is spelled out.
        if recorder.loads:
            return True
        data = args[position] if len(args) > position else given(args, kwargs)
        return (len(data) if type(data) is bytes else size_of(data) or 0) >= OPENS

    def chunk(args: Args, kwargs: Kwargs) -> bool:
        return (size_of(given(args, kwargs)) or 0) >= JOINS

    def size(result: Any, args: Args, kwargs: Kwargs) -> int | None:
        return size_of(given(args, kwargs))

    return Target(
        module=module,
        attribute=attribute,
        kind=Kind.FINE,
        stage=names.DECRYPT,
        when=worth_asking,
        alone=large,
        joins=chunk,
        buffer=given if plain else None,
        size=size,
        facts=facts,
        why=why,
    )


def _always(cipher: str | None) -> _Facts:
    known = {} if cipher is None else {names.CIPHER: cipher}

    def facts(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        return known

    return facts


# cryptography


class _Decryptor:
    """
    Stands for what `Cipher.decryptor()` returned, and counts.

    A proxy, since encryptor and decryptor are one Rust type, which cannot be patched for one of them. It is an instance of whatever the
    real one is an instance of, and has what that has. There is a subclass for each cipher, with rows of its own.
    """

    __slots__ = ("__weakref__", "_inner")
    _rare: ClassVar[dict[str, Callable[..., Any]]] = {}
    """Counted methods that only some decryptors have."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property  # type: ignore[misc] # read-only: nobody changes the class of the real one either
    def __class__(self) -> Any:
        return self._inner.__class__

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        rare = self._rare.get(name)
        return found if rare is None else functools.partial(rare, self)

    def __dir__(self) -> Any:
        return dir(self._inner)

    def __repr__(self) -> str:
        return repr(self._inner)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._inner.__reduce_ex__(protocol)


def _counted(name: str, facts: _Facts) -> Callable[..., Any]:
    """A method of a decryptor."""

    def bare(self: _Decryptor, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._inner, name)(*args, **kwargs)

    given = _Given(1, "data") if name in ("update", "update_into") else _Given()
    counted = wrap(_row(_CIPHER, f"CipherContext.{name}", given, facts, "a chunk"), bare)

    def method(self: _Decryptor, *args: Any, **kwargs: Any) -> Any:
        # Most decryptors are for packets and sessions: this is all that those cost while nothing is being loaded.
        if recorder.loads or kwargs or (args and (size_of(args[0]) or 0) >= OPENS):
            return counted(self, *args, **kwargs)
        return getattr(self._inner, name)(*args, **kwargs)

    return method


@functools.cache
def _decryptor_of(algorithm: Any, mode: Any) -> type[_Decryptor]:
    """The class of decryptors of one cipher."""
    known = [name for name in (getattr(algorithm, "name", None), getattr(mode, "name", "")) if isinstance(name, str)]
    facts = _always("-".join(filter(None, known)) if len(known) > 1 else None)
    methods = {name: _counted(name, facts) for name in ("update", "update_into", "finalize")}
    rare = {name: _counted(name, facts) for name in ("finalize_with_tag", "authenticate_additional_data")}
    return type("_Decryptor", (_Decryptor,), {"__slots__": (), "_rare": rare, **methods})


def _stand_in(cipher: Any, inner: Any) -> Any:
    return _decryptor_of(type(cipher.algorithm), type(cipher.mode))(inner)  # type: ignore[arg-type] # mypy: a type is not hashable


def _replace_decryptor(original: Any) -> Any:
    """A proxy also where nothing is being loaded: programs make the decryptor before they read the first chunk."""

    @functools.wraps(original)
    def decryptor(*args: Any, **kwargs: Any) -> Any:
        inner = original(*args, **kwargs)
        # Fernet's own is counted by Fernet's rows, and comes with every small token.
        if not recorder.active or sys._getframe(1).f_globals.get("__name__") == _FERNET:  # noqa: SLF001 - the cheap way to ask who calls
            return inner
        proxy = safely(_stand_in, args[0], inner)
        return inner if proxy is None else proxy

    return decryptor


def _cryptography() -> Iterator[Target]:
    for name, cipher in _AEAD.items():
        for method in ("decrypt", "decrypt_into"):
            given = _Given(1 if name == "AESSIV" else 2, "data")  # AES-SIV takes no nonce
            yield _row(_AEAD_MODULE, f"{name}.{method}", given, _always(cipher), "whole files, or frames of them")
    yield Target(
        module=_CIPHER,
        attribute="Cipher.decryptor",
        kind=Kind.REPLACE,
        replace=_replace_decryptor,
        why="chunk by chunk: CTR, CBC, GCM, ChaCha20, ...",
    )
    for name, token in (("Fernet", "token"), ("MultiFernet", "msg")):
        for method in ("decrypt", "decrypt_at_time"):
            yield _row(_FERNET, f"{name}.{method}", _Given(1, token), _always("Fernet"), "a whole file as text")


# pycryptodome


def _block_cipher(mode: str) -> _Facts:
    def facts(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        # An instance does not know its algorithm, but AES is the only one here with blocks of 16 bytes.
        return {names.CIPHER: f"AES-{mode}" if getattr(args[0], "block_size", None) == _AES_BLOCK else mode}

    return facts


def _pycryptodome(package: str) -> Iterator[Target]:
    # `AES.new` is a function in a module; the classes of the modes are what its results are instances of.
    known = {mode: "CFB" if mode == "OpenPgp" else mode.upper() for mode in _PYCRYPTODOME_MODES}  # OpenPGP's is a kind of CFB
    classes = [(f"_mode_{mode.lower()}", f"{mode}Mode", _block_cipher(label)) for mode, label in known.items()]
    classes += [(module, kind, _always(cipher)) for module, kind, cipher in _PYCRYPTODOME_CIPHERS]
    for module, kind, facts in classes:
        for method in ("decrypt", "decrypt_and_verify"):
            yield _row(f"{package}.Cipher.{module}", f"{kind}.{method}", _Given(1, "ciphertext"), facts, "a file or its chunks")


# PyNaCl


def _nacl() -> Iterator[Target]:
    for module, kind, cipher in _NACL_CLASSES:
        yield _row(module, f"{kind}.decrypt", _Given(1, "ciphertext"), _always(cipher), "a whole file")
    for name, cipher in _NACL_AEAD.items():
        function = f"crypto_aead_{name}_decrypt"
        yield _row("nacl.bindings.crypto_aead", function, _Given(0, "ciphertext"), _always(cipher), "frames of a file")
    function, cipher = "crypto_secretstream_xchacha20poly1305_pull", "XChaCha20-Poly1305"
    yield _row("nacl.bindings.crypto_secretstream", function, _Given(1, "c"), _always(cipher), "a file chunk by chunk")


# pyrage, which is age

_AGE = "ChaCha20-Poly1305"


class _File(_Given):
    """A file that a function is given, by path or open: what is decrypted is all of it."""

    def __call__(self, args: Args, kwargs: Kwargs) -> Any:
        """As many bytes as it has, none of which is there."""
        return _Length(_length(super().__call__(args, kwargs)))


class _Length(NamedTuple):
    nbytes: int


def _length(file: Any) -> int:
    """Bytes of a file, given by path or open; 0 where that cannot be known without reading it."""
    if isinstance(file, str | os.PathLike):
        return arrays.file_size(file) or 0
    if isinstance(file, io.BytesIO):
        return file.getbuffer().nbytes
    try:
        return os.fstat(file.fileno()).st_size
    except (AttributeError, OSError):
        return 0


def _age() -> Iterator[Target]:
    yield _row("pyrage", "decrypt", _Given(0, "ciphertext"), _always(_AGE), "a whole file")
    yield _row("pyrage", "decrypt_file", _File(0, "infile"), _always(_AGE), "one file into another")
    yield _row("pyrage", "decrypt_io", _File(0, "reader"), _always(_AGE), "one open file into another")
    yield _row("pyrage", "passphrase.decrypt", _Given(0, "ciphertext"), _always(_AGE), "a whole file, and scrypt of its passphrase")


# Tink


def _stream_is_large(args: Args, kwargs: Kwargs) -> bool:
    return _length(getattr(args[0]._ciphertext_source, "_input_stream", None)) >= OPENS  # noqa: SLF001 - asking it would read


def _tink() -> Iterator[Target]:
    given = _Given(1, "ciphertext")
    yield _row("tink.aead._aead_wrapper", "_WrappedAead.decrypt", given, _always(None), "a whole file")
    # It is in an `io.BufferedReader`, which asks for a buffer full, or for all: then what is asked for piece by piece is joined.
    for method in ("read", "readinto", "readall"):
        yield Target(
            module="tink.streaming_aead._streaming_aead_wrapper",
            attribute=f"_DecryptingStreamWrapper.{method}",
            kind=Kind.FINE,
            stage=names.DECRYPT,
            alone=_stream_is_large,
            size=lambda result, args, kwargs: result if isinstance(result, int) else size_of(result),
            why="an encrypted stream, which it reads",
        )


ROWS = (*_cryptography(), *_pycryptodome("Crypto"), *_pycryptodome("Cryptodome"), *_nacl(), *_age(), *_tink())
