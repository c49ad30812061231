"""Every way of loading that this environment has the libraries for, on the real library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import conform
import environments
import pytest
import table
from case import Case, all_cases
from judge import NotRun

if TYPE_CHECKING:
    from pathlib import Path

CASES = all_cases()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loaders")


@pytest.mark.timeout(900)  # three processes, each with a limit of its own
@pytest.mark.parametrize(("module", "case"), CASES, ids=[f"{case.library}: {case.name}" for _, case in CASES])
def test_a_load_is_seen_whole_and_the_host_notices_nothing(module: str, case: Case, folder: Path) -> None:
    outcome = conform.outcome_of(module, case, folder)
    if isinstance(outcome, NotRun):
        pytest.skip(f"not run: {outcome.why}")
    assert outcome.wrong == []


def test_names_of_cases_are_unique() -> None:
    names = [(case.library, case.name) for _, case in CASES]
    assert len(set(names)) == len(names)


def test_the_page_is_what_the_kept_results_make_it() -> None:
    assert table.PAGE.read_text() == table.page()


def test_the_page_has_every_case_and_every_environment() -> None:
    page = table.PAGE.read_text()
    assert [name for name in environments.known() if f"## {name}\n" not in page] == []
    everywhere = {(case.library, case.name) for _, case in CASES}
    for name in environments.known():
        assert {(row["library"], row["name"]) for row in table.kept(name)} == everywhere, name


def test_nothing_on_the_page_is_wrong() -> None:
    assert [(name, table.verdict(row)) for name in environments.known() for row in table.kept(name) if row.get("wrong")] == []
