"""Instrumented with a meter provider of the SDK, and weights to load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from safetensors.torch import save_file

from loadspan import LoadspanInstrumentor
from loadspan.instrument.live import recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

from metered import COUNT, SIDE, Measured


@pytest.fixture
def measuring() -> Iterator[Callable[..., Measured]]:
    """`measuring(tracer=..., resource=...)` instruments with a meter provider of the SDK."""
    providers: list[Any] = []

    def start(tracer: Any = None, resource: Resource | None = None) -> Measured:
        spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
        resource = Resource({"service.instance.id": "a process"}) if resource is None else resource
        if tracer is None:
            tracer = TracerProvider(resource=resource)
            tracer.add_span_processor(SimpleSpanProcessor(spans))
            providers.append(tracer)
        meter = MeterProvider([reader], resource=resource)
        providers.append(meter)
        LoadspanInstrumentor().instrument(tracer_provider=tracer, meter_provider=meter)
        return Measured(reader, spans)

    yield start
    LoadspanInstrumentor().uninstrument()
    recorder.abandon()
    for provider in providers:
        provider.shutdown()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Five tensors in a file."""
    path = tmp_path / "weights.safetensors"
    save_file({f"p{number}": torch.full((SIDE, SIDE), float(number)) for number in range(COUNT)}, path)
    return path
