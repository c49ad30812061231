"""A load of some seconds, as a real Prometheus sees it while it runs: the curve of its throughput on the board of a load."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from boards import QUERIES, TIMES, filled
from prometheus3 import Prometheus3

from backends.process import until

CHUNKS, CHUNK = 32, 1 << 20
SIZE = CHUNKS * CHUNK
READ = 'loadspan_stage_io_bytes_total{loadspan_stage="read"}'
PROGRAM = f"""
import os, sys, time
import loadspan
with open(sys.argv[1], "wb") as file:
    file.write(os.urandom({SIZE}))
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
time.sleep(2)
with loadspan.load("llama"), open(sys.argv[1], "rb") as file:
    while file.read({CHUNK}):
        time.sleep(0.3)
time.sleep(3)
"""


def started(folder: Path, endpoint: str) -> subprocess.Popen[str]:
    """A program that exports its metrics every second."""
    environment = {
        "OTEL_SERVICE_NAME": "slow",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": endpoint,
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
    }
    program = str(Path(sys.executable).with_name("opentelemetry-instrument"))
    return subprocess.Popen([program, sys.executable, "-c", PROGRAM, str(folder / "weights.enc")], env=os.environ | environment, text=True)


def value(prometheus: Prometheus3, expression: str) -> float | None:
    """The value of one series."""
    found = prometheus.query(expression)
    return float(found[0]["value"][1]) if found else None


def curve(prometheus: Prometheus3, ref: str, begun: float) -> dict[str, list[tuple[float, float]]]:
    """What the panel of the throughput shows since *begun*, a second a point, by stage."""
    [query] = [query for query in QUERIES if str(query) == f"load: Throughput by stage while it loaded {ref}"]
    values: dict[str, str] = dict(TIMES) | {"__interval_ms": "1000", "service": "slow"}
    found: list[dict[str, Any]] = prometheus.query_range(filled(query.target["expr"], values), begun, time.time(), 1)
    return {one["metric"].get("loadspan_stage", ""): [(float(at), float(value)) for at, value in one["values"]] for one in found}


def test_a_long_load_has_its_throughput_in_prometheus_while_it_runs_and_every_byte_once(tmp_path: Path) -> None:
    with Prometheus3(tmp_path / "prometheus") as prometheus:
        begun = time.time()
        program = started(tmp_path, prometheus.otlp)
        try:
            until(lambda: value(prometheus, "loadspan_load_active") == 1, "it loads", 60)
            until(lambda: (value(prometheus, READ) or 0) > SIZE / 2, "half of it was read")
            while_it_ran = curve(prometheus, "A", begun)["read"]
            assert value(prometheus, "loadspan_load_active") == 1
            assert value(prometheus, "loadspan_load_count_total") == 0
            assert program.wait(60) == 0
        finally:
            program.kill()
            program.wait()
        rates = [rate for _, rate in while_it_ran if rate > 0]
        assert len(rates) >= 3
        assert sorted(rates)[len(rates) // 2] == pytest.approx(CHUNK / 0.3, rel=0.4)
        assert value(prometheus, READ) == SIZE == value(prometheus, "loadspan_load_size_bytes_total")
        whole = curve(prometheus, "A", begun)["read"]
        assert sum(rate for _, rate in whole) == pytest.approx(SIZE, rel=0.2)  # a second each
        assert whole[-1][1] == 0  # it has ended
        stored = value(prometheus, "loadspan_storage_read_bytes_total")
        if stored:  # the file system has a block device
            assert sum(rate for _, rate in curve(prometheus, "B", begun)[""]) == pytest.approx(stored, rel=0.4)
