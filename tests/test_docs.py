"""The documentation tells of what there is, and of all of it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import loadspan
from loadspan import metric_names, names, variables
from loadspan.checkup import schema
from loadspan.commands import commands, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")) if path.name != "names.py")
README = (ROOT / "README.md").read_text()


def test_the_reference_is_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_attribute_and_variable_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"`loadspan ([a-z]+)", text)) <= set(commands())
    assert set(re.findall(r"\bLOADSPAN_[A-Z_]+", text)) <= {variable.name for variable in variables.VARIABLES}
    known = {attribute.name for attribute in names.ATTRIBUTES} | {names.partition(stage) for stage in names.PARTS}
    known |= {metric.name for metric in metric_names.METRICS}
    written = set(re.findall(r"`(loadspan\.[a-z_.]+[a-z])`", text))
    public = {f"loadspan.{name}" for name in loadspan.__all__} | {"loadspan.targets"}
    assert written - known - public == set()


def test_every_field_of_the_json_of_check_is_described() -> None:
    page = (ROOT / "docs" / "check.md").read_text()
    for part in schema.SCHEMA:
        assert part.__doc__
        for field in dataclasses.fields(part):
            assert field.metadata.get("meaning"), f"{part.__name__}.{field.name}"
            assert f"| `{field.name}` |" in page


def test_every_attribute_that_is_documented_is_set_somewhere() -> None:
    constants = {value: name for name, value in vars(names).items() if isinstance(value, str)}
    unused = {attribute.name for attribute in names.ATTRIBUTES if f"names.{constants[attribute.name]}" not in SOURCE}
    assert unused - {names.PARTITION, names.CURVE_DISK, names.FINDING} == set()  # prefixes


def test_every_variable_is_read() -> None:
    settings = (ROOT / "src" / "loadspan" / "settings.py").read_text()
    constants = {value: name for name, value in vars(variables).items() if isinstance(value, str)}
    assert [variable.name for variable in variables.VARIABLES if f"variables.{constants[variable.name]}" not in settings] == []


def test_the_waterfall_in_the_readme_is_what_show_draws_of_the_recorded_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(ROOT / "docs" / "demo"), "--width", "100", "--no-color"]) == 0
    drawn = capsys.readouterr().out
    block = re.search(r"```text\n(load model.*?)\n```", README, re.DOTALL)
    assert block is not None
    assert block[1].rstrip() in drawn


def test_the_readme_shows_real_output_by_line_20_and_the_first_command_by_line_40() -> None:
    lines = README.splitlines()
    assert any(line.startswith("load model") for line in lines[:20])
    assert any("loadspan demo" in line for line in lines[:40])


def test_the_overhead_table_names_every_budget_that_the_benchmark_measures() -> None:
    assert "python benchmarks/overhead.py" in README
