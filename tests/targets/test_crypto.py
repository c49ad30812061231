"""Decryption with the real libraries: what is counted, what is left alone, and that the host notices nothing."""

from __future__ import annotations

import base64
import importlib
import mmap
import os
import subprocess
import sys
import threading
import time
import traceback
from array import array
from typing import TYPE_CHECKING, Any

import nacl.exceptions
import pytest
from ciphertexts import CANARIES, EXTRA, KEY, MIB, NONCE, PLAIN, Case, cases, decrypt, sealed, stream
from Crypto.Cipher import AES
from cryptography.exceptions import AlreadyFinalized, InvalidTag
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.ciphers import (
    AEADCipherContext,
    AEADDecryptionContext,
    AEADEncryptionContext,
    Cipher,
    CipherContext,
    algorithms,
    modes,
)
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from nacl.secret import SecretBox

import loadspan
from loadspan import LoadspanInstrumentor
from loadspan.instrument.targets.crypto import size_of
from recorded import walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from recorded import Spans, Tree

SMALL = b"a session"
ODD = 37
LONG = 0.003
"""Seconds after which a declared stage has a span of its own."""
CHUNK = 64 << 10


# Every row


@pytest.mark.parametrize("case", cases(), ids=str)
def test_a_call_returns_what_it_would_have_and_is_counted_once_with_its_bytes_and_cipher(spans: Spans, case: Case) -> None:
    with loadspan.load("m"):
        result = case.call()
    assert result == case.plain
    found = decrypt(spans)
    assert (found["loadspan.size"], found["loadspan.cipher"]) == (case.size, case.cipher)
    assert found["loadspan.throughput"] == pytest.approx(case.size / found["loadspan.busy_time"])
    assert "loadspan.key_derivation.time" not in found


@pytest.mark.parametrize("case", cases(), ids=str)
def test_a_call_as_large_as_weights_opens_a_load_by_itself(spans: Spans, case: Case) -> None:
    assert case.call() == case.plain
    found = decrypt(spans)
    assert (found["loadspan.size"], found["loadspan.cipher"]) == (case.size, case.cipher)
    assert spans.load()["attributes"]["loadspan.size"] == case.size


def places() -> dict[tuple[str, str], tuple[Any, str]]:
    """Owner and name of the attribute of every row whose module and attribute are here."""
    from loadspan.instrument.targets import crypto, key_derivation

    found = {}
    for row in (*crypto.ROWS, *key_derivation.ROWS):
        if row.module.startswith("Cryptodome"):
            continue  # the same code under another name, not installed beside it
        try:
            owner: Any = importlib.import_module(row.module)
        except ModuleNotFoundError:
            continue  # an older release
        *path, name = row.attribute.split(".")
        for part in path:
            owner = getattr(owner, part, None)
        if name in vars(owner or object):
            found[row.module, row.attribute] = (owner, name)
    return found


def test_every_function_that_is_there_is_taken_and_the_very_object_put_back(recording: Callable[..., Spans]) -> None:
    before = {key: vars(owner)[name] for key, (owner, name) in places().items()}
    assert len(before) > 50
    recording()
    during = {key: vars(owner)[name] for key, (owner, name) in places().items()}
    assert [key for key in before if during[key] is before[key]] == []
    LoadspanInstrumentor().uninstrument()
    after = {key: vars(owner)[name] for key, (owner, name) in places().items()}
    assert [key for key in before if after[key] is not before[key]] == []


def test_rows_wait_for_their_library_and_what_is_imported_later_is_counted_as_well(tmp_path: Any) -> None:
    program = """
import sys
from loadspan import LoadspanInstrumentor, load
from loadspan.instrument.live import recorder
from opentelemetry.sdk.trace import TracerProvider
LoadspanInstrumentor().instrument(tracer_provider=TracerProvider())
assert not {"cryptography", "Crypto", "nacl"} & set(sys.modules), "instrumenting imported a host library"
from Crypto.Cipher import AES
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_decrypt as decrypt, crypto_aead_chacha20poly1305_ietf_encrypt as encrypt
sealed = AESGCM(b"k" * 32).encrypt(b"n" * 12, b"p" * 100, None)
with load("m") as opened:
    AESGCM(b"k" * 32).decrypt(b"n" * 12, sealed, None)
    AES.new(b"k" * 32, AES.MODE_CTR, nonce=b"n" * 8).decrypt(b"c" * 50)
    decrypt(encrypt(b"p" * 10, None, b"n" * 12, b"k" * 32), None, b"n" * 12, b"k" * 32)
    Scrypt(salt=b"s" * 16, length=32, n=2, r=8, p=1).derive(b"p")
    (tallied,) = [load.tallies for load in recorder.loads]
    print({key: (tally.count, tally.size) for key, tally in tallied.items()})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert (done.stderr, done.stdout) == ("", "{'decrypt': (3, 192), 'loadspan.key_derivation.time': (1, 0)}\n")


# Chunks


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview], ids=["bytes", "bytearray", "memoryview"])
@pytest.mark.parametrize(
    ("mode", "cipher"),
    [(lambda: modes.CTR(NONCE[:16]), "AES-CTR"), (lambda: modes.CBC(NONCE[:16]), "AES-CBC"), (lambda: modes.GCM(NONCE[:12]), "AES-GCM")],
    ids=["CTR", "CBC", "GCM"],
)
def test_a_loop_over_chunks_is_one_stage_with_the_exact_bytes(spans: Spans, mode: Any, cipher: str, kind: Any) -> None:
    data, encryptor = sealed(mode())
    with loadspan.load("m"):
        decryptor = stream(mode()).decryptor()
        plain = b"".join(decryptor.update(kind(data[start : start + CHUNK])) for start in range(0, len(data), CHUNK))
        plain += decryptor.finalize_with_tag(encryptor.tag) if cipher == "AES-GCM" else decryptor.finalize()
    assert plain == PLAIN
    found = decrypt(spans)
    assert found["loadspan.cipher"] == cipher
    assert found["loadspan.size"] == len(data)
    assert found["loadspan.operation.count"] == -(-len(data) // CHUNK) + 1


def test_update_into_and_associated_data_are_counted_but_only_ciphertext_is_size(spans: Spans) -> None:
    encryptor = stream(modes.GCM(NONCE[:12])).encryptor()
    encryptor.authenticate_additional_data(EXTRA)
    data = encryptor.update(PLAIN) + encryptor.finalize()
    with loadspan.load("m"):
        decryptor = stream(modes.GCM(NONCE[:12], encryptor.tag)).decryptor()
        decryptor.authenticate_additional_data(EXTRA)
        output = bytearray(len(data) + 15)  # as releases before 44 ask for
        assert decryptor.update_into(data, output) == len(data)
        assert decryptor.finalize() == b""
    assert output[: len(data)] == PLAIN
    found = decrypt(spans)
    assert (found["loadspan.size"], found["loadspan.operation.count"]) == (len(data), 3)


def test_buffers_are_counted_by_their_bytes_not_their_elements(spans: Spans) -> None:
    grid = memoryview(bytes(MIB)).cast("B", (64, MIB // 64))
    with loadspan.load("m"), mmap.mmap(-1, MIB) as mapped:
        for data in (grid, mapped, array("B", bytes(MIB)), bytearray(MIB)):
            stream().decryptor().update(data)
    assert decrypt(spans)["loadspan.size"] == 4 * MIB


def test_what_is_no_buffer_has_no_size() -> None:
    released = memoryview(b"gone")
    released.release()
    assert [size_of(thing) for thing in (None, 7, object(), released, [b"list"])] == [None] * 5


def test_the_prefix_of_an_openpgp_message_is_decrypted_as_well(spans: Spans) -> None:
    message = AES.new(KEY, AES.MODE_OPENPGP, iv=NONCE[:16]).encrypt(PLAIN)
    with loadspan.load("m"):
        assert AES.new(KEY, AES.MODE_OPENPGP, iv=message[:18]).decrypt(message[18:]) == PLAIN
    found = decrypt(spans)
    assert (found["loadspan.size"], found["loadspan.operation.count"], found["loadspan.cipher"]) == (len(message), 2, "AES-CFB")


def test_frames_of_a_file_are_one_stage(spans: Spans) -> None:
    cipher = ChaCha20Poly1305(KEY)
    frames = [cipher.encrypt(number.to_bytes(12, "big"), PLAIN[:CHUNK], None) for number in range(20)]
    with loadspan.load("m"):
        for number, frame in enumerate(frames):
            cipher.decrypt(number.to_bytes(12, "big"), frame, None)
    found = decrypt(spans)
    assert (found["loadspan.size"], found["loadspan.operation.count"]) == (20 * (CHUNK + 16), 20)


def test_threads_of_a_load_share_its_stage(spans: Spans) -> None:
    data = AESGCM(KEY).encrypt(NONCE[:12], PLAIN, None)
    together = threading.Barrier(4)  # all alive at once: the identity of a thread that has ended is given to the next

    def work() -> None:
        together.wait()
        AESGCM(KEY).decrypt(NONCE[:12], data, None)

    with loadspan.load("m"):
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    found = decrypt(spans)
    assert (found["loadspan.size"], found["loadspan.operation.count"]) == (4 * len(data), 4)
    assert "thread.name" not in found


def test_a_decryptor_may_be_made_before_the_load_and_outlive_the_instrumentation(spans: Spans) -> None:
    decryptor = stream().decryptor()
    with loadspan.load("m"):
        plain = decryptor.update(PLAIN)
    assert decrypt(spans)["loadspan.size"] == len(PLAIN)
    LoadspanInstrumentor().uninstrument()
    assert stream().encryptor().update(plain) == PLAIN
    assert decryptor.finalize() == b""


# Ciphers of a stage


def test_the_cipher_is_named_only_where_all_calls_agree(spans: Spans) -> None:
    one, other = AESGCM(KEY).encrypt(NONCE[:12], PLAIN, None), ChaCha20Poly1305(KEY).encrypt(NONCE[:12], PLAIN, None)
    with loadspan.load("m"):
        AESGCM(KEY).decrypt(NONCE[:12], one, None)
        ChaCha20Poly1305(KEY).decrypt(NONCE[:12], other, None)
        AESGCM(KEY).decrypt(NONCE[:12], one, None)
    assert "loadspan.cipher" not in decrypt(spans)


def test_a_declared_stage_gets_the_bytes_and_the_cipher_of_the_calls_in_it(spans: Spans) -> None:
    data = AESGCM(KEY).encrypt(NONCE[:12], PLAIN, None)
    with loadspan.load("m"), loadspan.stage("decrypt"):
        for _ in range(3):
            AESGCM(KEY).decrypt(NONCE[:12], data, None)
        time.sleep(LONG)
    found = decrypt(spans)
    assert (found["loadspan.size"], found["loadspan.operation.count"], found["loadspan.cipher"]) == (3 * len(data), 3, "AES-GCM")


def test_a_declared_stage_with_two_ciphers_names_none(spans: Spans) -> None:
    data, _ = sealed(modes.CTR(NONCE[:16]))
    with loadspan.load("m"), loadspan.stage("decrypt"):
        stream(modes.CTR(NONCE[:16])).decryptor().update(data)
        stream(modes.CBC(NONCE[:16])).decryptor().update(data)
        time.sleep(LONG)
    found = decrypt(spans)
    assert found["loadspan.size"] == 2 * len(data)
    assert "loadspan.cipher" not in found


def test_a_cipher_without_a_mode_is_named_by_its_algorithm(spans: Spans) -> None:
    with loadspan.load("m"):
        Cipher(algorithms.ChaCha20(KEY, NONCE[:16]), None).decryptor().update(PLAIN)
    assert decrypt(spans)["loadspan.cipher"] == "ChaCha20"


# The proxy


def test_a_decryptor_is_what_it_was_to_whoever_asks(recording: Callable[..., Spans]) -> None:
    bare = stream(modes.GCM(NONCE[:12])).decryptor(), stream().decryptor()
    recording()
    with_tag, without = stream(modes.GCM(NONCE[:12])).decryptor(), stream().decryptor()
    assert isinstance(with_tag, CipherContext)
    assert isinstance(with_tag, AEADCipherContext | AEADDecryptionContext)
    assert not isinstance(with_tag, AEADEncryptionContext)
    assert not isinstance(without, AEADDecryptionContext)
    assert isinstance(without, CipherContext)
    assert (with_tag.__class__, without.__class__) == (bare[0].__class__, bare[1].__class__)
    assert (dir(with_tag), dir(without)) == (dir(bare[0]), dir(bare[1]))
    assert repr(without).partition(" at ")[0] == repr(bare[1]).partition(" at ")[0]
    assert not hasattr(without, "finalize_with_tag")
    with pytest.raises(AttributeError, match="has no attribute 'tag'"):
        _ = with_tag.tag
    assert without.update(b"12") != b""
    with pytest.raises(TypeError):
        without.update()
    without.finalize()
    with pytest.raises(AlreadyFinalized):
        without.update(b"more")


def test_an_encryptor_is_left_alone(spans: Spans) -> None:
    with loadspan.load("m"):
        encryptor = stream().encryptor()
        encryptor.update(PLAIN)
        AES.new(KEY, AES.MODE_CTR, nonce=NONCE[:8]).encrypt(PLAIN)
    assert type(encryptor).__module__.startswith("cryptography.")
    assert spans.load()["children"] == []


# Failures


def foreign() -> bytes:
    return Fernet(base64.urlsafe_b64encode(KEY)).encrypt(PLAIN)


def finalized(data: bytes) -> None:
    decryptor = stream(modes.GCM(NONCE[:12], b"t" * 16)).decryptor()
    decryptor.update(data)
    decryptor.finalize()


FAILURES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: AESGCM(KEY).decrypt(NONCE[:12], PLAIN, None), InvalidTag, "cryptography.exceptions.InvalidTag"),
    (lambda: finalized(PLAIN), InvalidTag, "cryptography.exceptions.InvalidTag"),
    (lambda: Fernet(Fernet.generate_key()).decrypt(foreign()), InvalidToken, "cryptography.fernet.InvalidToken"),
    (lambda: AES.new(KEY, AES.MODE_GCM, nonce=NONCE).decrypt_and_verify(PLAIN, b"t" * 16), ValueError, "ValueError"),
    (lambda: SecretBox(KEY).decrypt(PLAIN), nacl.exceptions.CryptoError, "nacl.exceptions.CryptoError"),
    (lambda: AESCCM(KEY).decrypt(NONCE, PLAIN, None), ValueError, "ValueError"),
]


@pytest.mark.parametrize(("call", "kind", "name"), FAILURES, ids=["tag", "finalize", "token", "pycryptodome", "nacl", "argument"])
def test_the_host_gets_its_own_exception_and_it_is_written_down_once(
    recording: Callable[..., Spans], call: Callable[[], Any], kind: type[Exception], name: str
) -> None:
    with pytest.raises(kind) as bare:
        call()
    spans = recording()
    with pytest.raises(kind) as caught, loadspan.load("m"):
        call()
    assert (type(caught.value), caught.value.args) == (type(bare.value), bare.value.args)
    assert caught.value.__cause__ is None
    last, last_bare = traceback.extract_tb(caught.value.__traceback__)[-1], traceback.extract_tb(bare.value.__traceback__)[-1]
    if "site-packages" in last_bare.filename:
        assert (last.filename, last.lineno) == (last_bare.filename, last_bare.lineno)
    load = spans.load()
    assert [span["attributes"]["error.type"] for span in walk(load)] == [name, name]
    assert [len(span["events"]) for span in walk(load)] == [0, 1]
    assert "loadspan.throughput" not in load["children"][0]["attributes"] or name.endswith("InvalidTag")


def test_a_key_that_does_not_fit_before_one_that_does_is_no_failure(spans: Spans) -> None:
    """`MultiFernet` tries its keys by failing."""
    token = Fernet(base64.urlsafe_b64encode(KEY)).encrypt(PLAIN)
    with loadspan.load("m"):
        MultiFernet([Fernet(Fernet.generate_key()), Fernet(base64.urlsafe_b64encode(KEY))]).decrypt(token)
    assert "error.type" not in decrypt(spans)


# Secrets


def test_no_key_nonce_or_plaintext_is_in_anything_that_is_recorded(spans: Spans) -> None:
    for case in cases():
        with loadspan.load("m"), loadspan.stage("decrypt"):
            case.call()
        case.call()
    for call, kind, _ in FAILURES:
        with pytest.raises(kind):
            call()
    recorded: list[Tree] = [span for load in spans.loads() for span in walk(load)]
    assert len(recorded) > 100
    text = repr(recorded)
    for canary in CANARIES:
        for form in (canary.decode(), canary.hex(), base64.b64encode(canary).decode()[:-4]):
            assert form not in text
