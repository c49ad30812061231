"""A load of minutes can be looked at in Jaeger while it runs; so can one whose ranks are processes of their own, in one trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from backends.process import until
from backends.programs import Jaeger, spans_of
from loadspan import names

INSTRUMENT = Path(sys.executable).with_name("opentelemetry-instrument")
SIZE = 32 << 20

READS = """
import sys, time
from pathlib import Path
import loadspan

path, stop = map(Path, sys.argv[1:])
until = time.monotonic() + 120
with loadspan.load("long"), path.open("rb", 0) as file:
    while not stop.exists() and time.monotonic() < until:
        if not file.read(1 << 20):
            file.seek(0)
        time.sleep(0.01)
"""

RANKS = """
import os, subprocess, sys
import loadspan
from opentelemetry.propagate import inject

if "RANK" in os.environ:
    with loadspan.load("model"), loadspan.stage("read", size=1000 * (1 + int(os.environ["RANK"]))):
        pass
else:
    with loadspan.load("model"):
        carried = {}
        inject(carried)
        group = os.environ | {key.upper(): value for key, value in carried.items()} | {"WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "job"}
        ranks = [subprocess.Popen([*sys.argv[1:], __file__], env=group | {"RANK": str(rank)}) for rank in range(4)]
        assert [rank.wait() for rank in ranks] == [0] * 4
"""


def environment(jaeger: Jaeger, service: str) -> dict[str, str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LOADSPAN_"))}
    return base | {
        "OTEL_SERVICE_NAME": service,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{jaeger.grpc}",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
    }


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: next(iter(item["value"].values())) for item in span["attributes"]}


def test_what_has_been_read_is_there_before_the_load_has_ended(jaeger: Jaeger, tmp_path: Path) -> None:
    program, weights, stop = tmp_path / "load.py", tmp_path / "weights.bin", tmp_path / "stop"
    program.write_text(READS)
    weights.write_bytes(bytes(SIZE))
    child = subprocess.Popen([INSTRUMENT, sys.executable, program, weights, stop], env=environment(jaeger, "long"))
    try:
        (trace_id,) = until(lambda: jaeger.search("long"), "a span of a load that runs", 60, 0.5)
        early = spans_of(jaeger.await_trace(trace_id))
        assert child.poll() is None
        assert {span["name"] for span in early} == {names.READ}
        stop.touch()
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()

    def ended() -> list[dict[str, Any]] | None:
        spans = spans_of(jaeger.await_trace(trace_id))
        return spans if any(span["name"] == names.LOAD_SPAN for span in spans) else None

    spans = until(ended, "the load", 60, 0.5)
    (root,) = [span for span in spans if span["name"] == names.LOAD_SPAN]
    segments = [span for span in spans if span["name"] == names.READ]
    assert len(segments) >= 2
    assert {span["parentSpanId"] for span in segments} == {root["spanId"]}
    assert sum(int(attributes(span)[names.SIZE]) for span in segments) == int(attributes(root)[names.SIZE])


def test_ranks_that_are_told_of_the_trace_are_one_trace(jaeger: Jaeger, tmp_path: Path) -> None:
    program = tmp_path / "ranks.py"
    program.write_text(RANKS)
    command = [str(INSTRUMENT), sys.executable]
    subprocess.run([*command, program, *command], env=environment(jaeger, "ranks"), check=True, timeout=240)
    (trace_id,) = until(lambda: jaeger.search("ranks"), "the trace", 60, 0.5)
    spans = spans_of(jaeger.await_trace(trace_id, 9))
    loads = {span["spanId"]: span for span in spans if span["name"] == names.LOAD_SPAN}
    (root,) = [span for span in loads.values() if not span.get("parentSpanId")]
    ranks = {int(attributes(span)[names.RANK]): span for span in loads.values() if span is not root}
    assert sorted(ranks) == [0, 1, 2, 3]
    assert {span["parentSpanId"] for span in ranks.values()} == {root["spanId"]}
    assert {attributes(span)[names.LOAD_ID] for span in ranks.values()} == {"job"}
    reads = {span["parentSpanId"]: int(attributes(span)[names.SIZE]) for span in spans if span["name"] == names.READ}
    assert [reads[ranks[rank]["spanId"]] for rank in range(4)] == [1000, 2000, 3000, 4000]
