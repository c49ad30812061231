"""The demo as a user runs it, its spans to a real Jaeger at the same time: what is there is what was written down, and it adds up there."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from backends.critical_path import seconds_of_spans
from backends.programs import Jaeger, spans_of
from loadspan import names
from loadspan.report.otlp import spans_in
from loadspan.report.tracefile import read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadspan.report.otlp import RawSpan


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=["grpc", "http/protobuf"])
def demo(request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Jaeger, Path]]:
    """A Jaeger that the demo has sent its spans to, and the folder in which it wrote them down."""
    folder = tmp_path_factory.mktemp("demo")
    with Jaeger(folder / "jaeger") as jaeger:
        base = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LOADSPAN_"))}
        environment = base | {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_PROTOCOL": request.param,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{jaeger.grpc if request.param == 'grpc' else jaeger.http}",
        }
        done = subprocess.run(
            [sys.executable, "-m", "loadspan", "demo", "--dir", models, "--size", "100"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        (run,) = (folder / "loadspan-runs").iterdir()
        yield jaeger, run


def written(run: Path) -> dict[str, list[RawSpan]]:
    """Spans of a run by their trace."""
    found: dict[str, list[RawSpan]] = {}
    for path in run.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            for span in spans_in(line):
                found.setdefault(span.trace_id, []).append(span)
    return found


def value(raw: dict[str, Any]) -> Any:
    """A value of OTLP JSON."""
    ((kind, found),) = raw.items()
    if kind == "arrayValue":
        return tuple(value(item) for item in found.get("values", ()))
    return int(found) if kind == "intValue" else found


def test_what_jaeger_has_is_what_was_written_down(demo: tuple[Jaeger, Path]) -> None:
    jaeger, run = demo
    traces = written(run)
    assert len(traces) == 4
    for trace_id, spans in traces.items():
        there = {span["spanId"]: span for span in spans_of(jaeger.await_trace(trace_id, len(spans)))}
        assert there.keys() == {span.span_id for span in spans}
        for span in spans:
            found = there[span.span_id]
            assert (found["name"], found.get("parentSpanId") or None) == (span.name, span.parent_id)
            assert (int(found["startTimeUnixNano"]), int(found["endTimeUnixNano"])) == (span.start, span.end)
            assert {item["key"]: value(item["value"]) for item in found["attributes"]} == dict(span.attributes)


def test_jaegers_own_critical_path_has_the_seconds_of_our_partition(demo: tuple[Jaeger, Path]) -> None:
    jaeger, run = demo
    loads = read(run).loads
    assert len(loads) == 4
    for load in loads:
        jaeger.await_trace(load.trace_id, sum(1 for _ in load.walk()))
        seconds = seconds_of_spans(jaeger.as_drawn(load.trace_id))
        stages = {stage: load.partition.get(stage, 0.0) for stage in (*names.STAGES, names.OTHER)}
        found = {stage: seconds.get(names.LOAD_SPAN if stage == names.OTHER else stage, 0.0) for stage in stages}
        assert load.duration is not None
        # What the recorder needed around a stage is the span's that the stage is in.
        assert found == pytest.approx(stages, abs=0.01 * load.duration + load.partition.get(names.OWN, 0.0)), load.attributes
        assert sum(found.values()) == pytest.approx(load.duration, rel=0.01)
