"""
How fast one core decrypts, for each cipher that this machine's libraries offer.

The seconds are those that the thread was on a CPU: what one core can do does not depend on who else wants it at the moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from loadspan.facts.rates import MEMORY, Outcome, Rate, Skipped
from loadspan.probes import Bounds, Plan, Progress, Step, first_line, installed
from loadspan.units import size as size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE = 1 << 20
"""Bytes decrypted by one call: pieces that stay in the caches of a core are the fastest."""
_SECONDS = 0.5
_TICK = 0.1

Ready = tuple[int, Callable[[], object]]
"""Bytes of the ciphertext, and what decrypts it."""


def _aead(cipher: str, key: int) -> Callable[[bytes], Ready]:
    def ready(plain: bytes) -> Ready:
        aead = getattr(import_module("cryptography.hazmat.primitives.ciphers.aead"), cipher)(os.urandom(key))
        nonce = os.urandom(12)
        sealed = aead.encrypt(nonce, plain, None)
        return len(sealed), lambda: aead.decrypt(nonce, sealed, None)

    return ready


def _stream(mode: str) -> Callable[[bytes], Ready]:
    def ready(plain: bytes) -> Ready:
        ciphers = import_module("cryptography.hazmat.primitives.ciphers")
        cipher = ciphers.Cipher(ciphers.algorithms.AES(os.urandom(32)), getattr(ciphers.modes, mode)(os.urandom(16)))
        # In memory that is there: to clear pages for the result of each call may take the kernel five times as long as the cipher takes.
        result = bytearray(len(plain) + 15)
        # A cipher that authenticates nothing takes any bytes for its own.
        return len(plain), lambda: cipher.decryptor().update_into(plain, result)

    return ready


def _fernet(plain: bytes) -> Ready:
    library = import_module("cryptography.fernet")
    fernet = library.Fernet(library.Fernet.generate_key())
    token = fernet.encrypt(plain)
    return len(token), lambda: fernet.decrypt(token)


def _pycryptodome(library: str) -> Callable[[bytes], Ready]:
    def ready(plain: bytes) -> Ready:
        aes: Any = import_module(f"{library}.Cipher.AES")
        key, nonce = os.urandom(32), os.urandom(12)
        sealed, tag = aes.new(key, aes.MODE_GCM, nonce=nonce).encrypt_and_digest(plain)
        return len(sealed), lambda: aes.new(key, aes.MODE_GCM, nonce=nonce).decrypt_and_verify(sealed, tag)

    return ready


def _secretbox(plain: bytes) -> Ready:
    box = import_module("nacl.secret").SecretBox(os.urandom(32))
    sealed = box.encrypt(plain)
    return len(sealed), lambda: box.decrypt(sealed)


_CIPHERS: tuple[tuple[str, str, Callable[[bytes], Ready]], ...] = (
    ("AES-256-GCM", "cryptography", _aead("AESGCM", 32)),
    ("AES-128-GCM", "cryptography", _aead("AESGCM", 16)),
    ("AES-256-CTR", "cryptography", _stream("CTR")),
    ("AES-256-CBC", "cryptography", _stream("CBC")),
    ("ChaCha20-Poly1305", "cryptography", _aead("ChaCha20Poly1305", 32)),
    ("Fernet", "cryptography", _fernet),
    ("AES-256-GCM", "Crypto", _pycryptodome("Crypto")),
    ("AES-256-GCM", "Cryptodome", _pycryptodome("Cryptodome")),
    ("XSalsa20-Poly1305", "nacl", _secretbox),
)
_NAMES = {"cryptography": "cryptography", "Crypto": "PyCryptodome", "Cryptodome": "PyCryptodomex", "nacl": "PyNaCl"}


def plan(bounds: Bounds | None = None) -> Plan:
    """What will be decrypted; a library that is not installed is a step that will be skipped."""
    bounds = bounds or Bounds()
    steps = tuple(Step(f"decrypt {cipher}, {_NAMES[library]}", bounds.size) for cipher, library, _ in _CIPHERS)
    found = [name for library, name in _NAMES.items() if installed(library)]
    what = f"decrypts {size_text(MESSAGE)} of random bytes again and again on one core with {', '.join(found)}" if found else ""

    def run(progress: Progress) -> Iterator[Outcome]:
        plain = os.urandom(min(MESSAGE, bounds.size))
        for step, (_, library, ready) in zip(steps, _CIPHERS, strict=True):
            if installed(library):
                yield _measured(step.probe, ready, plain, bounds, progress)
            else:
                yield Skipped(step.probe, f"{_NAMES[library]} is not installed")

    return Plan((what,) if what else (), steps, run)


def _refusals() -> tuple[type[Exception], ...]:
    """What libraries raise for a cipher that this machine's OpenSSL does not have or does not allow."""
    known = (ImportError, AttributeError, ValueError, TypeError, RuntimeError, OSError)
    if not installed("cryptography"):
        return known
    return (*known, import_module("cryptography.exceptions").UnsupportedAlgorithm)


def _measured(probe: str, ready: Callable[[bytes], Ready], plain: bytes, bounds: Bounds, progress: Progress) -> Outcome:
    try:
        size, decrypt = ready(plain)
        decrypt()  # tables are made, and the memory of the result is the process's own
    except _refusals() as error:
        return Skipped(probe, f"not possible here: {first_line(error)}")
    done, on_cpu, told = 0, 0.0, 0.0
    wanted = min(_SECONDS, bounds.seconds)
    began = time.perf_counter()
    while on_cpu < wanted and done + size <= max(bounds.size, size) and time.perf_counter() - began < bounds.seconds:
        before = time.thread_time()
        decrypt()
        on_cpu += time.thread_time() - before
        done += size
        if time.perf_counter() - told > _TICK:
            told = time.perf_counter()
            progress(probe, done, bounds.size)
    return Rate(probe, done, on_cpu, block=size, verified=True, source=MEMORY) if on_cpu > 0 else Skipped(probe, "took no time")
