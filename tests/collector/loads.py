"""
A program that loads models: python loads.py OTLP_HTTP_ENDPOINT PASSES.

It sends its traces and metrics to the endpoint, and prints what its own metrics say: the sums that the Collector has to find in the spans.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import loadspan


def load(model: str, size: int) -> None:
    """Load a model in two stages, one of them in two pieces."""
    with loadspan.load(model, loader="test"):
        for piece in (size // 4, size - size // 4):
            with loadspan.stage("read") as stage:
                time.sleep(0.02)
                stage.add(piece)
        with loadspan.stage("decrypt") as stage:
            time.sleep(0.01)
            stage.add(size)
        time.sleep(0.005)


def fail() -> None:
    """Load one that cannot be loaded."""
    with contextlib.suppress(ValueError), loadspan.load("broken", loader="test"), loadspan.stage("read") as stage:
        time.sleep(0.01)
        stage.add(1 << 20)
        raise ValueError("broken")


def nest() -> None:
    """Load one that loads another."""
    with loadspan.load("pipeline", loader="test"):
        load("part", 5 << 20)


def main(endpoint: str, passes: int) -> None:
    """Load a few times and print the metrics."""
    resource = Resource.create({"service.name": "trainer"})
    reader = InMemoryMetricReader()
    sender = PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics"))
    traces, meters = TracerProvider(resource=resource), MeterProvider([reader, sender], resource=resource)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    loadspan.LoadspanInstrumentor().instrument(tracer_provider=traces, meter_provider=meters)
    for _ in range(passes):
        load("base", 20 << 20)
        load("other", 3 << 20)
        fail()
        nest()
        traces.force_flush()
    loadspan.LoadspanInstrumentor().uninstrument()
    traces.shutdown()
    found = []
    data = reader.get_metrics_data()
    for metric in (m for part in data.resource_metrics for scope in part.scope_metrics for m in scope.metrics) if data else ():
        for point in metric.data.data_points:
            value = point.sum if hasattr(point, "sum") else point.value
            found.append([metric.name, dict(point.attributes), value, getattr(point, "count", 1)])
    json.dump(found, sys.stdout)
    meters.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
