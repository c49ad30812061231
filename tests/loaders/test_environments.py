"""
Every way of loading with other versions of the libraries, if LOADSPAN_LOADERS_ALL is set.

An environment takes gigabytes and some minutes: what did not run is skipped, and says so.
"""

from __future__ import annotations

import functools

import conform
import environments
import pytest
import table
from case import ASKED, all_cases

NAMES = [(case.library, case.name) for _, case in all_cases()]
if not ASKED:
    pytest.skip("not run: LOADSPAN_LOADERS_ALL is not set", allow_module_level=True)
PLACES = [(environment, *name) for environment in environments.others() for name in NAMES]


@functools.cache
def rows_of(environment: str) -> dict[tuple[str, str], table.Row] | str:
    """What was seen in *environment*, where every case runs at once; or why none did."""
    try:
        _, rows = conform.in_environment(environment, [])
    except environments.CannotBeMade as why:
        return str(why)
    return {(row["library"], row["name"]): row for row in rows}


@pytest.mark.timeout(7200)  # the first of an environment waits for all of its cases
@pytest.mark.parametrize(("environment", "library", "name"), PLACES, ids=[f"{place[0]}-{place[1]}: {place[2]}" for place in PLACES])
def test_a_load_is_seen_whole_with_other_versions(environment: str, library: str, name: str) -> None:
    rows = rows_of(environment)
    if isinstance(rows, str):
        pytest.skip(f"not run: {rows}")
    row = rows[library, name]
    if "why" in row:
        pytest.skip(table.verdict(row))
    assert row["wrong"] == []
