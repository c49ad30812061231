"""The scaled-out Jaeger: what an ingester stored in OpenSearch, the query finds and gives back."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from shipped import CONFIGURATIONS, arrived, demo, just_now, send, sent, traces_of

from backends.process import until
from backends.programs import BEGUN, Jaeger
from backends.stores import OpenSearch

if TYPE_CHECKING:
    from shipped import Machine

FOLDER = CONFIGURATIONS / "jaeger"
HOUR = 3_600_000_000


class Ingester(Jaeger):
    """It has no pages to answer with."""

    def ready(self) -> bool:
        """It says so."""
        return BEGUN in self.log_since_start


def in_microseconds(start: int, end: int) -> dict[str, int]:
    """What OpenSearch keeps: when it began, and how long it took."""
    begun = start // 1000 * 1000
    return {"start": begun, "end": begun + (end - start) // 1000 * 1000}


def test_the_query_gives_back_what_the_ingester_stored(here: Machine) -> None:
    store = here.started(OpenSearch(here.folder / "opensearch"))
    environment = {"OPENSEARCH_URLS": f"[{store.url}]", "OPENSEARCH_REPLICAS": "0", "OPENSEARCH_SHARDS": "1"}
    # Kafka is in no registry that the tests build from: spans come by OTLP instead.
    instead = {
        "service": {"pipelines": {"traces": {"receivers": ["otlp"]}}},
        "extensions": {"jaeger_query": {"storage": {"traces": "main"}}},
    }
    storage, config = FOLDER / "opensearch.yaml", FOLDER / "ingester.yaml"
    ingester = here.started(Ingester(here.folder / "ingester", storage, instead, config=config, environment=environment))
    requests = just_now(demo())
    for request in requests:
        send(ingester.http, request)
    ingester.stop()  # what it had accepted is in the store
    wanted = {key: span | in_microseconds(span["start"], span["end"]) for key, span in sent(requests).items()}
    environment["JAEGER_UI_CONFIG"] = str(FOLDER / "ui-config.json")
    query = here.started(Jaeger(here.folder / "query", storage, config=FOLDER / "query.yaml", environment=environment))
    assert arrived(query, wanted) == wanted

    now = time.time_ns() // 1000
    asked = {
        "service": "serve",
        "operation": "load model",
        "start": now - HOUR,
        "end": now,
        "limit": 20,
    }
    tags = {"loadspan.model.name": r"base\+b"}  # a value that is searched for in OpenSearch is a regular expression

    def search() -> list[str]:
        found = query.ask("/api/traces", **asked, tags=json.dumps(tags))
        return sorted(trace["traceID"] for trace in found["data"])

    models = {trace: span["attributes"].get("loadspan.model.name") for (trace, _), span in wanted.items() if span["name"] == "load model"}
    expected = [trace for trace in traces_of(wanted) if models[trace] == "base+b"]
    assert expected
    assert until(search, "loads found by attribute", 30, 0.5) == expected
