"""A process loads its model once, with loadspan and the real SDK: the boards count that load, where `increase` sees nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from boards import ROOT

from backends.process import free_ports
from backends.stores import Prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = """
import sys
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import start_http_server
import loadspan

port, path = sys.argv[1:]
reader = PrometheusMetricReader(resource_attribute_filter=lambda name: name.startswith("service."))
provider = MeterProvider([reader], Resource.create({"service.name": "once"}))
loadspan.LoadspanInstrumentor().instrument(meter_provider=provider)
for line in sys.stdin:
    if line == "serve\\n":
        start_http_server(int(port), "127.0.0.1")
    else:
        with loadspan.load("base"), loadspan.stage("read", path=path) as stage, open(path, "rb", 0) as file:
            stage.add(len(file.read()))
"""


def queries() -> Any:
    """The generator's own PromQL; it imports nothing, so neither SDK nor package is needed."""
    spec = importlib.util.spec_from_file_location("loadspan_board_queries", ROOT / "src" / "queries.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Once:
    """A process that does what it is told, line by line."""

    def __init__(self, port: int, path: Path) -> None:
        self.child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(port), str(path)], stdin=subprocess.PIPE, text=True)

    def tell(self, what: str) -> None:
        """Say `serve` or `load`."""
        assert self.child.stdin is not None
        self.child.stdin.write(f"{what}\n")
        self.child.stdin.flush()

    def end(self) -> int:
        """Let it end in order."""
        assert self.child.stdin is not None
        self.child.stdin.close()
        return self.child.wait(30)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "base.bin"
    path.write_bytes(b"w" * (8 << 20))
    return path


@pytest.fixture
def started(tmp_path: Path, weights: Path) -> Iterator[tuple[Prometheus, list[Once]]]:
    ports = free_ports(2)
    children = [Once(port, weights) for port in ports]
    try:
        with Prometheus(tmp_path / "prometheus", [f"127.0.0.1:{port}" for port in ports]) as prometheus:
            yield prometheus, children
    finally:
        for each in children:
            each.child.kill()
            each.end()


def number(prometheus: Prometheus, expression: str) -> float:
    found = prometheus.query(expression)
    return float(found[0]["value"][1]) if found else float("nan")


def test_a_first_load_is_counted_whether_or_not_the_process_was_scraped_before(started: tuple[Prometheus, list[Once]]) -> None:
    prometheus, (seen_before, seen_after) = started
    promql = queries()
    seen_before.tell("serve")
    prometheus.await_series("loadspan_load_count_total == 0")
    seen_before.tell("load")
    prometheus.await_series("loadspan_load_duration_seconds_count == 1")
    seen_after.tell("load")
    seen_after.tell("serve")
    prometheus.await_series("loadspan_load_duration_seconds_count == 1", 2)
    time.sleep(2)  # several scrapes, as `increase` needs

    of_once = 'service_name="once"'
    for counter in (promql.LOADS, f"{promql.LOAD}_count"):
        assert number(prometheus, promql.total(promql.select(counter, of_once), window="5m")) == 2
    increase = f"sum(increase({promql.LOAD}_count[5m]))"
    assert number(prometheus, increase) == 0
    assert number(prometheus, promql.mean(promql.LOAD, (of_once,), window="5m")) > 0
    stages = prometheus.query(promql.total(f"{promql.STAGE}_sum", "loadspan_stage", "5m"))
    total = number(prometheus, promql.total(f"{promql.LOAD}_sum", window="5m"))
    assert sum(float(stage["value"][1]) for stage in stages) == pytest.approx(total)
    assert number(prometheus, promql.total(promql.LOADED, window="5m")) == 16 << 20

    # A process that has ended keeps the load it had in the window; the other's moves out of a window that began after it.
    assert seen_before.end() == 0
    prometheus.await_series("up == 0")
    time.sleep(1)
    assert number(prometheus, promql.total(f"{promql.LOAD}_count", window="5m")) == 2
    assert number(prometheus, promql.total(f"{promql.LOAD}_count", window="1s")) == 0
