"""A real Prometheus that knows a small fleet: two nodes, a fast and a degraded one, loads that succeed and loads that fail."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import fleet
import pytest
from boards import ROOT
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import StatusCode, format_trace_id
from prometheus3 import Prometheus3

from backends.process import free_ports
from backends.programs import Collector, Jaeger, badger
from backends.stores import Prometheus
from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.util.types import AnyValue

GB = 10**9
GATEWAY: dict[str, Any] = {
    "receivers": {"otlp": {}},
    "processors": {"memory_limiter": {"check_interval": "1s", "limit_mib": 400}},
    "extensions": {"health_check": {}},
    "service": {"extensions": ["health_check"]},
}
SCRAPE = ROOT.parent / "collector" / "storage" / "scrape.yaml"
"""The part of the shipped Collector configuration that offers programs' metrics to a Prometheus."""


@pytest.fixture(scope="module", params=["scraped", "collected", "pushed"])
def prometheus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Its metrics came from the processes, through a real Collector, or by OTLP as in compose.yaml: their names differ a little."""
    with ExitStack() as running:
        routes = {"scraped": fleet_scraped, "collected": fleet_collected, "pushed": fleet_pushed}
        processes = [fleet.resource("a", "n1", "1"), fleet.resource("b", "n2", "2")]
        started, fast, slow = routes[request.param](running, tmp_path_factory.mktemp(request.param), processes)
        started.await_series("loadspan_load_count_total == 0", 2)
        load(fast, slow)
        started.await_series("loadspan_load_count_total == 2", 2)
        yield started


Fleet = tuple[Prometheus, Any, Any]


def fleet_scraped(running: ExitStack, folder: Path, processes: list[dict[str, str]]) -> Fleet:
    """Start two processes and a Prometheus that scrapes them."""
    [(fast, first), (slow, second)] = [running.enter_context(fleet.scraped(process)) for process in processes]
    return running.enter_context(Prometheus(folder, [first, second])), fast, slow


def fleet_collected(running: ExitStack, folder: Path, processes: list[dict[str, str]]) -> Fleet:
    """Start two processes, a Collector that they send to, and a Prometheus that scrapes it."""
    [port] = free_ports(1)
    environment = {"PROGRAM_METRICS_PORT": str(port)}
    collector = running.enter_context(Collector(GATEWAY, folder / "collector", SCRAPE, environment=environment))
    endpoint = f"http://127.0.0.1:{collector.http}/v1/metrics"
    fast, slow = [running.enter_context(fleet.sent(process, endpoint)) for process in processes]
    return running.enter_context(Prometheus(folder / "prometheus", [f"127.0.0.1:{port}"])), fast, slow


def fleet_pushed(running: ExitStack, folder: Path, processes: list[dict[str, str]]) -> Fleet:
    """Start two processes and a Prometheus 3 that they send to."""
    started = running.enter_context(Prometheus3(folder))
    fast, slow = [running.enter_context(fleet.sent(process, started.otlp)) for process in processes]
    return started, fast, slow


def load(fast: Any, slow: Any) -> None:
    """Two loads on each node, the second of which fails."""
    link = {names.DEVICE_INDEX: 0, names.LINK_BANDWIDTH: 31.5e9, names.LINK_DEGRADED: False}
    fast.load("base", 12.0, 20 * GB, "nvme", **{names.RANK: 0, names.CACHE_RESIDENCY: 1.0, **link})
    fast.load("base", 1.0, GB, "nvme", "OSError")
    narrow = {names.LINK_BANDWIDTH: 7.9e9, names.LINK_DEGRADED: True, names.FINDINGS: ("link-degraded", "cache-cold")}
    slow.load("base", 48.0, 20 * GB, "network", **{names.RANK: 1, names.CACHE_RESIDENCY: 0.0, **link, **narrow})
    slow.load("base", 2.0, GB, "network", "OSError")


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Jaeger, str]]:
    """A real Jaeger with one load, slow, degraded and failed, and its trace id."""
    folder = tmp_path_factory.mktemp("jaeger")
    with Jaeger(folder, backend=badger(folder)) as started:  # of its stores the one in memory does not know error=true
        provider = TracerProvider(resource=Resource({"service.name": "boards"}))
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"http://127.0.0.1:{started.http}/v1/traces")))
        tracer = provider.get_tracer(names.SCOPE)
        with tracer.start_as_current_span(names.LOAD_SPAN) as load:
            far: dict[str, AnyValue] = {names.STAGE: names.TO_DEVICE, names.LINK_DEGRADED: True, names.NUMA_RELATION: "remote"}
            with tracer.start_as_current_span(names.TO_DEVICE, attributes=far):
                time.sleep(1.1)
            load.set_attribute(names.LINK_DEGRADED, value=True)
            load.set_attribute(names.NUMA_RELATION, "remote")
            load.set_status(StatusCode.ERROR, "it failed")
        provider.shutdown()
        trace_id = format_trace_id(load.get_span_context().trace_id)
        started.await_trace(trace_id, 2)
        yield started, trace_id
