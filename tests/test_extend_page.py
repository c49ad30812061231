"""docs/extend.md: its programs run as they stand there, and print what it says."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loadspan import api
from loadspan.targets import Kind, Target

PAGE = (Path(__file__).parent.parent / "docs" / "extend.md").read_text()
FILES = dict(re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
OUTPUTS = re.findall(r"```text\n(load model.*?)```", PAGE, re.DOTALL)

NUMBER = r"\d[\d .]*"
PASSING = (
    rf"{NUMBER} (us|ms|s)",
    rf"{NUMBER} [kMGT]?B/s",
    rf"coverage {NUMBER} %.*",
    "[█▌▐·]+",
    r"\S+ on \S+|tmpfs|overlay|ext4|xfs|btrfs|zfs",
    "warm|cold|waited .*|blocked .*|asleep .*|exclusive .*|.* in page cache before|.* in cache before|.* from storage|disk .*|.* evicted.*",
    ".* read back from swap|memory limit .*",
)
"""What differs between runs and machines."""


def said(text: str) -> list[str]:
    """What a waterfall says, line by line, without what differs from run to run and from machine to machine."""
    lines = []
    text = re.sub(r"\n {2}! .*?(?=\n\n|\Z)", "", text, flags=re.DOTALL)  # findings, of a machine that was slow
    text = re.sub(r"\n {2}loadspan .*\n.*its own work around stages", "", text)  # where it is worth a row
    for line in re.sub(r"\n {2}(through read\(\)|from storage|.*peak) .*", "", text).splitlines():
        if not line.strip():
            continue
        parts = [re.sub(rf"which cost {NUMBER} m?s", "which cost", part) for part in re.split(r" {2,}", line.strip())]
        kept = [part for part in parts if not any(re.fullmatch(pattern, part) for pattern in PASSING)]
        if kept:
            lines.append("  ".join(kept))
    return lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of the page, and the distribution that they make."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    section = re.search(r"\[project\.entry-points\.(\w+)\]\n(.*?)\n\n", FILES["pyproject.toml"], re.DOTALL)
    assert section is not None
    information = tmp_path / "acme_loadspan-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-loadspan\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{section[1]}]\n{section[2].replace(chr(34), '')}\n")
    return tmp_path


@pytest.mark.parametrize(("program", "output"), list(zip(["serve.py", "use.py"], OUTPUTS, strict=True)), ids=["serve.py", "use.py"])
def test_a_program_prints_what_the_page_says(folder: Path, program: str, output: str) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LOADSPAN_"))}
    kept |= {"PYTHONPATH": str(folder), "NO_COLOR": "1", "COLUMNS": "100"}
    command = (sys.executable, "-m", "loadspan", "run", "--quiet", "-o", "run", "--", sys.executable, "-W", "error", program)
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")
    show = (sys.executable, "-m", "loadspan", "show", "run", "--width", "100")
    shown = subprocess.run(show, cwd=folder, env=kept, capture_output=True, text=True, check=True)
    assert said(re.split(r"\n(?:\d+ loads|As data)", shown.stdout)[0]) == said(output)


def test_a_program_runs_the_same_without_a_recorder(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "serve.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_page_names_every_field_fact_and_kind() -> None:
    for field in dataclasses.fields(Target):
        assert f"`{field.name}`" in PAGE, field.name
    for fact in api._FACTS:  # noqa: SLF001 - the list itself
        assert f"`{fact}`" in PAGE, fact
    for kind in Kind:
        assert f"`Kind.{kind.name}`" in PAGE


def test_the_programs_of_the_page_are_in_style(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "110", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
