"""`loadspan view` and a real Jaeger: what it has afterwards is what the run folder says, and a killed load is one red tree."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backends.process import get, until
from backends.programs import Jaeger, spans_of
from loadspan import names
from loadspan.commands import main
from loadspan.report.endpoint import Endpoint
from loadspan.report.parcel import Parcel, Seen, pieces
from loadspan.report.upload import Upload

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO = Path(__file__).resolve().parents[2] / "docs" / "demo"

PROGRAM = """
import time
import loadspan

with loadspan.load("base"):
    with loadspan.stage("decrypt") as decrypt:
        with loadspan.stage("read", size=1000):
            time.sleep(0.05)
        decrypt.add(900)
        time.sleep(60)
"""


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    with Jaeger(tmp_path_factory.mktemp("jaeger")) as started:
        yield started


def view(jaeger: Jaeger, path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `loadspan view --json` says, which has to be well."""
    assert main(["view", str(path), "--jaeger", jaeger.url, "--otlp", f"http://127.0.0.1:{jaeger.http}", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def value(raw: dict[str, Any]) -> Any:
    """A value of OTLP JSON, as comparable whoever wrote it."""
    ((kind, inner),) = raw.items()
    if kind == "arrayValue":
        return [value(item) for item in inner.get("values", [])]
    return int(inner) if kind == "intValue" else inner


def facts(span: dict[str, Any]) -> dict[str, Any]:
    """All that a span says, apart from how it is spelled."""
    kept = {key: span.get(key) or "" for key in ("name", "traceId", "spanId", "parentSpanId", "startTimeUnixNano", "endTimeUnixNano")}
    attributes = {item["key"]: value(item["value"]) for item in span.get("attributes", [])}
    events = [(event["name"], event["timeUnixNano"]) for event in span.get("events", [])]
    status = span.get("status") or {}
    return {**kept, "attributes": attributes, "events": events, "status": (status.get("code", 0), status.get("message", ""))}


def written(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Spans by trace of a run folder."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (text for file in folder.glob("*.jsonl") for text in file.read_text().splitlines()):
        for span in spans_of(json.loads(line)):
            found.setdefault(span["traceId"], []).append(span)
    return found


def by_id(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(map(facts, spans), key=lambda span: str(span["spanId"]))


def test_a_run_comes_back_with_the_same_bytes_parents_and_attributes(jaeger: Jaeger, capsys: pytest.CaptureFixture[str]) -> None:
    found = view(jaeger, DEMO, capsys)
    run = written(DEMO)
    assert {trace["trace_id"] for trace in found["traces"]} == set(run)
    for trace_id, spans in run.items():
        trace = jaeger.trace(trace_id)
        assert trace is not None
        assert by_id(spans_of(trace)) == by_id(spans)
    for load in found["loads"]:
        assert b"<html" in get(load["url"])


def test_a_run_that_is_sent_again_is_there_once(jaeger: Jaeger, capsys: pytest.CaptureFixture[str]) -> None:
    view(jaeger, DEMO, capsys)
    again = view(jaeger, DEMO, capsys)
    assert (again["sent"], again["present"]) == (0, sum(map(len, written(DEMO).values())))
    for trace_id, spans in written(DEMO).items():
        assert len(spans_of(jaeger.trace(trace_id) or {"resourceSpans": []})) == len(spans)


def test_jaeger_itself_shows_a_span_once_that_it_has_twice(jaeger: Jaeger, capsys: pytest.CaptureFixture[str]) -> None:
    """Why a run may also be sent by a program that asks nothing, as the Collector's file receiver."""
    view(jaeger, DEMO, capsys)
    upload = Upload(Endpoint(f"http://127.0.0.1:{jaeger.http}"))
    parcel = Parcel(upload.send)
    for piece in pieces(DEMO, Seen()):
        parcel.add(piece.origin, piece.span)
    parcel.flush()
    for trace_id, spans in written(DEMO).items():
        jaeger.await_trace(trace_id, 2 * len(spans))
        assert len(jaeger.as_drawn(trace_id)["spans"]) == len(spans)


def killed_run(folder: Path) -> Path:
    """The run folder of a program that was killed in its first load."""
    program = folder / "serve.py"
    program.write_text(PROGRAM)
    run = folder / "run"
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("OTEL_", "LOADSPAN_"))}
    command = [sys.executable, "-m", "loadspan", "run", "--quiet", "-o", str(run), "--", sys.executable, str(program)]
    with subprocess.Popen(command, env=environ) as recording:

        def state() -> dict[str, Any] | None:
            with contextlib.suppress(ValueError):
                for file in run.glob("state-*.json"):
                    found: dict[str, Any] = json.loads(file.read_text())
                    if found["loads"] and found["loads"][0]["stages"] and any(run.glob("trace-*.jsonl")):
                        return found if found["loads"][0]["stages"][0]["size"] else None
            return None

        os.kill(until(state, "a load that has begun")["pid"], signal.SIGKILL)
        recording.wait(30)
    return run


def test_a_killed_load_is_one_tree_with_a_red_root_that_says_where(
    jaeger: Jaeger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed_run(tmp_path)
    for sent in (3, 0):
        found = view(jaeger, run, capsys)
        assert (found["sent"], found["rebuilt"]) == (sent, 2)
        (load,) = found["loads"]
        assert load["killed"].startswith("killed in decrypt at 900 B after ")
        drawn = jaeger.as_drawn(load["trace_id"])
        operations = {span["spanID"]: span["operationName"] for span in drawn["spans"]}
        parents = [(span["operationName"], *(operations[above["spanID"]] for above in span["references"])) for span in drawn["spans"]]
        assert sorted(parents) == [("decrypt", "load model"), ("load model",), ("read", "decrypt")]
        tags = {span["operationName"]: {tag["key"]: tag["value"] for tag in span["tags"]} for span in drawn["spans"]}
        assert {name: tag.get("error", False) for name, tag in tags.items()} == {"load model": True, "decrypt": True, "read": False}
        root = tags["load model"]
        assert (root["otel.status_description"], root[names.REBUILT], root["loadspan.model.name"]) == (load["killed"], True, "base")
        assert [span["warnings"] for span in drawn["spans"] if span["warnings"]] == []
        assert len(drawn["processes"]) == 1


def test_many_traces_arrive_and_none_is_left_out(jaeger: Jaeger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = next(line for file in DEMO.glob("*.jsonl") for line in file.read_text().splitlines() if '"load_state_dict"' in line)
    ids = [f"{number:032x}" for number in range(1, 301)]
    (old,) = {span["traceId"] for span in spans_of(json.loads(line))}
    (tmp_path / "trace-1.jsonl").write_text("".join(line.replace(old, new) + "\n" for new in ids))
    found = view(jaeger, tmp_path, capsys)
    per_trace = len(spans_of(json.loads(line)))
    assert found["rebuilt"] == 300  # the roots, which are not in this line
    assert Counter(trace["spans"] for trace in found["traces"]) == {per_trace + 1: 300}
