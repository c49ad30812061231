"""
Ways of loading that this environment has the libraries for, on the real library: one of each library, all if LOADSPAN_LOADERS_ALL is set.

All take half an hour: `python tests/loaders/conform.py` runs them too, and docs/loaders.md is what it saw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import conform
import pytest
import table
from case import ASKED, Case, all_cases
from judge import NotRun

if TYPE_CHECKING:
    from pathlib import Path

BUSY = 0.7
"""Share of a load that stages explain on any machine."""

CASES = all_cases()
FIRST = {case.library: case.name for _, case in reversed(CASES)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loaders")


@pytest.mark.timeout(900)  # three processes, each with a limit of its own
@pytest.mark.parametrize(("module", "case"), CASES, ids=[f"{case.library}: {case.name}" for _, case in CASES])
def test_a_load_is_seen_whole_and_the_host_notices_nothing(module: str, case: Case, folder: Path) -> None:
    if not ASKED and case.name != FIRST[case.library]:
        pytest.skip("not run: LOADSPAN_LOADERS_ALL is not set")
    outcome = conform.outcome_of(module, case, folder)
    if isinstance(outcome, NotRun):
        pytest.skip(f"not run: {outcome.why}")
    # How much stages explain depends on how busy the machine is: what it was on a quiet one is on the page.
    assert [wrong for wrong in outcome.wrong if not wrong.startswith("coverage ")] == []
    assert outcome.coverage is None or outcome.coverage > BUSY


def test_names_of_cases_are_unique() -> None:
    names = [(case.library, case.name) for _, case in CASES]
    assert len(set(names)) == len(names)


def test_every_case_was_seen_somewhere_and_nothing_that_was_seen_is_wrong() -> None:
    rows = [row for file in table.RESULTS.glob("*.json") for row in table.kept(file.stem)]
    assert [(row["library"], row["name"], row["wrong"]) for row in rows if row.get("wrong")] == []
    seen = {(row["library"], row["name"]) for row in rows if "why" not in row}
    assert [(case.library, case.name) for _, case in CASES if (case.library, case.name) not in seen] == []


def test_the_page_is_what_the_kept_results_make_it() -> None:
    assert table.PAGE.read_text() == table.page()
