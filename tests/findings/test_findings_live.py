"""A real load tells its findings when it ends, and `loadspan show` the same: from the trace, or worked out again from its facts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from advised import load

import loadspan
from loadspan import findings, names
from loadspan.commands import main
from loadspan.instrument import late
from loadspan.report import tracefile

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from recorded import Spans

SLOW = """
import time
import loadspan

def warm():
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        sum(range(1000))

with loadspan.load("slow"):
    with loadspan.stage("decrypt") as stage:
        stage.add(1000)
    warm()
"""


def is_told(name: str) -> bool:
    return name == names.FINDINGS or name.startswith(f"{names.FINDING}.")


def test_a_recorded_load_and_its_trace_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    argv = [sys.executable, "-m", "loadspan", "run", "--quiet", "-o", str(run), "--", sys.executable, "-c", SLOW]
    subprocess.run(argv, check=True, timeout=120)
    [recorded] = tracefile.read(run).loads
    told = {name: value for name, value in recorded.attributes.items() if is_told(name)}
    assert "unexplained" in recorded.texts(names.FINDINGS)
    assert "what ran there: warm (<string>:" in str(told[names.finding("unexplained")])
    assert findings.attributes(findings.find(recorded)) == told

    def shown() -> str:
        assert main(["show", str(run), "--width", "1100", "--no-color"]) == 0
        return capsys.readouterr().out

    with_it = shown()
    assert f"  ! unexplained: {told[names.finding('unexplained')]}\n" in with_it
    for path in run.glob("trace-*.jsonl"):  # as one recorded before there were findings
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for span in (span for line in lines for of in line["resourceSpans"] for scope in of["scopeSpans"] for span in scope["spans"]):
            span["attributes"] = [each for each in span["attributes"] if not is_told(each["key"])]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert not any(map(is_told, tracefile.read(run).loads[0].attributes))
    assert shown() == with_it


def test_findings_are_told_once_by_the_outermost_load(spans: Spans) -> None:
    with loadspan.load("outer"), loadspan.load("inner"):
        time.sleep(1.1)
    outer = spans.load()
    [inner] = outer["children"]
    assert "unexplained" in outer["attributes"][names.FINDINGS]
    assert inner["duration"] > findings.LONG
    assert not any(map(is_told, inner["attributes"]))


def test_a_trace_may_say_what_these_rules_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, Any] = {names.FINDINGS: ["newer", "lost"], names.finding("newer"): "Do as a newer version says."}
    attributes = [
        {"key": names.FINDINGS, "value": {"arrayValue": {"values": [{"stringValue": known} for known in told[names.FINDINGS]]}}},
        {"key": names.finding("newer"), "value": {"stringValue": told[names.finding("newer")]}},
    ]
    span = {"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "a0", "name": names.LOAD_SPAN, "attributes": attributes}
    span |= {"startTimeUnixNano": "1790000000000000000", "endTimeUnixNano": "1790000010000000000"}
    line = {"resourceSpans": [{"scopeSpans": [{"scope": {"name": names.SCOPE}, "spans": [span]}]}]}
    (tmp_path / "trace-1.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["show", str(tmp_path), "--no-color"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["load model  10.0 s", "  ! newer: Do as a newer version says."]


def test_what_is_told_when_a_load_ends_begins_where_the_rules_begin() -> None:
    unknown = {names.COVERAGE: 0.0, names.partition(names.OTHER): 1.5}
    second = round(findings.LONG * 1e9)
    assert late.findings(unknown, 0, second) == findings.attributes(findings.find(load(unknown, findings.LONG))) != {}
    assert late.findings(unknown, 0, second - 1) == {} == findings.attributes(findings.find(load(unknown, findings.LONG - 1e-9)))
    link = {names.LINK_DEGRADED: True}
    assert late.findings(link, 0, 1000) == findings.attributes(findings.find(load(link, 1e-6))) != {}


SHORT = """
import sys
from opentelemetry.sdk.trace import TracerProvider
import loadspan
loadspan.LoadspanInstrumentor().instrument(tracer_provider=TracerProvider())
with loadspan.load("short"), loadspan.stage("decrypt") as stage:
    stage.add(1)
print([name for name in sys.modules if name.startswith("loadspan.findings")])
"""


def test_a_short_load_does_not_import_the_rules() -> None:
    done = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
