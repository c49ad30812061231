"""
Key derivation: scrypt, PBKDF2 and Argon2 of cryptography, hashlib, pycryptodome and PyNaCl.

Part of the stage `decrypt`, but not of the cipher's work: it takes its time whatever the size of the model. So it is tallied apart, and in
a `decrypt` stage that the program declared its seconds do not lower the throughput.

A key is often derived before the first byte is read, when no load is open. That is not recorded: nothing then says that the key is for
weights (a login derives one as well), and a load that began in the past would have no counters of the time before it was opened.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.calls import wrap
from loadspan.instrument.patching import Args, Kind, Kwargs, Target
from loadspan.instrument.targets import roots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CLASSES = (
    ("scrypt", "Scrypt", "scrypt"),
    ("pbkdf2", "PBKDF2HMAC", "PBKDF2"),
    ("argon2", "Argon2id", "Argon2id"),
    ("argon2", "Argon2i", "Argon2i"),
    ("argon2", "Argon2d", "Argon2d"),
)
_FUNCTIONS = (
    ("Crypto.Protocol.KDF", "scrypt", "scrypt"),
    ("Crypto.Protocol.KDF", "PBKDF2", "PBKDF2"),
    ("Cryptodome.Protocol.KDF", "scrypt", "scrypt"),
    ("Cryptodome.Protocol.KDF", "PBKDF2", "PBKDF2"),
    ("nacl.pwhash.argon2i", "kdf", "Argon2i"),
    ("nacl.pwhash.argon2id", "kdf", "Argon2id"),
    ("nacl.pwhash.scrypt", "kdf", "scrypt"),
    ("tensorizer._crypt._encryption", "PWHash.hash", "Argon2id"),
)
_WHY = "seconds that are no cipher's"


class _Function:
    """
    A function of ours in the place of a built-in one.

    Not a Python function, which would become a method where a program keeps it in a class; a built-in does not.
    """

    def __init__(self, original: Callable[..., Any], ours: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self._ours = ours

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ours(*args, **kwargs)

    def __reduce__(self) -> str:
        return self.__qualname__  # type: ignore[attr-defined, no-any-return] # of the original, which is pickled by its name as well


def _never(args: Args, kwargs: Kwargs) -> bool:
    return False


def _row(module: str, attribute: str, function: str) -> Target:
    known = {names.CIPHER: function}

    def facts(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        return known

    return Target(
        module=module,
        attribute=attribute,
        kind=Kind.FINE,
        stage=names.DECRYPT,
        when=roots.during,
        alone=_never,
        apart=names.KEY_DERIVATION_TIME,
        facts=facts,
        why=_WHY,
    )


def _built_in(name: str, function: str) -> Target:
    return Target(
        module="hashlib",
        attribute=name,
        aliases=(f"_hashlib:{name}",),
        kind=Kind.REPLACE,
        replace=lambda original: _Function(original, wrap(_row("hashlib", name, function), original)),
        why=_WHY,
    )


def _rows() -> Iterator[Target]:
    for module, kind, function in _CLASSES:
        for method in ("derive", "derive_into", "verify"):
            yield _row(f"cryptography.hazmat.primitives.kdf.{module}", f"{kind}.{method}", function)
    for module, name, function in _FUNCTIONS:
        yield _row(module, name, function)
    yield _built_in("scrypt", "scrypt")
    yield _built_in("pbkdf2_hmac", "PBKDF2")


ROWS = tuple(_rows())
