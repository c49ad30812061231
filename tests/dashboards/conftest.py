"""A real Prometheus that knows a small fleet: two nodes, a fast and a degraded one, loads that succeed and loads that fail."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from boards import ROOT

from backends.process import free_ports
from backends.programs import Collector
from backends.stores import Prometheus
from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Iterator

GB = 10**9
GATEWAY: dict[str, Any] = {
    "receivers": {"otlp": {}},
    "processors": {"memory_limiter": {"check_interval": "1s", "limit_mib": 400}},
    "extensions": {"health_check": {}},
    "service": {"extensions": ["health_check"]},
}
SCRAPE = ROOT.parent / "collector" / "storage" / "scrape.yaml"
"""The part of the shipped Collector configuration that offers programs' metrics to a Prometheus."""


@pytest.fixture(scope="session", params=["scraped", "collected"])
def prometheus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Its metrics came from the processes themselves, or through a real Collector: their names differ a little."""
    pytest.importorskip("opentelemetry.exporter.prometheus", reason="opentelemetry-exporter-prometheus is not installed")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="opentelemetry-exporter-otlp is not installed")
    import fleet

    processes = fleet.resource("a", "n1", "1"), fleet.resource("b", "n2", "2")
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as running:
        if request.param == "scraped":
            served = [running.enter_context(fleet.scraped(process)) for process in processes]
            (fast, slow), targets = [loading for loading, _ in served], [target for _, target in served]
        else:
            [port] = free_ports(1)
            environment = {"PROGRAM_METRICS_PORT": str(port)}
            collector = running.enter_context(Collector(GATEWAY, folder / "collector", SCRAPE, environment=environment))
            fast, slow = [running.enter_context(fleet.sent(process, collector.http)) for process in processes]
            targets = [f"127.0.0.1:{port}"]
        started = running.enter_context(Prometheus(folder / "prometheus", targets))
        started.await_series("loadspan_load_count_total == 0", 2)
        load(fast, slow)
        started.await_series("loadspan_load_count_total == 2", 2)
        yield started


def load(fast: Any, slow: Any) -> None:
    """Two loads on each node, the second of which fails."""
    link = {names.DEVICE_INDEX: 0, names.LINK_BANDWIDTH: 31.5e9, names.LINK_DEGRADED: False}
    fast.load("base", 12.0, 20 * GB, "nvme", **{names.RANK: 0, names.CACHE_RESIDENCY: 1.0, **link})
    fast.load("base", 1.0, GB, "nvme", "OSError")
    narrow = {names.LINK_BANDWIDTH: 7.9e9, names.LINK_DEGRADED: True}
    slow.load("base", 48.0, 20 * GB, "network", **{names.RANK: 1, names.CACHE_RESIDENCY: 0.0, **link, **narrow})
    slow.load("base", 2.0, GB, "network", "OSError")
