"""Spans as the real SDK sends them, and what of them has to come back."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

Facts = tuple[Any, ...]

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter


def exporter(protocol: str, port: int) -> SpanExporter:
    """The SDK's own exporter to a port of loopback: `grpc` or `http`."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(endpoint=f"http://127.0.0.1:{port}", insecure=True)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http(endpoint=f"http://127.0.0.1:{port}/v1/traces")


LARGE = 2**53 + 1
"""An int64 that a double cannot hold: where JSON numbers are used in between it comes back changed."""


@contextmanager
def provider(protocol: str, port: int, **resource: str) -> Iterator[TracerProvider]:
    """A provider whose spans are all sent when the block ends; underscores in names of the resource are dots."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    about = Resource({name.replace("_", "."): value for name, value in resource.items()})
    made = TracerProvider(resource=about, shutdown_on_exit=False)
    # The queue holds all: spans that a full one drops would be a fault of the test.
    made.add_span_processor(BatchSpanProcessor(exporter(protocol, port), max_queue_size=65536))
    try:
        yield made
        assert made.force_flush(60_000), "not all was sent"
    finally:
        made.shutdown()


def load(of: TracerProvider, model: str = "tiny") -> list[ReadableSpan]:
    """A load of half a second with two stages one after the other, its times made up; the load first."""
    start = time.time_ns() // 1000 * 1000  # OpenSearch keeps no more
    from opentelemetry import trace

    tracer = of.get_tracer("loadspan")
    root: Any = tracer.start_span("load model", start_time=start, attributes={"loadspan.model.name": model})
    inside = trace.set_span_in_context(root)
    spans = [root]
    for name, begin, end in (("read", 10, 310), ("to_device", 320, 480)):
        attributes: dict[str, Any] = {
            "loadspan.stage": name,
            "loadspan.size": LARGE,
            "loadspan.throughput": 1.5e9,
            "loadspan.deferred": False,
        }
        stage: Any = tracer.start_span(name, inside, attributes=attributes, start_time=start + begin * 1_000_000)
        stage.set_attribute("loadspan.slowest", ("a.safetensors", "b.safetensors"))
        stage.end(start + end * 1_000_000)
        spans.append(stage)
    root.end(start + 500 * 1_000_000)
    return spans


def hexadecimal(span: ReadableSpan) -> tuple[str, str]:
    """Ids of a span's trace and of the span, as APIs print them."""
    assert span.context is not None
    return format(span.context.trace_id, "032x"), format(span.context.span_id, "016x")


def sent(span: ReadableSpan) -> Facts:
    """What has to come back of a span: name, id of its parent, times, attributes."""
    parent = format(span.parent.span_id, "016x") if span.parent else ""
    attributes = {key: list(value) if isinstance(value, tuple) else value for key, value in (span.attributes or {}).items()}
    return span.name, parent, span.start_time or 0, span.end_time or 0, attributes


def in_microseconds(facts: Facts) -> Facts:
    """As OpenSearch keeps it: start and duration are cut to microseconds."""
    name, parent, start, end, attributes = facts
    return name, parent, start // 1000 * 1000, (start // 1000 + (end - start) // 1000) * 1000, attributes


def _value(given: Mapping[str, Any]) -> Any:
    if "intValue" in given:
        return int(given["intValue"])
    if "arrayValue" in given:
        return [_value(each) for each in given["arrayValue"].get("values", ())]
    return next(iter(given.values()))


def received(span: Mapping[str, Any]) -> Facts:
    """The same of a span in OTLP JSON."""
    attributes = {each["key"]: _value(each["value"]) for each in span.get("attributes", ())}
    return span["name"], span.get("parentSpanId", ""), int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"]), attributes


def from_disk(span: Mapping[str, Any]) -> Facts:
    """As `received`, from Badger or OpenSearch: a list is there as its text in JSON."""
    *rest, attributes = received(span)
    lists = {key: json.loads(value) for key, value in attributes.items() if isinstance(value, str) and value.startswith("[")}
    return (*rest, attributes | lists)
