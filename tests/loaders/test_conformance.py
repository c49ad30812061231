"""
Every way of loading, on the real library: here always, with other versions of the libraries while there is time.

An environment with other versions takes gigabytes and a quarter of an hour. One begins only within LOADERS_MINUTES of the start of
the tests, by default none does. What did not run is skipped, and says so.
"""

from __future__ import annotations

import functools
import os
import time

import conform
import environments
import pytest
import table
from case import all_cases

BUSY = 0.7
"""Share of a load that stages explain on any machine: what it was on a quiet one is on the page."""
MINUTES = float(os.environ.get("LOADERS_MINUTES") or 0)
BEGUN = time.monotonic()

CASES = all_cases()
PLACES = [
    (environment, case.library, case.name)
    for environment in environments.known()
    for module, case in CASES
    if module.rpartition(".")[2] in (environments.cases_of(environment) or [module.rpartition(".")[2]])
]


@functools.cache
def rows_of(environment: str) -> dict[tuple[str, str], table.Row] | str:
    """What was seen in *environment*, where all cases run at once; or why none did."""
    if environment != environments.CORE and time.monotonic() - BEGUN >= 60 * MINUTES:
        return f"LOADERS_MINUTES={MINUTES:g} are over"
    words = ["--jobs=2", *(f"--cases={part}" for part in environments.cases_of(environment))]
    try:
        _, rows = conform.in_environment(environment, words)
    except environments.CannotBeMade as why:
        return str(why)
    return {(row["library"], row["name"]): row for row in rows}


@pytest.mark.timeout(5400)  # the first of an environment waits for all of its cases
@pytest.mark.parametrize(("environment", "library", "name"), PLACES, ids=[f"{place[0]}-{place[1]}: {place[2]}" for place in PLACES])
def test_a_load_is_seen_whole_and_the_host_notices_nothing(environment: str, library: str, name: str) -> None:
    rows = rows_of(environment)
    if isinstance(rows, str):
        pytest.skip(f"not run: {rows}")
    row = rows[library, name]
    if "why" in row:
        pytest.skip(table.verdict(row))
    if environment != environments.CORE:
        assert row["wrong"] == []
    assert [wrong for wrong in row["wrong"] if not wrong.startswith("coverage ")] == []
    assert row["coverage"] is None or row["coverage"] > BUSY


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
