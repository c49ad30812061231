"""What the boards ask of Jaeger, asked as Grafana asks it, of a real Jaeger that has a slow, a degraded and a failed load."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from boards import Query, asked, filled, variables

if TYPE_CHECKING:
    from backends.programs import Jaeger


def found(query: Query, jaeger: Jaeger, trace_id: str) -> list[dict[str, Any]]:
    """The traces that Grafana's source gets: by id, or by the parameters it makes of a search."""
    values = {"traceId": trace_id, "jaeger_service": "boards", "shortest": "1s"}
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
