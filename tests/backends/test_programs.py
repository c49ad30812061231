"""The real programs start, take spans over both protocols of OTLP and give back what was sent; so do their own ways to be asked."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from backends import build
from backends.critical_path import critical_path, seconds_of_spans
from backends.process import get, until
from backends.programs import Collector, Jaeger, badger, opensearch, spans_of, validated
from backends.sending import LARGE, from_disk, hexadecimal, load, provider, received, sent
from backends.stores import OpenSearch, Prometheus, promtool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from backends.sending import Facts


def assert_back(jaeger: Jaeger, spans: list[ReadableSpan], read: Callable[[Any], Facts] = received) -> None:
    """Every span came back as it was sent."""
    trace = jaeger.await_trace(hexadecimal(spans[0])[0], len(spans))
    assert {each["spanId"]: read(each) for each in spans_of(trace)} == {hexadecimal(span)[1]: sent(span) for span in spans}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_jaeger_gives_back_what_was_sent(jaeger: Jaeger, protocol: str) -> None:
    with provider(protocol, jaeger.grpc if protocol == "grpc" else jaeger.http, service_name=f"by-{protocol}") as tracing:
        spans = load(tracing, protocol)
    assert_back(jaeger, spans)
    trace_id = hexadecimal(spans[0])[0]
    assert f"by-{protocol}" in jaeger.services()
    assert jaeger.search(f"by-{protocol}") == [trace_id]
    assert jaeger.search(f"by-{protocol}", {"loadspan.model.name": protocol}) == [trace_id]
    assert jaeger.search(f"by-{protocol}", {"loadspan.size": str(LARGE)}) == [trace_id]
    assert jaeger.search(f"by-{protocol}", {"loadspan.model.name": "another"}) == []


def test_a_trace_that_was_never_sent_is_not_there(jaeger: Jaeger) -> None:
    assert jaeger.trace("0" * 31 + "1") is None
    assert jaeger.search("nobody") == []


def test_jaegers_own_critical_path_is_run_on_a_trace(jaeger: Jaeger) -> None:
    with provider("grpc", jaeger.grpc, service_name="path") as tracing:
        spans = load(tracing)
    assert_back(jaeger, spans)
    drawn = jaeger.as_drawn(hexadecimal(spans[0])[0])
    assert [span for span, _, _ in critical_path(drawn)] == [hexadecimal(spans[i])[1] for i in (0, 2, 0, 1, 0)]
    assert seconds_of_spans(drawn) == pytest.approx({"load model": 0.04, "read": 0.3, "to_device": 0.16}, abs=1e-5)


def test_jaeger_on_disk_keeps_its_traces_over_a_restart(tmp_path: Path) -> None:
    with Jaeger(tmp_path / "jaeger", backend=badger(tmp_path / "badger")) as jaeger:
        with provider("grpc", jaeger.grpc, service_name="kept") as tracing:
            spans = load(tracing)
        assert_back(jaeger, spans, from_disk)
        jaeger.restart()
        assert_back(jaeger, spans, from_disk)
        assert jaeger.search("kept", {"loadspan.model.name": "tiny"}) == [hexadecimal(spans[0])[0]]


def through(jaeger: Jaeger, **exporters: Mapping[str, Any]) -> dict[str, Any]:
    """A Collector's configuration: from OTLP to a Jaeger, and to other exporters."""
    return {
        "exporters": {"otlp_grpc": {"endpoint": f"127.0.0.1:{jaeger.grpc}", "tls": {"insecure": True}}, **exporters},
        "extensions": {"health_check": {}},
        "service": {
            "extensions": ["health_check"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["otlp_grpc", *exporters]}},
        },
    }


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_collector_passes_on_what_was_sent(jaeger: Jaeger, tmp_path: Path, protocol: str) -> None:
    lines = tmp_path / "traces.jsonl"
    with Collector(through(jaeger, file={"path": str(lines)}), tmp_path / "collector") as collector:
        with provider(protocol, collector.grpc if protocol == "grpc" else collector.http, service_name="through") as tracing:
            spans = load(tracing)
        assert_back(jaeger, spans)
        assert until(lambda: collector.own("otelcol_receiver_accepted_spans"), "its own count") == len(spans)
        assert b"Server available" in get(f"http://127.0.0.1:{collector.health}")
    written = [span for line in lines.read_text().splitlines() for span in spans_of(json.loads(line))]
    assert [received(span) for span in written] == [sent(span) for span in (*spans[1:], spans[0])]


def test_a_killed_collector_comes_back_on_its_ports(jaeger: Jaeger, tmp_path: Path) -> None:
    with Collector(through(jaeger), tmp_path / "collector") as collector:
        collector.kill()
        collector.start()
        with provider("grpc", collector.grpc, service_name="again") as tracing:
            spans = load(tracing)
        assert_back(jaeger, spans)


def test_a_configuration_that_is_wrong_is_called_wrong(jaeger: Jaeger, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    config = through(jaeger) | {"receivers": {"otlp": {"protocols": {"grpc": {}}}}}
    good.write_text(json.dumps(config))
    bad.write_text(json.dumps(config | {"exporters": {"otlp_grpc": {"endpoynt": ""}}}))
    assert validated(build.COLLECTOR, good) == ""
    assert "endpoynt" in validated(build.COLLECTOR, bad)
    with pytest.raises(RuntimeError, match="endpoynt"):
        Collector(bad, tmp_path / "collector").start()


def test_prometheus_scrapes_a_program_and_is_asked(jaeger: Jaeger, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(json.dumps({"groups": [{"name": "g", "rules": [{"record": "twice", "expr": "up * 2"}]}]}))
    assert promtool("check", "rules", rules).returncode == 0
    with Prometheus(tmp_path / "prometheus", [f"127.0.0.1:{jaeger.metrics}"], [rules]) as prometheus:
        assert [float(each["value"][1]) for each in prometheus.await_series("twice")] == [2]
        now = time.time()
        assert prometheus.query_range("up", now - 10, now)


def test_opensearch_keeps_what_jaeger_is_sent(opensearch_node: OpenSearch, tmp_path: Path) -> None:
    with Jaeger(tmp_path / "jaeger", backend=opensearch(opensearch_node.url, "kept")) as jaeger:
        with provider("grpc", jaeger.grpc, service_name="indexed") as tracing:
            spans = load(tracing)
        jaeger.restart()
        opensearch_node.refresh()
        assert opensearch_node.count("kept-jaeger-span-*") == len(spans)
        assert_back(jaeger, spans, from_disk)
        assert jaeger.search("indexed", {"loadspan.size": str(LARGE)}) == [hexadecimal(spans[0])[0]]
