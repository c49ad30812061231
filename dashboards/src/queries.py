"""
The PromQL of the boards: how much a counter grew, means and quantiles of histograms, for processes that load once.

A process loads its model once, so the series of that load is born at its final value: `rate` and `increase` compare samples of one series
with each other and see nothing. Everything here is built on `grown`, which takes a series that was not there before at its full value.
Only strings are made: this module imports nothing, so that a test or a script can use it alone.
"""

from __future__ import annotations

LOOK_BACK = "1h"
"""How old the value at the start of a window may be: an outage of scraping is not taken for new loads."""

RANGE = "$__range"
INTERVAL = "$__interval"
WINDOW = "$window"
TWO_SAMPLES = "3m"
"""In which there are two samples, however seldom metrics are exported: the SDK's own interval is a minute."""

LOADS = "loadspan_load_count_total"
ACTIVE = "loadspan_load_active"
LOADED = "loadspan_load_size_bytes_total"
LOAD = "loadspan_load_duration_seconds"
STAGE_IO = "loadspan_stage_io_bytes_total"
STORAGE_READ = "loadspan_storage_read_bytes_total"
FINDINGS = "loadspan_finding_count_total"
STAGE = "loadspan_stage_duration_seconds"
STAGE_SIZE = "loadspan_stage_size_bytes"
STAGE_THROUGHPUT = "loadspan_stage_throughput_bytes_per_second"
LAST = "loadspan_load_last_duration_seconds"
BANDWIDTH = "loadspan_link_bandwidth_bytes_per_second"
# Unit 1: the Collector and the OTLP receiver of Prometheus write it as a suffix, the Prometheus exporter of the Python SDK does not.
DEGRADED = "loadspan_link_degraded(_ratio)?"
RESIDENCY = "loadspan_cache_residency(_ratio)?"


def select(name: str, *conditions: str) -> str:
    """Select the series *name*, a pattern where it has several spellings, that meet all *conditions*."""
    if name.endswith("?"):
        return "{" + ",".join((f'__name__=~"{name}"', *conditions)) + "}"
    return name + "{" + ",".join(conditions) + "}" if conditions else name


def grown(series: str, window: str = RANGE) -> str:
    """
    Tell by how much each counter of *series* grew during *window*, its first value included.

    Last value less the one at the start of the window. Where there was none then, the series is new and its last value is the growth;
    where it is less than then, the process began again under the same name, and what it has counted since is the growth.
    """
    last = f"last_over_time({series}[{window}])"
    return f"(({last} - last_over_time({series}[{LOOK_BACK}] offset {window})) >= 0 or {last})"


def total(series: str, by: str = "", window: str = RANGE) -> str:
    """Sum the growth of *series* over everything but the labels *by*."""
    return f"sum by ({by}) ({grown(series, window)})" if by else f"sum({grown(series, window)})"


def speed(series: str) -> str:
    """
    Tell how fast counters that grow during a load did so up to each of their samples: as it was, however far apart these are.

    Only where there is a sample: of a process that has ended no speed is told. Not for counters that are told when a load has ended.
    """
    return f"irate({series}[{TWO_SAMPLES}]) and {series} > 0 and timestamp({series}) > time() - $__interval_ms / 1000"


def quantile(share: float, histogram: str, conditions: tuple[str, ...], by: str = "", window: str = RANGE) -> str:
    """Estimate the *share* quantile of what *histogram* counted during *window*."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {total(select(f'{histogram}_bucket', *conditions), labels, window)})"


def ratio(upper: str, lower: str) -> str:
    """Divide, where there is something to divide by: a quotient without data is absent."""
    return f"{upper} / ({lower} > 0)"


def per_load(upper: str, loads: str) -> str:
    """Divide what has labels by the number of loads, which has none."""
    return f"{upper} / on () group_left () ({loads} > 0)"


def mean(histogram: str, conditions: tuple[str, ...], by: str = "", window: str = RANGE) -> str:
    """Tell the mean of what *histogram* counted during *window*."""
    return ratio(total(select(f"{histogram}_sum", *conditions), by, window), total(select(f"{histogram}_count", *conditions), by, window))


def latest(series: str, window: str = RANGE) -> str:
    """Tell the last value of a gauge during *window*, of processes that have ended since as well."""
    return f"last_over_time({series}[{window}])"


def by_node(expression: str) -> str:
    """Call the label that tells machines apart `node`, whichever of them the board's variable chooses."""
    return f'label_replace({expression}, "node", "$1", "$node_label", "(.*)")'
