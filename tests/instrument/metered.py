"""What a reader of metrics collects of loads, and processes that tell of theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

import loadspan
from loadspan import metric_names, names
from loadspan.instrument.live import recorder

if TYPE_CHECKING:
    from pathlib import Path

    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

SIDE, COUNT = 500, 5
SIZE = SIDE * SIDE * 4 * COUNT


class Measured:
    """What a reader collects."""

    def __init__(self, reader: InMemoryMetricReader, spans: InMemorySpanExporter) -> None:
        self._reader = reader
        self.spans = spans

    def points(self, metric: metric_names.Metric) -> list[Any]:
        """Data points of *metric* so far."""
        recorder.metrics.deliver()
        data = self._reader.get_metrics_data()
        found = [] if data is None else [item for part in data.resource_metrics for scope in part.scope_metrics for item in scope.metrics]
        return [point for item in found if item.name == metric.name for point in item.data.data_points]

    def by_stage(self, metric: metric_names.Metric) -> dict[str, float]:
        """Sums of a histogram by stage."""
        found: dict[str, float] = {}
        for point in self.points(metric):
            stage = point.attributes[names.STAGE]
            found[stage] = found.get(stage, 0.0) + point.sum
        return found

    def value(self, metric: metric_names.Metric) -> float:
        """Value of the one point of a counter or gauge."""
        (point,) = self.points(metric)
        return float(point.value)


def module() -> torch.nn.Module:
    made = torch.nn.Module()
    for number in range(COUNT):
        made.register_parameter(f"p{number}", torch.nn.Parameter(torch.empty(SIDE, SIDE), requires_grad=False))
    return made


def load(path: Path, name: str | None = "llama") -> None:
    """A load of three stages."""
    with loadspan.load(name):
        made = module()
        made.load_state_dict(load_file(path))
        made.half()


CHILD = """
import json, os, sys
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import loadspan
from loadspan import LoadspanInstrumentor

reader, spans, resource = InMemoryMetricReader(), InMemorySpanExporter(), Resource({"service.instance.id": "one"})
tracer = TracerProvider(resource=resource)
tracer.add_span_processor(SimpleSpanProcessor(spans))
LoadspanInstrumentor().instrument(tracer_provider=tracer, meter_provider=MeterProvider([reader], resource=resource))

def points():
    from loadspan.instrument.live import recorder
    recorder.close_all()
    found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    read = lambda point: dict(point.attributes) | {"value": getattr(point, "value", None)}
    return {item.name: [read(point) for point in item.data.data_points] for item in found}

def told():
    (root,) = [span for span in spans.get_finished_spans() if span.name == "load model"]
    parent = root.parent and {"trace": f"{root.parent.trace_id:032x}", "span": f"{root.parent.span_id:016x}"}
    return {"metrics": points(), "attributes": dict(root.attributes), "parent": parent, "pid": os.getpid()}
"""


def child(code: str, environment: dict[str, str]) -> Any:
    """What a process that instruments itself and runs *code* prints as JSON."""
    base = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LOADSPAN_"))}
    done = subprocess.run(
        [sys.executable, "-c", CHILD + code], env=base | environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
