"""The main job as a user types it: `opentelemetry-instrument python serve.py`, spans to a collector over OTLP."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = """
import sys
import torch
from safetensors.torch import load_file, save_file

model = torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.Linear(1024, 1024))
save_file(model.state_dict(), sys.argv[1])
state = load_file(sys.argv[1])
model.load_state_dict(state)
print(all(torch.equal(model.state_dict()[key], tensor) for key, tensor in state.items()))
"""


class Sink:
    """A collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        for scope in resource.scope_spans:
                            sink.spans += list(scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the interface
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def sink() -> Iterator[Sink]:
    it = Sink()
    yield it
    it.server.shutdown()
    it.server.server_close()


def launch(tmp_path: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "serve.py"
    program.write_text(PROGRAM)
    launcher = Path(sys.executable).parent / "opentelemetry-instrument"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LOADSPAN_"))} | environment
    return subprocess.run(
        [launcher, *arguments, sys.executable, program, tmp_path / "model.safetensors"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_program_that_knows_nothing_of_it_sends_its_load_to_the_collector(tmp_path: Path, sink: Sink) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    done = launch(tmp_path, environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    roots = [span for span in sink.spans if span.name == "load model"]
    assert len(roots) == 1
    assert not roots[0].parent_span_id
    stages = {
        span.name: {item.key: item.value for item in span.attributes} for span in sink.spans if span.parent_span_id == roots[0].span_id
    }
    assert sorted(stages) == ["deserialize", "load_state_dict"]
    size = 2 * (1024 * 1024 + 1024) * 4
    assert [stage["loadspan.size"].int_value for stage in stages.values()] == [size, size]
    assert stages["deserialize"]["loadspan.deferred"].bool_value
    assert "loadspan.throughput" not in stages["deserialize"]
    assert "loadspan.throughput" in stages["load_state_dict"]


def test_the_embedded_exporter_is_one_name_away(tmp_path: Path) -> None:
    environment = {
        "OTEL_TRACES_EXPORTER": "loadspan",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "LOADSPAN_DIR": str(tmp_path / "run"),
    }
    done = launch(tmp_path, environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert len(list((tmp_path / "run").glob("trace-*.jsonl"))) == 1
    shown = subprocess.run(
        [sys.executable, "-m", "loadspan", "show", tmp_path / "run"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "load_state_dict" in shown.stdout


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nowhere.invalid:4318"])
def test_a_dead_collector_does_not_touch_the_program(tmp_path: Path, endpoint: str) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    done = launch(tmp_path, environment)
    assert (done.returncode, done.stdout) == (0, "True\n")


def test_without_an_sdk_the_program_runs_and_nothing_is_said(tmp_path: Path) -> None:
    done = launch(tmp_path, {"OTEL_SDK_DISABLED": "true"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_an_unknown_value_is_said_once_and_the_program_runs(tmp_path: Path) -> None:
    done = launch(tmp_path, {"OTEL_SDK_DISABLED": "true", "LOADSPAN_FILE_READS": "maybe"})
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert "LOADSPAN_FILE_READS=maybe: unknown value. Set it to on or off." in done.stderr
    assert "Traceback" not in done.stderr
