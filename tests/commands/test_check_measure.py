"""`loadspan check --measure`: measures this machine for real, says what it does, keeps what it found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loadspan.commands import main

ROOT = Path(__file__).resolve().parents[2]
SIZE = 96 << 20


def test_storage_and_one_core_are_measured_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models = tmp_path / "models"
    models.mkdir()
    (models / "model.safetensors").write_bytes(os.urandom(SIZE))
    before = sorted(path.name for path in models.iterdir())
    assert main(["check", str(models), "--measure", "--json"]) == 0
    captured = capsys.readouterr()
    measured = json.loads(captured.out)["measured"]
    reads = [item for item in measured if item.get("about") == str(models)]
    assert {item["probe"] for item in reads} >= {"read direct", "read buffered"}
    assert all(("rate" in item) != ("skipped" in item) for item in measured)
    assert all(0 < item["rate"] < 1e13 for item in measured if "rate" in item)
    assert any(item["probe"].startswith("decrypt ") and "rate" in item and "about" not in item for item in measured)
    assert f"loadspan check: reads {models}/model.safetensors" in captured.err
    assert "\x1b" not in captured.err
    assert sorted(path.name for path in models.iterdir()) == before
    entries = json.loads((tmp_path / "cache/loadspan/ceilings.json").read_text())["entries"]
    assert sum("mount" in entry for entry in entries) == sum("rate" in item for item in reads)
    assert any("processor" in entry for entry in entries)
    # They are shown the next time, and are part of a capture.
    assert main(["check", str(models), "--width", "100", "--save", "m.tar.gz"]) == 0
    told = capsys.readouterr().out.partition("\nsaved: ")[0]
    assert re.search(r"^  /\S*  measured 20\d\d-", told, re.MULTILINE)
    assert "read direct" in told
    assert main(["check", "--root", "m.tar.gz", "--width", "100"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == told.rstrip("\n").splitlines()


def test_memory_is_measured_through_a_scratch_file_that_is_gone_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.access("/dev/shm", os.W_OK):  # noqa: S108 - memory, not a place for files
        pytest.skip("no /dev/shm")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["check", "--measure", "--scratch", "/dev/shm", "--width", "100"]) == 0  # noqa: S108 - as above
    captured = capsys.readouterr()
    assert "writes " in captured.err
    assert "  /dev/shm\n" in captured.out
    assert [name for name in os.listdir("/dev/shm") if "loadspan" in name] == []  # noqa: S108, PTH208 - as above


ON_FAKEGPU = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import fakegpu
from loadspan.commands import main
fakegpu.register()
sys.exit(main(["check", *sys.argv[1:]]))
"""


def test_a_device_that_only_torch_knows_is_described_and_measured(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", ON_FAKEGPU, ROOT / "examples", "--device", "fakegpu", "--measure", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(device["label"], device["type"], device["visible"]) for device in found["devices"]] == [("fakegpu:0", "fakegpu", True)]
    copies = {item["probe"]: item for item in found["measured"] if item.get("about") == "fakegpu:0"}
    assert copies["copy to device, pageable"]["rate"] > 0
    assert "skipped" in copies["copy to device, pinned"]
    assert "to fakegpu" in done.stderr
