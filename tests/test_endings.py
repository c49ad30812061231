"""However a program ends, what it had recorded is kept, and what it was doing is told."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

LOAD = """
import os, signal, sys, time
import torch
from safetensors.torch import load_file, save_file

model = torch.nn.Linear(1024, 1024, bias=False)
save_file(model.state_dict(), "model.safetensors")
model.load_state_dict(load_file("model.safetensors"))
"""

DECRYPT = """
import os, signal
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

with open("model.enc", "wb") as file:
    file.truncate(64 << 20)
cipher, nonce = AESGCM(bytes(16)), bytes(12)
sealed = cipher.encrypt(nonce, bytes(4 << 20), None)
with open("model.enc", "rb") as file:
    for number in range(16):
        file.read(4 << 20)
        cipher.decrypt(nonce, sealed, None)
        if number == 9:
            import pathlib, time
            state, until = pathlib.Path(f"run/state-{os.getpid()}.json"), time.monotonic() + 20
            while not (state.exists() and b'"size": 41943200' in state.read_bytes()) and time.monotonic() < until:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
"""


def run(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "loadspan", "run", "-o", "run", "--", sys.executable, "program.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("os._exit(3)", 3),
        ("time.sleep(0.3); os._exit(3)", 3),
        ("os.execv(sys.executable, [sys.executable, '-c', 'raise SystemExit(4)'])", 4),
        ("sys.exit(5)", 5),
        ("raise SystemExit", 0),
    ],
)
def test_a_load_that_was_over_is_shown_whole(tmp_path: Path, ending: str, code: int) -> None:
    done = run(tmp_path, LOAD + ending)
    assert done.returncode == code
    assert "load model" in done.stderr
    assert "load_state_dict" in done.stderr
    assert "coverage" in done.stderr
    assert "died" not in done.stderr
    assert "never ended" not in done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_delivers_its_load(tmp_path: Path, method: str) -> None:
    body = "\n".join("    " + line for line in LOAD.splitlines())
    program = f"import multiprocessing\n\ndef work():\n{body}\n    os._exit(0)\n"
    program += f"\nif __name__ == '__main__':\n    child = multiprocessing.get_context({method!r}).Process(target=work)\n"
    program += "    child.start()\n    child.join()\n"
    done = run(tmp_path, program)
    assert (done.returncode, done.stderr.count("load_state_dict"), "died" in done.stderr) == (0, 1, False), done.stderr


def test_a_load_that_nobody_declared_is_told_of_after_kill_9(tmp_path: Path) -> None:
    done = run(tmp_path, DECRYPT)
    assert done.returncode == 137
    assert "was killed by SIGKILL" in done.stderr
    assert "died in " in done.stderr
    assert "41.9 MB" in done.stderr
