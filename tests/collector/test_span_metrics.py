"""What the gateway makes of spans is what the program itself would have measured."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from shipped import CONFIGURATIONS, demo, send, sent, series_of, traces_of

from backends.process import free_ports, get, until
from loadspan import findings, metric_names, names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shipped import Machine

PASSES = 2
LOADS = PASSES * 4
"""Of the program in `loads.py`; the one inside another is not counted."""


def sums(found: Iterable[tuple[str, dict[str, Any], float]], name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Values of a metric, added up by labels; "" where a label is absent."""
    total: dict[tuple[str, ...], float] = defaultdict(float)
    for metric, attributes, value in found:
        if metric == name:
            total[tuple(str(attributes.get(label, "")) for label in labels)] += value
    return dict(total)


def own(here: Machine, port: int) -> list[Any]:
    """Run the program; what it measured itself."""
    program = Path(__file__).with_name("loads.py")
    command = [sys.executable, program, f"http://127.0.0.1:{port}", str(PASSES)]
    done = subprocess.run(command, cwd=here.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def wait_for_loads(here: Machine, count: int) -> list[tuple[str, dict[str, str], float]]:
    """Series of the gateway once it has counted so many loads."""
    until(lambda: sum(sums(here.series(), "loadspan_span_load_count_total").values()) >= count, f"{count} loads in the series", 60, 0.3)
    return here.series()


def test_a_program_that_sends_traces_alone_gives_the_same_sums(here: Machine) -> None:
    gateway = here.gateway(here.jaeger())
    measured = own(here, gateway.http)
    said = [(name, attributes, value) for name, attributes, value, _ in measured]
    counted = [(name, attributes, count) for name, attributes, _, count in measured]
    series = wait_for_loads(here, LOADS)

    loads = sums(said, "loadspan.load.count")
    assert loads == {(): LOADS}  # the one inside another is part of it
    assert sums(series, "loadspan_span_load_count_total") == loads
    assert sums(series, "loadspan_span_load_size_bytes_total") == sums(said, "loadspan.load.size")

    by_load = (names.MODEL_NAME, names.LOADER, names.ERROR_TYPE)
    labels = tuple(name.replace(".", "_") for name in by_load)
    assert sums(series, "loadspan_span_load_duration_seconds_sum", *labels) == pytest.approx(sums(said, "loadspan.load.duration", *by_load))
    assert sums(series, "loadspan_span_load_duration_seconds_count", *labels) == sums(counted, "loadspan.load.duration", *by_load)

    moved = {key: size for key, size in sums(said, "loadspan.stage.io", names.STAGE).items() if size}
    assert moved
    assert sums(series, "loadspan_span_stage_io_bytes_total", "loadspan_stage") == moved
    assert sums(series, "loadspan_span_storage_read_bytes_total") == sums(said, "loadspan.storage.read")

    seconds = sums(said, "loadspan.stage.duration", names.STAGE)
    assert set(seconds) == {("read",), ("decrypt",), ("loadspan",), ("other",)}
    assert sums(series, "loadspan_span_stage_duration_seconds_sum", "loadspan_stage") == pytest.approx(seconds)
    count = sums(counted, "loadspan.stage.duration", names.STAGE)
    assert sums(series, "loadspan_span_stage_duration_seconds_count", "loadspan_stage") == count
    assert sums(series, "loadspan_span_stage_size_bytes_sum", "loadspan_stage") == sums(said, "loadspan.stage.size", names.STAGE)
    assert sum(seconds.values()) == pytest.approx(sum(sums(said, "loadspan.load.duration").values()))

    models = sums(series, "loadspan_span_load_last_duration_seconds", "loadspan_model_name")
    assert models == pytest.approx(sums(said, "loadspan.load.last_duration", names.MODEL_NAME))
    assert ("broken",) not in models  # it gave no duration of a load that succeeded


def test_a_programs_own_metrics_come_through_agent_and_gateway_with_the_machine_they_are_of(here: Machine) -> None:
    (port,) = free_ports(1)
    jaeger = here.jaeger()
    gateway = here.gateway(jaeger, CONFIGURATIONS / "storage" / "scrape.yaml", PROGRAM_METRICS_PORT=str(port))
    measured = own(here, here.agent(gateway.grpc).http)
    said = [(name, attributes, value) for name, attributes, value, _ in measured]

    def series() -> list[tuple[str, dict[str, str], float]]:
        return series_of(get(f"http://127.0.0.1:{port}/metrics").decode())

    until(lambda: sum(sums(series(), "loadspan_load_count_total").values()) >= LOADS, "the program's own metrics", 60, 0.3)
    came = sums(series(), "loadspan_stage_duration_seconds_sum", "loadspan_stage")
    assert came == pytest.approx(sums(said, "loadspan.stage.duration", names.STAGE))
    machines = {(labels["service_name"], labels["host_name"]) for name, labels, _ in series() if name.startswith("loadspan_")}
    assert machines == {("trainer", platform.node())}


def test_metrics_of_spans_may_have_the_names_of_the_programs_own(here: Machine) -> None:
    gateway = here.gateway(here.jaeger(), CONFIGURATIONS / "traces-only.yaml", SERIES_BY="host.name")
    agent = here.agent(gateway.grpc)
    for request in demo():
        send(agent.http, request)
    until(lambda: sum(sums(here.series(), "loadspan_load_count_total").values()) >= 4, "loads in the series", 60, 0.3)
    made = {name for name, _, _ in here.series() if name.startswith("loadspan_")}
    assert {labels.get("host_name") for name, labels, _ in here.series() if name in made} == {platform.node()}
    suffixes = ("_bucket", "_sum", "_count")
    histograms = ("load_duration_seconds", "stage_duration_seconds", "stage_size_bytes", "stage_throughput_bytes_per_second")
    single = {"load_count_total", "load_size_bytes_total", "load_last_duration_seconds", "cache_residency_ratio"}
    single |= {"stage_io_bytes_total", "storage_read_bytes_total"}
    assert made == {f"loadspan_{name}{suffix}" for name in histograms for suffix in suffixes} | {f"loadspan_{name}" for name in single}


def test_series_go_on_between_loads_and_after_the_gateway_was_started_again(here: Machine) -> None:
    gateway = here.gateway(here.jaeger())
    for request in demo(1):
        send(gateway.http, request)
    before = wait_for_loads(here, 4)
    time.sleep(2)
    for request in demo(2):
        send(gateway.http, request)
    after = wait_for_loads(here, 8)
    labels = ("loadspan_stage", "service_name")
    name = "loadspan_span_stage_size_bytes_sum"
    once, twice = sums(before, name, *labels), sums(after, name, *labels)
    assert twice == {key: 2 * value for key, value in once.items()}
    identity = {labels["signal_to_metrics_service_instance_id"] for metric, labels, _ in after if metric == name}
    assert identity == {"gateway"}  # its own name, which it keeps


def test_jaegers_monitor_tab_shows_what_the_gateway_measures(here: Machine) -> None:
    from backends.stores import Prometheus  # here: the store is another program that may be missing

    prometheus = here.started(Prometheus(here.folder / "prometheus", [f"127.0.0.1:{here.span_metrics}"]))
    jaeger = here.jaeger(PROMETHEUS_URL=prometheus.url)
    gateway = here.gateway(jaeger, {"connectors": {"span_metrics": {"metrics_flush_interval": "1s"}}})
    end = time.monotonic() + 15
    number = 0
    while time.monotonic() < end:  # a rate needs points before and after
        number += 1
        for request in demo(number):
            send(gateway.http, request)
        time.sleep(1)
    asked = {"service": "serve", "spanKind": "internal", "groupByOperation": "true", "lookback": 600_000, "step": 5000, "ratePer": 600_000}

    def operations(kind: str, **more: object) -> set[str]:
        query = urllib.parse.urlencode(asked | more)
        found = json.loads(get(f"{jaeger.url}/api/metrics/{kind}?{query}"))
        return {label["value"] for metric in found["metrics"] for label in metric["labels"] if label["name"] == "operation"}

    until(lambda: {"load model", "read", "decrypt"} <= operations("calls"), "calls by operation", 60, 1)
    until(lambda: {"load model", "read", "decrypt"} <= operations("latencies", quantile=0.95), "latencies by operation", 60, 1)


def connectors() -> dict[str, list[dict[str, Any]]]:
    gateway = yaml.safe_load((CONFIGURATIONS / "gateway.yaml").read_text())
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name in ("signal_to_metrics/loads", "signal_to_metrics/stages"):
        for metric in gateway["connectors"][name]["spans"]:
            found[metric["name"]].append(metric)
    return dict(found)


def test_every_metric_of_the_program_is_made_of_spans_but_for_what_spans_cannot_tell() -> None:
    from_spans = {name.replace("loadspan.span.", "loadspan.") for name in connectors()}
    assert {metric.name for metric in metric_names.METRICS} - from_spans == {metric_names.LOAD_ACTIVE.name}  # a load that runs has no span
    assert from_spans <= {metric.name for metric in metric_names.METRICS}


@pytest.mark.parametrize("metric", metric_names.METRICS, ids=lambda metric: metric.name)
def test_units_buckets_and_labels_are_those_of_the_program(metric: metric_names.Metric) -> None:
    for made in connectors().get(metric.name.replace("loadspan.", "loadspan.span.", 1), ()):
        assert made["unit"] == metric.unit
        assert {attribute["key"] for attribute in made["attributes"]} <= set(metric.attributes)
        assert {"counter": "sum", "gauge": "gauge", "histogram": "histogram"}[metric.instrument] in made
        assert [float(bound) for bound in made.get("histogram", {}).get("buckets", ())] == list(metric.bounds)


def test_every_finding_is_counted() -> None:
    made = connectors()["loadspan.span.finding.count"]
    assert {metric["attributes"][0]["default_value"] for metric in made} == {rule.id for rule in findings.RULES}
    for metric in made:
        assert metric["conditions"] == [f'span.attributes["{names.finding(metric["attributes"][0]["default_value"])}"] != nil']


def test_every_stage_has_its_exclusive_seconds() -> None:
    made = connectors()["loadspan.span.stage.duration"]
    stages = [metric["attributes"][0]["default_value"] for metric in made]
    assert stages == list(names.PARTS)
    for metric, stage in zip(made, stages, strict=True):
        assert f'"{names.partition(stage)}"' in metric["histogram"]["value"]
        assert metric["conditions"] == [f'span.attributes["{names.partition(stage)}"] != nil']


def test_a_bucket_of_seconds_leads_to_a_trace(here: Machine) -> None:
    gateway = here.gateway(here.jaeger())
    for request in demo():
        send(gateway.http, request)
    open_metrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
    page = urllib.request.Request(f"http://127.0.0.1:{here.span_metrics}/metrics", headers=open_metrics)

    def linked() -> set[str]:
        with urllib.request.urlopen(page, timeout=10) as answer:  # noqa: S310 -- loopback
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("traces_span_metrics_duration_seconds_bucket")]
        return {found[1] for line in lines if 'span_name="load model"' in line and (found := re.search(r'trace_id="([0-9a-f]+)"', line))}

    assert until(linked, "exemplars of loads", 60, 0.5) <= set(traces_of(sent(demo())))
