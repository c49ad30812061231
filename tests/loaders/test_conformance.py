"""Every way of loading that this environment has the libraries for, on the real library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import conform
import environments
import pytest
import table
from case import Case, all_cases

if TYPE_CHECKING:
    from pathlib import Path

CASES = all_cases()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loaders")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.library}: {case.name}")
def test_a_load_is_seen_whole_and_the_host_notices_nothing(case: Case, folder: Path) -> None:
    lacking = conform.missing(case)
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    assert conform.run(case, folder).wrong == []


def test_names_of_cases_are_unique() -> None:
    names = [(case.library, case.name) for case in CASES]
    assert len(set(names)) == len(names)


def test_the_page_is_what_the_kept_results_make_it() -> None:
    assert table.PAGE.read_text() == table.page()


def test_the_page_has_every_case_and_every_environment() -> None:
    page = table.PAGE.read_text()
    assert [f"## {name}," in page for name in environments.known()] == [True] * len(environments.known())
    assert {(case.library, case.name) for case in CASES} <= {
        (row["library"], row["name"]) for name in environments.known() for row in table.kept(name)
    }
