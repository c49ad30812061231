"""What the boards ask of Jaeger, asked as Grafana asks it, of a real Jaeger that has a slow, a degraded and a failed load."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from boards import Query, asked, filled, variables

from backends.programs import Jaeger, badger
from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.util.types import AnyValue

SERVICE = "boards"


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Jaeger, str]]:
    exporters = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter", reason="the OTLP exporter is not installed")
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.trace import StatusCode, format_trace_id

    folder = tmp_path_factory.mktemp("jaeger")
    with Jaeger(folder, backend=badger(folder)) as started:  # of its stores the one in memory does not know error=true
        provider = TracerProvider(resource=Resource({"service.name": SERVICE}))
        provider.add_span_processor(SimpleSpanProcessor(exporters.OTLPSpanExporter(f"http://127.0.0.1:{started.http}/v1/traces")))
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


def found(query: Query, jaeger: Jaeger, trace_id: str) -> list[dict[str, Any]]:
    """The traces that Grafana's source gets: by id, or by the parameters it makes of a search."""
    values = {"traceId": trace_id, "jaeger_service": SERVICE, "shortest": "1s"}
    target = {key: filled(value, values) if isinstance(value, str) and key != "refId" else value for key, value in query.target.items()}
    if "queryType" not in target:
        answer = jaeger.ask(f"/api/traces/{target['query']}")
    else:
        wanted = {key: target[key] for key in ("service", "operation", "limit", "minDuration") if key in target}
        tags = dict(pair.split("=") for pair in target.get("tags", "").split())  # Grafana makes JSON of key=value
        now = int(time.time() * 1e6)
        answer = jaeger.ask("/api/traces", **wanted, start=now - 3600 * 10**6, end=now, **({"tags": json.dumps(tags)} if tags else {}))
    return list(answer["data"])


@pytest.mark.parametrize("query", asked("jaeger"), ids=str)
def test_a_query_of_jaeger_finds_the_load(query: Query, jaeger: tuple[Jaeger, str]) -> None:
    assert variables(json.dumps(query.target)) <= {"traceId", "jaeger_service", "shortest", "jaeger"}
    [trace] = found(query, *jaeger)
    assert {span["operationName"] for span in trace["spans"]} == {"load model", "to_device"}
