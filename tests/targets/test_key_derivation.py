"""Key derivation is part of decrypting, and none of the cipher's work."""

from __future__ import annotations

import base64
import hashlib
import inspect
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from ciphertexts import PLAIN, decrypt
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import PBKDF2
from Crypto.Protocol.KDF import scrypt as pycryptodome_scrypt
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from nacl.pwhash import argon2i, argon2id, kdf_scryptsalsa208sha256

import loadspan
from loadspan import LoadspanInstrumentor
from recorded import walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from recorded import Spans

PASSWORD = b"canary-password"
SALT = b"canary-salt-0123456789-abcdefghi"
SCRYPT_KEY = hashlib.scrypt(PASSWORD, salt=SALT, n=1 << 10, r=8, p=1, dklen=32)
TIME = "loadspan.key_derivation.time"


def scrypt() -> Any:
    return Scrypt(salt=SALT, length=32, n=1 << 10, r=8, p=1)


def pbkdf2() -> Any:
    return PBKDF2HMAC(hashes.SHA256(), 32, SALT, 2_000)


def argon2() -> Any:
    return Argon2id(salt=SALT, length=32, iterations=1, lanes=1, memory_cost=64)


def into(function: Any) -> bytes:
    key = bytearray(32)
    function.derive_into(PASSWORD, key)
    return bytes(key)


def opened(kind: Any) -> bytes:
    key: bytes = kind.kdf(32, PASSWORD, SALT[: kind.SALTBYTES], opslimit=kind.OPSLIMIT_MIN, memlimit=kind.MEMLIMIT_MIN)
    return key


CASES: list[tuple[str, Callable[[], Any], str]] = [
    ("Scrypt", lambda: scrypt().derive(PASSWORD), "scrypt"),
    ("Scrypt into", lambda: into(scrypt()), "scrypt"),
    ("Scrypt verify", lambda: scrypt().verify(PASSWORD, SCRYPT_KEY), "scrypt"),
    ("PBKDF2HMAC", lambda: pbkdf2().derive(key_material=PASSWORD), "PBKDF2"),
    ("PBKDF2HMAC into", lambda: into(pbkdf2()), "PBKDF2"),
    ("Argon2id", lambda: argon2().derive(PASSWORD), "Argon2id"),
    ("Argon2id into", lambda: into(argon2()), "Argon2id"),
    ("hashlib.scrypt", lambda: hashlib.scrypt(PASSWORD, salt=SALT, n=1 << 10, r=8, p=1, dklen=32), "scrypt"),
    ("hashlib.pbkdf2_hmac", lambda: hashlib.pbkdf2_hmac("sha256", PASSWORD, SALT, 2_000), "PBKDF2"),
    ("pycryptodome scrypt", lambda: pycryptodome_scrypt(PASSWORD, SALT, 32, N=1 << 10, r=8, p=1), "scrypt"),
    ("pycryptodome PBKDF2", lambda: PBKDF2(PASSWORD, SALT, 32, count=2_000, hmac_hash_module=SHA256), "PBKDF2"),
    ("nacl argon2i", lambda: opened(argon2i), "Argon2i"),
    ("nacl argon2id", lambda: opened(argon2id), "Argon2id"),
    ("nacl scrypt", lambda: kdf_scryptsalsa208sha256(32, PASSWORD, SALT, opslimit=1 << 15, memlimit=1 << 24), "scrypt"),
]


@pytest.mark.parametrize(("call", "function"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_key_is_the_same_and_its_time_a_stage_without_size_or_throughput(
    recording: Callable[..., Spans], call: Callable[[], Any], function: str
) -> None:
    bare = call()
    spans = recording()
    with loadspan.load("m"):
        key = call()
    assert key == bare
    found = decrypt(spans)
    assert (found["loadspan.cipher"], found["loadspan.operation.count"]) == (function, 1)
    assert found[TIME] == found["loadspan.busy_time"] > 0
    assert not {"loadspan.size", "loadspan.throughput"} & found.keys()


def test_the_throughput_of_the_cipher_is_of_the_cipher_alone(spans: Spans) -> None:
    with loadspan.load("m"):
        key = Scrypt(salt=SALT, length=32, n=1 << 14, r=8, p=1).derive(PASSWORD)
        data = AESGCM(key).encrypt(SALT[:12], PLAIN, None)
        AESGCM(key).decrypt(SALT[:12], data, None)
    load = spans.load()
    derived, deciphered = (stage["attributes"] for stage in load["children"])
    assert (derived["loadspan.cipher"], deciphered["loadspan.cipher"]) == ("scrypt", "AES-GCM")
    assert derived[TIME] > 0.005 > deciphered["loadspan.busy_time"]
    assert deciphered["loadspan.throughput"] == pytest.approx(len(data) / deciphered["loadspan.busy_time"])
    assert TIME not in deciphered
    assert load["attributes"]["loadspan.partition.decrypt"] == pytest.approx(derived[TIME] + deciphered["loadspan.busy_time"], abs=5e-4)


def test_in_a_declared_stage_it_is_set_apart_and_lowers_no_throughput(spans: Spans) -> None:
    data = AESGCM(SALT).encrypt(SALT[:12], PLAIN, None)
    with loadspan.load("m"), loadspan.stage("decrypt"):
        for _ in range(2):
            hashlib.scrypt(PASSWORD, salt=SALT, n=1 << 14, r=8, p=1)
        AESGCM(SALT).decrypt(SALT[:12], data, None)
    load = spans.load()
    (stage,) = load["children"]
    found = stage["attributes"]
    assert (found["loadspan.size"], found["loadspan.cipher"]) == (len(data), "AES-GCM")
    assert "loadspan.operation.count" not in found
    assert found[TIME] + found["loadspan.busy_time"] == pytest.approx(stage["duration"], abs=1e-5)
    assert found["loadspan.throughput"] == pytest.approx(len(data) / found["loadspan.busy_time"])
    assert found[TIME] > 0.01 > found["loadspan.busy_time"]


def test_in_a_stage_of_another_name_it_is_a_stage_of_its_own(spans: Spans) -> None:
    with loadspan.load("m"), loadspan.stage("deserialize"):
        hashlib.scrypt(PASSWORD, salt=SALT, n=1 << 14, r=8, p=1)
    (outer,) = spans.load()["children"]
    assert [(stage["name"], stage["attributes"]["loadspan.cipher"]) for stage in outer["children"]] == [("decrypt", "scrypt")]


def test_two_functions_in_one_load_have_one_time_and_no_common_name(spans: Spans) -> None:
    with loadspan.load("m"):
        scrypt().derive(PASSWORD)
        pbkdf2().derive(PASSWORD)
    found = decrypt(spans)
    assert found["loadspan.operation.count"] == 2
    assert "loadspan.cipher" not in found


def test_logging_in_is_no_load(spans: Spans) -> None:
    for _, call, _ in CASES:
        call()
    assert spans.recorder.loads == []
    assert spans.loads() == []


def test_a_key_derived_for_bytes_that_wait_belongs_to_their_load(spans: Spans) -> None:
    """The salt is in the header of a file: reading it opened the load."""
    call = spans.recorder.begin_fine("read")
    spans.recorder.end_fine(call, len(PLAIN), None, PLAIN)
    key = scrypt().derive(PASSWORD)
    AESGCM(key).decrypt(SALT[:12], AESGCM(key).encrypt(SALT[:12], PLAIN, None), None)
    stages = [(stage["name"], stage["attributes"].get("loadspan.cipher")) for stage in spans.load()["children"]]
    assert stages == [("read", None), ("decrypt", "scrypt"), ("decrypt", "AES-GCM")]


def test_a_wrong_password_is_the_host_s_exception_and_written_down_once(spans: Spans) -> None:
    with pytest.raises(InvalidKey, match=r"^Keys do not match\.$"), loadspan.load("m"):
        scrypt().verify(b"wrong", SCRYPT_KEY)
    load = spans.load()
    assert [span["attributes"]["error.type"] for span in walk(load)] == ["cryptography.exceptions.InvalidKey"] * 2
    assert [len(span["events"]) for span in walk(load)] == [0, 1]


@pytest.mark.parametrize("name", ["scrypt", "pbkdf2_hmac"])
def test_a_built_in_function_stays_one_to_whoever_looks(recording: Callable[..., Spans], name: str) -> None:
    import _hashlib

    bare = getattr(hashlib, name)
    recording()
    ours = getattr(hashlib, name)
    assert ours is not bare
    assert (ours.__name__, ours.__doc__, inspect.signature(ours)) == (bare.__name__, bare.__doc__, inspect.signature(bare))
    assert pickle.loads(pickle.dumps(ours)) is ours  # noqa: S301 - our own
    holder = type("Holder", (), {"derive": ours})()
    assert holder.derive is ours, "a built-in does not become a method"
    LoadspanInstrumentor().uninstrument()
    assert getattr(hashlib, name) is bare
    assert getattr(_hashlib, name) is bare
    assert ours("sha256", PASSWORD, SALT, 1) if name == "pbkdf2_hmac" else ours(PASSWORD, salt=SALT, n=2, r=1, p=1)


def test_no_password_salt_or_key_is_in_anything_that_is_recorded(spans: Spans) -> None:
    keys = [b"canary"]
    for _, call, _ in CASES:
        with loadspan.load("m"):
            keys.append(call() or b"canary")
        with loadspan.load("m"), loadspan.stage("decrypt"):
            call()
    with pytest.raises(InvalidKey), loadspan.load("m"):
        scrypt().verify(PASSWORD, SALT)
    text = repr([span for load in spans.loads() for span in walk(load)])
    assert TIME in text
    for secret in (PASSWORD, SALT, *keys):
        for form in (repr(secret)[2:-1], secret.hex(), base64.b64encode(secret).decode()[:-4]):
            assert form not in text
