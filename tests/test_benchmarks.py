"""The benchmark, run small: it measures everything it promises. How long anything takes is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("cryptography")

_BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "overhead.py"
_BUDGETED = (
    "load time / bare, safetensors, 147 tensors",
    "load time / bare, transformers",
    "load time / bare, diffusers",
    "load time / bare, 20 000 tensors: load_file",
    "load time / bare, 20 000 tensors one by one",
    "load time / bare, encrypted",
    "coverage of what was recorded, safetensors",
    "share of the whole call in a stage, safetensors",
    "recorded / true bytes - 1, safetensors",
    "fine call: safe_open.get_tensor",
    "fine call: AESGCM.decrypt",
    "fine call: read(64 KiB)",
    "coarse call: load_state_dict",
    "load, opened and closed",
    "no load open: AESGCM.decrypt",
    "no load open: open() of a small text file",
    "no load open: open() of a small binary file",
    "no load open: ThreadPoolExecutor.submit",
    "no load open: Thread.start",
    "import loadspan and instrument()",
    "CPU time of the sampler / load: 1 thread",
    "CPU time of the sampler / load: 16 threads",
    "look at a file of 1 GiB",
    "memory of a load: 400 get_tensor calls",
    "memory of a load: 2,000 get_tensor calls",
    "memory of a load: 2,000 tensors",
    "spans of a load: 2,000 get_tensor calls",
    "spans of a load: 2,000 tensors",
)
_OPTIONAL = ("transformers", "diffusers")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(_BENCHMARK), *arguments], capture_output=True, text=True, check=False, timeout=280)


def _row(rows: list[dict[str, Any]], beginning: str) -> dict[str, Any]:
    found = [row for row in rows if row["what"].startswith(beginning)]
    assert len(found) == 1, beginning
    return found[0]


def test_every_budget_is_measured_and_printed(tmp_path: Path) -> None:
    done = _run("--pairs", "1", "--scale", "0.02", "--json", str(tmp_path / "all.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert not [row for row in rows if row["problem"].startswith("failed")]
    skipped = [row["what"].partition(":")[0] for row in rows if row["problem"].startswith("not run")]
    assert set(skipped) <= set(_OPTIONAL)
    for beginning in _BUDGETED:
        if any(beginning.endswith(library) for library in skipped):
            continue
        row = _row(rows, beginning)
        assert row["values"], beginning
        assert row["budget"], beginning
        assert row["verdict"] in {"ok", "OVER"}, beginning
        line = next(line for line in done.stdout.splitlines() if line.startswith(beginning))
        assert row["measured"] in line
        assert row["budget"] in line


def test_the_table_can_be_printed_as_markdown() -> None:
    done = _run("--pairs", "1", "--scale", "0.02", "--only", "start", "--markdown")
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("\n\n")[2].splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| import loadspan and instrument()")


def test_a_library_that_is_missing_is_named_in_its_row() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_DIFFUSERS.format(folder=str(_BENCHMARK.parent))], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "not run: diffusers is not installed", done.stderr


_WITHOUT_DIFFUSERS = """
import importlib.util, sys
sys.path.insert(0, {folder!r})
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "diffusers" else find(name, *rest)
import overhead
print(overhead._measure_in_child("diffusers", 1, 0.02)[0].problem)
"""


def test_an_impossible_number_of_pairs_is_refused() -> None:
    done = _run("--pairs", "0")
    assert done.returncode == 2
    assert "not positive" in done.stderr
