"""The numbers of docs/scale.md: those that the repository can count are counted, the rest is arithmetic on them."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from typing import Any

import pytest
from shipped import ROOT, demo, sent

from loadspan import metric_names

PAGE = (ROOT / "docs" / "scale.md").read_text()
SERVERS = (10, 1000, 100_000)
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def rows(section: str) -> list[list[str]]:
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in SECTIONS[section].splitlines() if line.startswith("| ")]
    return [row for row in found[1:] if not row[0].startswith("---")]


def values(section: str) -> dict[str, float]:
    """Rows by their name; one that begins with dots goes on with the row above."""
    found: dict[str, float] = {}
    above = ""
    for name, value in rows(section):
        above = name if not name.startswith("...") else above
        found[name if name == above else f"{above} {name}"] = float(value)
    return found


MEASURED, ASSUMED = values("Measured"), values("Assumed")


def short(number: float) -> str:
    """Two digits of a number."""
    if number < 0.01:
        return "under 0.01"
    digits = 1 - math.floor(math.log10(number))
    rounded = round(number, digits)
    if digits <= 0:
        return f"{int(rounded):,}".replace(",", " ")
    return f"{rounded:.{digits}f}".rstrip("0").rstrip(".")


def sized(number: float) -> str:
    """Two digits of a number of bytes."""
    unit, factor = next((unit, factor) for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if number >= factor)
    return f"{short(number / factor)} {unit}"


def expected(servers: int) -> list[str]:
    """The column of the table, from the measured and the assumed."""
    a, m = ASSUMED, MEASURED
    base, most = m["spans of a load: a base model with a LoRA"], m["spans of a load at most, whatever the model"]
    daily = servers * (a["loads of a base model a day"] * base + a["LoRA switches a day"] * m["spans of a load: a LoRA switched"])
    starting = a["minutes in which all servers start after a release"] * 60
    gateway = m["CPU microseconds of a span: gateway, with metrics of spans"] / 1e6
    by_service = m["series that a gateway makes of spans: the demo, by service"]
    by_process = m["series that a gateway makes of spans: the demo, by service ... and by process"]
    return [
        short(daily),
        sized(daily * m["bytes of a span in OTLP, batched"]),
        sized(daily * m["bytes of a span in OTLP, batched ... with gzip"]),
        short(servers * base / starting),
        short(servers * most / starting),
        short(servers * base / starting * gateway),
        short(servers * most / starting * gateway),
        sized(daily * m["bytes of a span in Jaeger's Badger"] * a["days in Badger"]),
        sized(daily * m["bytes of a span in OpenSearch, one copy"] * a["days in OpenSearch"] * a["copies in OpenSearch"]),
        short(daily * m["documents of a span in OpenSearch: one an attribute"]),
        short(servers * m["series of a process that exports metrics: the demo"]),
        short(a["gateways"] * by_service + servers * by_process),
    ]


@pytest.mark.parametrize("column", range(3), ids=[f"{servers} servers" for servers in SERVERS])
def test_what_follows_follows(column: int) -> None:
    assert [row[column + 1] for row in rows("What follows")] == expected(SERVERS[column])


def hexadecimal_to_base64(part: Any) -> Any:
    """OTLP JSON has ids in hexadecimal, protobuf's JSON in base64."""
    if isinstance(part, dict):
        ids = {"traceId", "spanId", "parentSpanId"}
        return {
            key: base64.b64encode(bytes.fromhex(value)).decode() if key in ids else hexadecimal_to_base64(value)
            for key, value in part.items()
        }
    return [hexadecimal_to_base64(item) for item in part] if isinstance(part, list) else part


def test_a_spans_bytes_are_those_of_the_demo() -> None:
    from google.protobuf import json_format
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    requests = [json_format.ParseDict(hexadecimal_to_base64(json.loads(line)), ExportTraceServiceRequest()) for line in demo()]
    batch = ExportTraceServiceRequest()
    batch.CopyFrom(requests[0])
    for request in requests[1:]:
        batch.resource_spans[0].scope_spans[0].spans.extend(request.resource_spans[0].scope_spans[0].spans)
    spans = len(batch.resource_spans[0].scope_spans[0].spans)
    whole = batch.SerializeToString()
    assert spans == 30
    assert len(whole) / spans == pytest.approx(MEASURED["bytes of a span in OTLP, batched"], abs=1)
    assert len(gzip.compress(whole)) / spans == pytest.approx(MEASURED["bytes of a span in OTLP, batched ... with gzip"], rel=0.05)
    attributes = [len(span["attributes"]) for span in sent(demo()).values()]
    assert sum(attributes) / spans == pytest.approx(20, abs=0.5)


def test_a_loads_spans_are_those_of_the_demo() -> None:
    loads = [trace for trace, _ in sent(demo())]
    counts = sorted((loads.count(trace) for trace in set(loads)), reverse=True)
    assert counts[:2] == [
        MEASURED["spans of a load: a base model with a LoRA"],
        MEASURED["spans of a load: a LoRA switched"],
    ]


def test_the_series_of_a_process_are_counted_by_the_metrics() -> None:
    def series(metric: metric_names.Metric) -> int:
        return len(metric.bounds) + 3 if metric.instrument == "histogram" else 1

    seconds, size, rate = map(series, (metric_names.STAGE_DURATION, metric_names.STAGE_SIZE, metric_names.STAGE_THROUGHPUT))
    loads = series(metric_names.LOAD_DURATION)
    single = sum(series(m) for m in (metric_names.LOAD_ACTIVE, metric_names.LOAD_COUNT, metric_names.LOAD_SIZE, metric_names.STORAGE_READ))
    single += len(metric_names.MOVING)
    assert f"`{loads} L + {seconds + size} S + {rate} T + {single} + R + C + 2 K + F`" in PAGE
    demo_has = loads * 4 + (seconds + size) * 10 - size * 3 + rate * 6 + single + 3 + 2
    assert demo_has == MEASURED["series of a process that exports metrics: the demo"]
    assert f"{size} less each" in PAGE
