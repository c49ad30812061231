"""`loadspan view` against a small server: what is sent, what is said, and everything that can go wrong on the way."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import traces
from otlpserver import Answer, Server, serving

from loadspan import names
from loadspan.commands import main, view
from loadspan.report import delivery, parcel, upload
from loadspan.report.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

IDS = {"a0": "a" * 16, "a1": "b" * 16, "a2": "c" * 16, "a3": "d" * 16}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(delivery, "_PAUSE", 0.01)
    monkeypatch.setattr(upload, "_FIRST_PAUSE", 0.01)
    with serving() as found:
        yield found


def founding_load() -> list[dict[str, Any]]:
    """The load of the other tests, with ids that a server takes."""
    spans = traces.founding_load()
    for span in spans:
        span["spanId"] = IDS[span["spanId"]]
        if "parentSpanId" in span:
            span["parentSpanId"] = IDS[span["parentSpanId"]]
    return spans


def record(folder: Path, spans: list[dict[str, Any]] | None = None, pid: int = 4242) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [traces.line(span, pid=pid) for span in (founding_load() if spans is None else spans)]
    (folder / f"trace-{pid}.jsonl").write_text("".join(lines))
    return folder


def killed(folder: Path) -> Path:
    """A load whose process was killed in its second read, inside of a decrypt that it never wrote either."""
    record(folder, founding_load()[:1])
    stage = {"name": "read", "start": traces.at(7), "size": 12_300_000_000, "file_size": 20_100_000_000, "file": "base.enc"}
    load = traces.open_load(IDS["a0"], 0, stage, model="sdxl-base", size=12_300_000_000)
    traces.write_state(folder, 4242, [load], updated=41.2)
    return folder


def look(server: Server, *more: str) -> list[str]:
    return ["view", *more, "--jaeger", server.url, "--otlp", server.url]


def by_name(server: Server) -> dict[str, dict[str, Any]]:
    return {span["name"]: span for span in server.spans()}


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: next(iter(item["value"].values())) for item in span["attributes"]}


def test_the_spans_of_a_run_arrive_as_they_were_written_and_the_link_is_printed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    record(Path("runs/42"))
    assert main(look(server, "runs/42")) == 0
    link = f"{server.url}/trace/{traces.TRACE}"
    assert capsys.readouterr() == (f"Sent 4 spans to {server.url}.\nsdxl-base  12.0 s  {link}\n", "")
    assert server.spans() == founding_load()
    assert [resource["attributes"][0]["value"] for resource, _ in server.entries()] == [{"intValue": "4242"}] * 4
    ((path, headers),) = server.posts
    assert (path, headers["Content-Type"], headers["Content-Encoding"]) == ("/v1/traces", "application/json", "gzip")


def test_what_is_there_is_not_sent_again(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    record(Path("runs/42"), founding_load()[2:])
    main(look(server, "runs/42"))
    record(Path("runs/42"))
    main(look(server, "runs/42"))
    assert main(look(server, "runs/42")) == 0
    assert sorted(span["spanId"] for span in server.spans()) == sorted(IDS.values())
    out = capsys.readouterr().out
    assert f"Sent 2 spans to {server.url}; 2 more were there already." in out
    assert "Nothing to send: all 4 spans are there already." in out


def test_a_killed_load_gets_the_root_that_its_stages_name_marked_and_failed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    killed(Path("runs/42"))
    text = "killed in read at 12.3 of 20.1 GB after 41.2 s"
    for _ in range(2):
        assert main(look(server, "runs/42")) == 0
        out, err = capsys.readouterr()
        assert f"\nsdxl-base  {text}  {server.url}/trace/{traces.TRACE}\n" in out
        assert f"3 of the spans were rebuilt for what never ended and were marked {names.REBUILT}." in out
        assert err == ""
    assert len(server.spans()) == 4
    root = by_name(server)["load model"]
    assert (root["spanId"], root.get("parentSpanId"), root["status"]) == (IDS["a0"], None, {"code": 2, "message": text})
    assert (root["startTimeUnixNano"], root["endTimeUnixNano"]) == (str(traces.at(0)), str(traces.at(41.2)))
    assert attributes(root) == {
        "loadspan.model.name": "sdxl-base",
        "loadspan.size": "12300000000",
        "process.pid": "4242",
        names.REBUILT: True,
        "error.type": "killed",
    }
    # One tree: what the first read was in is known from it alone, the second read from the state file.
    assert by_name(server)["unfinished"]["spanId"] == IDS["a2"]
    assert {span["parentSpanId"] for span in server.spans() if span is not root} == {IDS["a0"], IDS["a2"]}
    assert len({json.dumps(resource) for resource, _ in server.entries()}) == 1


def test_an_open_stage_that_has_children_takes_the_id_that_they_name(server: Server) -> None:
    folder = killed(Path("runs/42"))
    stage = {"name": "decrypt", "start": traces.at(0), "size": None, "file_size": None, "file": None}
    traces.write_state(folder, 4242, [traces.open_load(IDS["a0"], 0, stage)], updated=41.2)
    main(look(server, "runs/42"))
    assert {(span["name"], span["spanId"], span.get("parentSpanId")) for span in server.spans()} == {
        ("read", IDS["a1"], IDS["a2"]),
        ("decrypt", IDS["a2"], IDS["a0"]),
        ("load model", IDS["a0"], None),
    }


def test_a_process_killed_before_it_wrote_a_span_is_seen_all_the_same(server: Server) -> None:
    folder = killed(Path("runs/42"))
    (folder / "trace-4242.jsonl").unlink()
    assert main(look(server, "runs/42")) == 0
    assert sorted(span["name"] for span in server.spans()) == ["load model", "read"]


def test_a_killed_rank_is_told_of_below_the_load_that_outlived_it(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record(Path("runs/42"), founding_load()[-1:])
    load = traces.open_load("e" * 16, 1, {"name": "to_device", "start": traces.at(2)}, model="rank", parent_id=IDS["a0"])
    traces.write_state(folder, 4243, [load], updated=9)
    assert main(look(server, "runs/42")) == 0
    sent = {(span["spanId"], span.get("parentSpanId")) for span in server.spans() if span["name"] == "load model"}
    assert sent == {(IDS["a0"], None), ("e" * 16, IDS["a0"])}
    out = capsys.readouterr().out
    assert "sdxl-base  12.0 s" in out
    assert "rank       killed in to_device after 8.00 s" in out


def test_a_load_that_still_runs_writes_its_root_itself(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record(Path("runs/42"), founding_load()[:1], pid=os.getpid())
    traces.write_state(folder, os.getpid(), [traces.open_load(IDS["a0"], 0)], updated=(time.time_ns() - traces.EPOCH) / 1e9)
    assert main(look(server, "runs/42")) == 0
    out, err = capsys.readouterr()
    assert [span["name"] for span in server.spans()] == ["read"]
    assert "still running  http" in out
    assert "1 load still running: sent as far as written. Run this again when the program has ended." in err


def test_a_root_that_came_after_all_is_sent_and_the_rebuilt_one_is_told_of(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    main(look(server, str(killed(Path("runs/42")))))
    record(Path("runs/42"))
    (Path("runs/42") / "state-4242.json").unlink()
    main(look(server, "runs/42"))
    assert "1 trace had been sent before the load ended: Jaeger shows the loadspan.rebuilt spans" in capsys.readouterr().err
    sent = len(server.spans())
    main(look(server, "runs/42"))
    assert len(server.spans()) == sent


def test_a_large_run_leaves_in_requests_of_bounded_size(server: Server) -> None:
    spans = [traces.span("read", f"{number + 1:016x}", IDS["a0"], 0, 1, file__path="x" * 5000) for number in range(700)]
    spans += [traces.span("read", f"{number + 1000:016x}", IDS["a0"], 0, 1) for number in range(700)]
    record(Path("runs/42"), [*spans, founding_load()[-1]])
    assert main(look(server, "runs/42")) == 0
    assert len(server.spans()) == 1401
    assert max(server.sizes) < 1.1 * parcel.MOST_BYTES
    assert 4 < len(server.requests) < 10


def test_a_span_that_two_lines_hold_is_sent_once_and_one_without_an_id_never(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{**founding_load()[0], **change} for change in ({"traceId": ""}, {"spanId": "0" * 16}, {"endTimeUnixNano": "0"}, {"name": 1})]
    record(Path("runs/42"), [*founding_load(), *founding_load(), *bad])
    assert main(look(server, "runs/42")) == 0
    assert server.spans() == founding_load()
    assert capsys.readouterr().err == "loadspan view: 4 spans left out: without valid ids or times no server takes them.\n"


def test_a_torn_last_line_is_said_and_the_rest_is_sent(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    file = record(Path("runs/42")) / "trace-4242.jsonl"
    file.write_text(file.read_text() + traces.line(founding_load()[0])[:100])
    assert main(look(server, str(file))) == 0
    assert server.spans() == founding_load()
    assert "line 5 is incomplete" in capsys.readouterr().err


def test_a_file_may_be_one_object_over_many_lines(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    Path("export.json").write_text(json.dumps(json.loads(traces.line(*founding_load())), indent=2))
    assert main(look(server, "export.json")) == 0
    assert server.spans() == founding_load()
    assert "sdxl-base  12.0 s  " in capsys.readouterr().out


def test_spans_of_others_are_sent_too(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.jsonl").write_text(traces.line(traces.span("GET /", "e" * 16, None, 0, 1), scope="requests"))
    assert main(look(server, "other.jsonl")) == 0
    assert f"no load    {server.url}/trace/{traces.TRACE}" in capsys.readouterr().out


def test_several_loads_of_one_service_get_their_list(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (folder := Path("loadspan-runs/x")).mkdir(parents=True)
    lines = []
    for number in range(25):
        root = traces.span("load model", IDS["a0"], None, number, 2 * number + 1, trace=f"{number + 1:032x}", loadspan__model__name="m\x1b")
        line = json.loads(traces.line(root))
        line["resourceSpans"][0]["resource"]["attributes"].append({"key": "service.name", "value": {"stringValue": "my serve"}})
        lines.append(json.dumps(line) + "\n")
    (folder / "trace-1.jsonl").write_text("".join(lines))
    assert main(look(server)) == 0
    out = capsys.readouterr().out
    assert "m\\x1b  25.0 s  " in out
    assert out.count("/trace/") == 20
    start, end = traces.at(0) // 1000 - 1, traces.at(24) // 1000 + 1
    query = f"service=my+serve&operation=load+model&lookback=custom&limit=1500&start={start}&end={end}"
    assert out.endswith(f"25 loads, 20 of them above: those that failed, then the longest. In a list: {server.url}/search?{query}\n")


def test_of_many_loads_those_that_failed_are_listed_first(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    spans = [traces.span("load model", "f" * 16, None, 0, 0.5, loadspan__model__name="broken", error="boom")]
    spans += [traces.span("load model", f"{number + 1:016x}", None, 0, 60) for number in range(30)]
    assert main(look(server, str(record(Path("runs/42"), spans)))) == 0
    assert "broken      500 ms failed  http" in capsys.readouterr().out


def test_json_says_the_same_to_programs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    main(look(server, str(killed(Path("runs/42"))), "--json"))
    found = json.loads(capsys.readouterr().out)
    url = f"{server.url}/trace/{traces.TRACE}"
    assert found["loads"] == [
        {
            "trace_id": traces.TRACE,
            "span_id": IDS["a0"],
            "url": url,
            "model": "sdxl-base",
            "pid": 4242,
            "start": traces.at(0),
            "killed": "killed in read at 12.3 of 20.1 GB after 41.2 s",
        }
    ]
    assert found["traces"] == [{"trace_id": traces.TRACE, "url": url, "spans": 4, "missing": 0}]
    assert [found[key] for key in ("sent", "present", "rebuilt", "rejected", "skipped", "missing")] == [4, 0, 3, 0, 0, 0]


def test_spans_that_do_not_arrive_are_said(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.loses = True
    assert main(look(server, str(record(Path("runs/42"))), "--wait", "0.05")) == 2
    assert f"4 spans of 1 trace not in Jaeger after 0.05 s. Is {server.url} where this Jaeger takes spans" in capsys.readouterr().err
    assert main(look(server, "runs/42", "--wait", "0")) == 0


def test_spans_that_the_server_rejects_are_said(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = [Answer(200, '{"partialSuccess":{"rejectedSpans":"3","errorMessage":"quota\\nreached"}}', takes=True)]
    assert main(look(server, str(record(Path("runs/42"))))) == 2
    out, err = capsys.readouterr()
    assert out.startswith("Sent 1 span to ")
    assert f"3 spans rejected by {server.url}: quota reached. The pictures are not complete." in err


def test_open_opens_the_browser_and_nothing_else_does(server: Server) -> None:
    record(Path("runs/42"))
    Path("browser").write_text(f'#!/bin/sh\nprintf %s "$1" > {Path.cwd() / "opened"}\n')
    Path("browser").chmod(0o700)
    environ = {**os.environ, "BROWSER": str(Path("browser").absolute())}
    command = [sys.executable, "-m", "loadspan", *look(server, "runs/42")]
    subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)
    assert not Path("opened").exists()
    subprocess.run([*command, "--open"], check=True, env=environ, stdout=subprocess.DEVNULL)
    assert Path("opened").read_text() == f"{server.url}/trace/{traces.TRACE}"


def test_without_a_jaeger_it_says_how_to_get_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(view, "UI_PORT", free.getsockname()[1])
        assert main(["view", str(record(Path("runs/42")))]) == 2
    message = capsys.readouterr().err
    assert re.fullmatch(r"loadspan view: no Jaeger at .*docker compose up -d.*jaegertracing.io/download.*--jaeger http.*\n", message)


def test_a_jaeger_on_this_machine_is_found_and_its_links_are_those_of_a_browser(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(server.url.rpartition(":")[2])
    monkeypatch.setattr(view, "UI_PORT", port)
    assert main(["view", str(record(Path("runs/42"))), "--otlp", server.url]) == 0
    assert f"http://localhost:{port}/trace/" in capsys.readouterr().out


def test_the_usual_port_of_the_same_host_takes_the_spans() -> None:
    for address, otlp in (
        ("http://localhost:16686", "http://localhost:4318"),
        ("jaeger.example/base/", "http://jaeger.example:4318"),
        ("https://jaeger.example", "https://jaeger.example:4318"),
        ("http://[::1]:16686", "http://[::1]:4318"),
    ):
        assert view.Jaeger(Endpoint(address)).otlp == otlp
