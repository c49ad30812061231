"""What each patched decryption is called with: real ciphertexts of the real libraries, made once."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from Crypto.Cipher import AES, ChaCha20, ChaCha20_Poly1305, Salsa20
from cryptography.fernet import Fernet, MultiFernet
from cryptography.hazmat.primitives.ciphers import Cipher, aead, algorithms, modes
from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_secretstream_xchacha20poly1305_init_pull,
    crypto_secretstream_xchacha20poly1305_init_push,
    crypto_secretstream_xchacha20poly1305_pull,
    crypto_secretstream_xchacha20poly1305_push,
    crypto_secretstream_xchacha20poly1305_state,
)
from nacl.public import Box, PrivateKey, SealedBox
from nacl.secret import Aead, SecretBox

from recorded import walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from recorded import Spans

MIB = 1 << 20
KEY = b"canary-key-0123456789abcdefghijk"
NONCE = b"canary-nonce-123456789ab"
EXTRA = b"canary-associated-data"
PLAIN = (b"canary-plaintext " * (MIB // 16))[: MIB + 48]
"""Somewhat more than a megabyte: what may open a load."""

CANARIES = (KEY, NONCE[:12], EXTRA, PLAIN[:16], b"canary")


@dataclass(frozen=True)
class Case:
    """A call that decrypts: what it returns, the bytes it is given and what they are encrypted with."""

    name: str
    call: Callable[[], Any]
    size: int
    cipher: str
    plain: Any = PLAIN

    def __str__(self) -> str:
        return self.name


def _aead(name: str, label: str) -> list[Case]:
    key = KEY * 2 if name == "AESSIV" else KEY
    cipher = getattr(aead, name)(key)
    if name == "AESSIV":
        data = cipher.encrypt(PLAIN, [EXTRA])
        before, after = (), ([EXTRA],)
    else:
        data = cipher.encrypt(NONCE[:12], PLAIN, EXTRA)
        before, after = (NONCE[:12],), (EXTRA,)
    cases = [
        Case(f"{name} positional", lambda: cipher.decrypt(*before, data, *after), len(data), label),
        Case(f"{name} by keyword", lambda: cipher.decrypt(*before, data=data, associated_data=after[0]), len(data), label),
        Case(f"{name} of a view", lambda: cipher.decrypt(*before, memoryview(data), *after), len(data), label),
    ]
    if hasattr(cipher, "decrypt_into"):
        cases.append(
            Case(f"{name} into", lambda: cipher.decrypt_into(*before, data, *after, bytearray(len(PLAIN))), len(data), label, len(PLAIN))
        )
    return cases


def _cipher(mode: Any, label: str) -> Case:
    encryptor = Cipher(algorithms.AES(KEY), mode()).encryptor()
    data = encryptor.update(PLAIN) + encryptor.finalize()

    def call() -> bytes:
        decryptor = Cipher(algorithms.AES(KEY), mode()).decryptor()
        return decryptor.update(data) + decryptor.finalize()

    return Case(f"Cipher {label}", call, len(data), label)


def _fernets() -> list[Case]:
    key = base64.urlsafe_b64encode(KEY)
    token = Fernet(key).encrypt_at_time(PLAIN, 1_000)
    several = MultiFernet([Fernet(Fernet.generate_key()), Fernet(key)])
    return [
        Case("Fernet", lambda: Fernet(key).decrypt(token), len(token), "Fernet"),
        Case("Fernet of text", lambda: Fernet(key).decrypt(token=token.decode()), len(token), "Fernet"),
        Case("Fernet at time", lambda: Fernet(key).decrypt_at_time(token, 60, 1_010), len(token), "Fernet"),
        Case("MultiFernet", lambda: several.decrypt(token), len(token), "Fernet"),
        Case("MultiFernet at time", lambda: several.decrypt_at_time(token, 60, 1_010), len(token), "Fernet"),
    ]


def _pycryptodome(mode: str, **given: Any) -> list[Case]:
    new = partial(AES.new, KEY * 2 if mode == "SIV" else KEY, getattr(AES, f"MODE_{mode}"), **given)
    label, cases = f"AES-{mode}", []
    if mode in ("GCM", "EAX", "OCB", "CCM", "SIV"):
        data, tag = new().encrypt_and_digest(PLAIN)
        cases.append(Case(f"pycryptodome {mode} verified", lambda: new().decrypt_and_verify(data, tag), len(data), label))
    else:
        data = new().encrypt(PLAIN)
    if mode == "OCB":
        cases.append(Case("pycryptodome OCB", lambda: (cipher := new()).decrypt(data) + cipher.decrypt(), len(data), label))
    elif mode != "SIV":
        cases.append(Case(f"pycryptodome {mode}", lambda: new().decrypt(ciphertext=data), len(data), label))
    return cases


def _streams() -> list[Case]:
    cases = []
    for module, label, nonce in ((ChaCha20, "ChaCha20", 12), (Salsa20, "Salsa20", 8)):
        new = partial(module.new, key=KEY, nonce=NONCE[:nonce])
        data = new().encrypt(PLAIN)
        cases.append(Case(f"pycryptodome {label}", partial(lambda new, data: new().decrypt(data), new, data), len(data), label))
    poly = partial(ChaCha20_Poly1305.new, key=KEY, nonce=NONCE[:12])
    sealed, tag = poly().encrypt_and_digest(PLAIN)
    label = "ChaCha20-Poly1305"
    cases.append(Case("pycryptodome ChaCha20_Poly1305", lambda: poly().decrypt(sealed), len(sealed), label))
    cases.append(Case("pycryptodome ChaCha20_Poly1305 verified", lambda: poly().decrypt_and_verify(sealed, tag), len(sealed), label))
    return cases


def _into() -> Case:
    new = partial(AES.new, KEY, AES.MODE_CTR, nonce=NONCE[:8])
    data, output = new().encrypt(PLAIN), bytearray(len(PLAIN))
    return Case("pycryptodome CTR into", lambda: new().decrypt(data, output=output), len(data), "AES-CTR", None)


def _nacl() -> list[Case]:
    key, other = PrivateKey(KEY), PrivateKey(KEY[::-1])
    secret = bytes(SecretBox(KEY).encrypt(PLAIN, NONCE))
    sealed = bytes(Aead(KEY).encrypt(PLAIN, EXTRA, NONCE))
    boxed = bytes(Box(key, other.public_key).encrypt(PLAIN, NONCE))
    anonymous = SealedBox(key.public_key).encrypt(PLAIN)
    ietf = crypto_aead_chacha20poly1305_ietf_encrypt(PLAIN, EXTRA, NONCE[:12], KEY)
    extended = crypto_aead_xchacha20poly1305_ietf_encrypt(PLAIN, EXTRA, NONCE, KEY)
    salsa, chacha = "XSalsa20-Poly1305", "XChaCha20-Poly1305"
    return [
        Case("SecretBox", lambda: SecretBox(KEY).decrypt(secret), len(secret), salsa),
        Case("Aead", lambda: Aead(KEY).decrypt(sealed, EXTRA), len(sealed), chacha),
        Case("Box", lambda: Box(other, key.public_key).decrypt(boxed), len(boxed), salsa),
        Case("SealedBox", lambda: SealedBox(key).decrypt(ciphertext=anonymous), len(anonymous), salsa),
        Case("binding", lambda: crypto_aead_chacha20poly1305_ietf_decrypt(ietf, EXTRA, NONCE[:12], KEY), len(ietf), "ChaCha20-Poly1305"),
        Case("binding, x", lambda: crypto_aead_xchacha20poly1305_ietf_decrypt(extended, EXTRA, NONCE, KEY), len(extended), chacha),
        _secretstream(),
    ]


def _secretstream() -> Case:
    state = crypto_secretstream_xchacha20poly1305_state()
    header = crypto_secretstream_xchacha20poly1305_init_push(state, KEY)
    data = crypto_secretstream_xchacha20poly1305_push(state, PLAIN)

    def call() -> bytes:
        opened = crypto_secretstream_xchacha20poly1305_state()
        crypto_secretstream_xchacha20poly1305_init_pull(opened, header, KEY)
        plain: bytes = crypto_secretstream_xchacha20poly1305_pull(opened, data)[0]
        return plain

    return Case("secretstream", call, len(data), "XChaCha20-Poly1305")


@cache
def cases() -> list[Case]:
    """Every patched function that decrypts, each in the ways in which it is called."""
    iv, nonce = {"iv": NONCE[:16]}, {"nonce": NONCE[:12]}
    return [
        *_aead("AESGCM", "AES-GCM"),
        *_aead("ChaCha20Poly1305", "ChaCha20-Poly1305"),
        *_aead("AESGCMSIV", "AES-GCM-SIV"),
        *_aead("AESSIV", "AES-SIV"),
        *_aead("AESCCM", "AES-CCM"),
        *_aead("AESOCB3", "AES-OCB3"),
        _cipher(lambda: modes.CTR(NONCE[:16]), "AES-CTR"),
        _cipher(lambda: modes.CBC(NONCE[:16]), "AES-CBC"),
        *_fernets(),
        *_pycryptodome("GCM", **nonce),
        *_pycryptodome("CTR", nonce=NONCE[:8]),
        *_pycryptodome("CBC", **iv),
        *_pycryptodome("EAX", **nonce),
        *_pycryptodome("OCB", **nonce),
        *_pycryptodome("CCM", **nonce),
        *_pycryptodome("SIV", **nonce),
        *_pycryptodome("CFB", **iv, segment_size=128),
        *_pycryptodome("OFB", **iv),
        *_pycryptodome("ECB"),
        *_streams(),
        _into(),
        *_nacl(),
    ]


def decrypts(spans: Spans) -> list[dict[str, Any]]:
    """Attributes of the decrypt stages of the only load."""
    return [stage["attributes"] for stage in walk(spans.load()) if stage["name"] == "decrypt"]


def decrypt(spans: Spans) -> dict[str, Any]:
    """Attributes of the only decrypt stage."""
    found = decrypts(spans)
    assert len(found) == 1, found
    return found[0]


def stream(mode: Any = None) -> Any:
    """An AES cipher that works chunk by chunk."""
    return Cipher(algorithms.AES(KEY), mode or modes.CTR(NONCE[:16]))


def sealed(mode: Any, plain: bytes = PLAIN) -> tuple[bytes, Any]:
    """Ciphertext of *plain*, and the encryptor, which may have a tag."""
    encryptor = stream(mode).encryptor()
    return encryptor.update(plain) + encryptor.finalize(), encryptor
