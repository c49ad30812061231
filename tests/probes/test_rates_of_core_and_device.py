"""One core decrypts, memory is copied to a device: bytes over seconds, or the reason why not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadspan.facts.rates import Rate, Skipped
from loadspan.probes import Bounds, crypto, device, silent

EXAMPLES = Path(__file__).parents[2] / "examples"
MIB = 1 << 20


def test_every_installed_cipher_has_a_rate_and_the_others_a_reason() -> None:
    outcomes = list(crypto.plan(Bounds(seconds=0.02)).run(silent))
    installed = {"cryptography": "cryptography", "PyCryptodome": "Crypto", "PyNaCl": "nacl", "PyCryptodomex": "Cryptodome"}
    for outcome in outcomes:
        library = outcome.probe.rpartition(", ")[2]
        pytest.importorskip("cryptography")
        try:
            __import__(installed[library])
        except ImportError:
            assert outcome == Skipped(outcome.probe, f"{library} is not installed")
        else:
            assert isinstance(outcome, Rate), outcome
            assert outcome.block is not None
            assert outcome.size % outcome.block == 0
            assert 0 < outcome.seconds < 1.0
            assert outcome.verified
    assert [outcome.probe for outcome in outcomes] == [step.probe for step in crypto.plan().steps]
    assert "decrypt AES-256-GCM, cryptography" in {outcome.probe for outcome in outcomes}


def test_the_rate_of_a_cipher_is_that_of_its_library_called_by_hand() -> None:
    aead = pytest.importorskip("cryptography.hazmat.primitives.ciphers.aead")
    cipher = aead.AESGCM(bytes(32))
    sealed = cipher.encrypt(bytes(12), bytes(MIB), None)
    began = time.thread_time()
    for _ in range(400):
        cipher.decrypt(bytes(12), sealed, None)
    by_hand = 400 * len(sealed) / (time.thread_time() - began)
    first = next(iter(crypto.plan(Bounds(seconds=0.2)).run(silent)))
    assert isinstance(first, Rate)
    assert first.rate == pytest.approx(by_hand, rel=0.5)  # a shared machine


def test_a_bound_of_bytes_ends_decryption() -> None:
    first = next(iter(crypto.plan(Bounds(seconds=10.0, size=3 * (MIB + 16))).run(silent)))
    assert isinstance(first, Rate)
    assert first.size == 3 * (MIB + 16)


def test_a_library_whose_import_is_forbidden_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cryptography", "Crypto", "nacl"):
        monkeypatch.setitem(sys.modules, name, None)
    plan = crypto.plan()
    assert plan.lines == ()
    assert {outcome.reason.partition(" ")[2] for outcome in plan.run(silent) if isinstance(outcome, Skipped)} == {"is not installed"}


def test_without_torch_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert list(device.plan("cuda:0").run(silent)) == [
        Skipped("copy to device, pageable", "torch is not installed"),
        Skipped("copy to device, pinned", "torch is not installed"),
    ]


@pytest.mark.parametrize("name", ["cpu", "meta"])
def test_memory_of_the_host_is_no_accelerator(name: str) -> None:
    pytest.importorskip("torch")
    assert [outcome.reason for outcome in device.plan(name).run(silent) if isinstance(outcome, Skipped)] == [
        f"{name} is no accelerator"
    ] * 2


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "xpu:99", "mps", "", "privateuseone"])
def test_a_device_that_is_not_there_is_said(name: str) -> None:
    pytest.importorskip("torch")
    outcomes = list(device.plan(name, Bounds(size=MIB)).run(silent))
    assert all(isinstance(outcome, Skipped) and outcome.reason.isprintable() and len(outcome.reason) < 300 for outcome in outcomes)


COPYING = """
import dataclasses, json, sys
import fakegpu
from loadspan.probes import Bounds, device
told = []
name = fakegpu.register()
before = fakegpu.copied()
plan = device.plan(name, Bounds(seconds=10.0, size=64 << 20))
device.BLOCK = 8 << 20
plan = device.plan(name, Bounds(seconds=10.0, size=64 << 20))
outcomes = [dataclasses.asdict(o) for o in plan.run(lambda *what: told.append(what))]
print(json.dumps([plan.lines, outcomes, fakegpu.copied() - before, told]))
"""


def test_copies_to_an_accelerator_are_counted_to_the_byte() -> None:
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", COPYING], cwd=EXAMPLES, capture_output=True, text=True, check=True)
    lines, (pageable, pinned), copied, told = json.loads(done.stdout)
    what = "copies 8.39 MB again and again to fakegpu:0, out of pageable and of pinned memory; at most 67.1 MB and 10.0 s each"
    assert lines == [what]
    assert (pageable["size"], pageable["block"], pageable["verified"]) == (64 * MIB, 8 * MIB, True)
    assert pageable["seconds"] > 0
    assert copied == 64 * MIB + 8 * MIB  # and the first copy, for which the device starts, is not timed
    assert pinned["reason"].startswith("not possible on fakegpu:0: ")
    assert told == [["copy to device, pageable", 8 * MIB * n, 64 * MIB] for n in range(1, 9)]
