"""How much a counter grew, by the generator's own expression in Prometheus's own engine: births, resets, outages, ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from test_first_load import queries

from backends.stores import promtool

if TYPE_CHECKING:
    from pathlib import Path

# Samples one minute apart; asked at minute 30 about the last 10.
CASES = {
    "was there before and grew": ("1x24 3x30", 2),
    "was there before and stayed": ("4x60", 0),
    "was born in the window with its final value": ("_x24 1x30", 1),
    "was born in the window and grew": ("_x24 1x2 5x30", 5),
    "was born and ended in the window": ("_x22 1x2 stale", 1),
    "ended in the window": ("2x24 stale", 0),
    "ended before the window": ("2x10 stale", None),
    "began again under the same name": ("7x22 1x30", 1),
    "was not scraped for a quarter of an hour around the start of the window": ("6x11 _x14 7x30", 1),
}


@pytest.mark.parametrize("what", CASES)
def test_growth_of_a_series_that(what: str, tmp_path: Path) -> None:
    samples, grown = CASES[what]
    sample = [] if grown is None else [{"labels": '{instance="a"}', "value": grown}]
    test = {
        "interval": "1m",
        "input_series": [{"series": 'x{instance="a"}', "values": samples}],
        "promql_expr_test": [{"expr": f"sum by (instance) ({queries().grown('x', '10m')})", "eval_time": "30m", "exp_samples": sample}],
    }
    path = tmp_path / "test.yaml"
    path.write_text(json.dumps({"rule_files": [], "evaluation_interval": "1m", "tests": [test]}))
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
