"""Which decryptions are part of loading weights where no load was declared, and which are left alone."""

from __future__ import annotations

import base64
import threading
import time
import timeit
from typing import TYPE_CHECKING, Any

from ciphertexts import KEY, MIB, NONCE, PLAIN, decrypt, sealed, stream
from Crypto.Cipher import AES
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers import modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from nacl.secret import SecretBox

if TYPE_CHECKING:
    from collections.abc import Callable

    from recorded import Spans

SMALL = b"a session"
ODD = 37
CHUNK = 64 << 10


def small_things() -> list[Callable[[], Any]]:
    token, box = Fernet(base64.urlsafe_b64encode(KEY)).encrypt(SMALL), bytes(SecretBox(KEY).encrypt(SMALL, NONCE))
    tagged = AESGCM(KEY).encrypt(NONCE[:12], SMALL, None)
    data, tag = AES.new(KEY, AES.MODE_GCM, nonce=NONCE).encrypt_and_digest(SMALL)
    record = ChaCha20Poly1305(KEY).encrypt(NONCE[:12], bytes(16 << 10), None)

    def cipher() -> None:
        decryptor = stream().decryptor()
        decryptor.update(SMALL)
        decryptor.finalize()

    return [
        lambda: Fernet(base64.urlsafe_b64encode(KEY)).decrypt(token),
        lambda: SecretBox(KEY).decrypt(box),
        lambda: AESGCM(KEY).decrypt(NONCE[:12], tagged, None),
        lambda: AES.new(KEY, AES.MODE_GCM, nonce=NONCE).decrypt_and_verify(data, tag),
        lambda: ChaCha20Poly1305(KEY).decrypt(NONCE[:12], record, None),
        cipher,
    ]


def test_sessions_cookies_and_packets_are_no_loads(spans: Spans) -> None:
    for call in small_things() * 20:
        call()
    assert spans.recorder.loads == []
    assert spans.loads() == []


def test_a_load_that_waits_does_not_swallow_what_is_small_and_unrelated(spans: Spans) -> None:
    data = AESGCM(KEY).encrypt(NONCE[:12], PLAIN, None)
    AESGCM(KEY).decrypt(NONCE[:12], data, None)
    for call in small_things() * 20:
        call()
    found = decrypt(spans)
    assert (found["loadspan.size"], found["loadspan.operation.count"]) == (len(data), 1)


def test_the_short_end_of_what_a_load_decrypts_belongs_to_it(spans: Spans) -> None:
    data, encryptor = sealed(modes.GCM(NONCE[:12]), PLAIN + bytes(ODD))
    decryptor = stream(modes.GCM(NONCE[:12], encryptor.tag)).decryptor()
    decryptor.update(data[:-ODD])
    time.sleep(0.03)  # a slow source
    decryptor.update(data[-ODD:])
    decryptor.finalize()
    found = decrypt(spans)
    assert (found["loadspan.size"], found["loadspan.operation.count"]) == (len(data), 3)


def test_chunks_of_what_a_load_reads_belong_to_it_however_small(spans: Spans) -> None:
    data, _ = sealed(modes.CTR(NONCE[:16]))
    chunk = 8 << 10
    decryptor = stream(modes.CTR(NONCE[:16])).decryptor()
    for start in range(0, len(data), chunk):
        call = spans.recorder.begin_fine("read")
        piece = data[start : start + chunk]
        spans.recorder.end_fine(call, len(piece), None, piece)
        decryptor.update(piece)
    assert decrypt(spans)["loadspan.size"] == len(data)


def test_a_thread_that_decrypts_what_a_load_read_works_for_that_load(spans: Spans) -> None:
    data = AESGCM(KEY).encrypt(NONCE[:12], PLAIN, None)
    call = spans.recorder.begin_fine("read")
    spans.recorder.end_fine(call, len(data), None, data)
    worker = threading.Thread(target=lambda: AESGCM(KEY).decrypt(NONCE[:12], data, None))
    worker.start()
    worker.join()
    assert [stage["name"] for stage in spans.load()["children"]] == ["read", "decrypt"]


def test_frames_from_memory_join_the_load_that_waits_for_them(spans: Spans) -> None:
    cipher = AESGCM(KEY)
    large, frame = cipher.encrypt(NONCE[:12], PLAIN, None), cipher.encrypt(NONCE[:12], PLAIN[:CHUNK], None)
    cipher.decrypt(NONCE[:12], large, None)
    for _ in range(5):
        cipher.decrypt(NONCE[:12], frame, None)
    assert decrypt(spans)["loadspan.size"] == len(large) + 5 * len(frame)


def test_a_small_call_costs_next_to_nothing_while_nothing_is_loaded(recording: Callable[..., Spans]) -> None:
    cipher = AESGCM(KEY)
    data = cipher.encrypt(NONCE[:12], SMALL, None)

    def cost() -> float:
        return min(timeit.repeat(lambda: cipher.decrypt(NONCE[:12], data, None), number=1_000, repeat=20)) / 1_000

    bare = cost()
    recording()
    # 0.3 us on a quiet machine; tests do not run on one.
    assert cost() - bare < 1.5e-6


def test_payloads_as_large_as_weights_start_at_a_megabyte() -> None:
    from loadspan.instrument.targets import crypto

    assert (crypto.OPENS, crypto.JOINS) == (MIB, 32 << 10)
