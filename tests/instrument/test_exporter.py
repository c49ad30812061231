"""The embedded exporter: valid OTLP JSON, one private file per process, nothing twice, nothing lost, and no harm where it cannot write."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from work import LONG, fail, rest

import loadspan
from loadspan.instrument import state, telemetry
from loadspan.instrument.exporter import LoadspanSpanExporter, encode
from loadspan.instrument.live import recorder

if TYPE_CHECKING:
    from collections.abc import Iterator


class Setup:
    """A provider with a batch in front of the embedded exporter, and beside it the spans in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory = InMemorySpanExporter()
        self.exporter = LoadspanSpanExporter(folder)
        self.provider = TracerProvider(resource=Resource({"service.name": "a test"}), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.memory))
        self.provider.add_span_processor(BatchSpanProcessor(self.exporter, schedule_delay_millis=60_000))

    def spans(self) -> list[Any]:
        """Every span on disk, as protobuf reads it."""
        return [span for line in lines(self.folder) for span in parsed(line)]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    """Instrumented, with a run folder."""
    monkeypatch.setattr(state, "folder", None)
    monkeypatch.setattr(telemetry, "writers", [])
    setup = Setup(tmp_path / "run")
    loadspan.LoadspanInstrumentor().instrument(tracer_provider=setup.provider)
    yield setup
    loadspan.LoadspanInstrumentor().uninstrument()
    setup.provider.shutdown()
    recorder.abandon()


def lines(folder: Path) -> list[str]:
    """Lines of all trace files of a run; every one of them ends."""
    texts = [path.read_text() for path in sorted(folder.glob("trace-*.jsonl"))]
    assert all(text.endswith("\n") for text in texts)
    return [line for text in texts for line in text.splitlines()]


def parsed(line: str) -> list[Any]:
    """Spans of one line: valid OTLP JSON is protobuf's JSON with identifiers in hexadecimal instead of base64."""

    def identifiers(thing: Any) -> Any:
        if isinstance(thing, dict):
            return {
                key: base64.b64encode(bytes.fromhex(value)).decode() if key in {"traceId", "spanId", "parentSpanId"} else identifiers(value)
                for key, value in thing.items()
            }
        return [identifiers(item) for item in thing] if isinstance(thing, list) else thing

    data = json_format.ParseDict(identifiers(json.loads(line)), TracesData())
    return [span for resource in data.resource_spans for scope in resource.scope_spans for span in scope.spans]


def value(any_value: Any) -> Any:
    """A protobuf AnyValue as Python has it."""
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return tuple(value(item) for item in any_value.array_value.values)
    return getattr(any_value, kind)


def attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: value(pair.value) for pair in pairs}


def some_loads(setup: Setup, count: int = 3) -> None:
    tracer = setup.provider.get_tracer("host", "1.2")
    for index in range(count):
        with tracer.start_as_current_span("request"), loadspan.load(f"model-{index}"), loadspan.stage("read", size=10):
            rest()


# Form


def test_every_line_is_valid_otlp_with_everything_a_span_has(disk: Setup) -> None:
    tracer = disk.provider.get_tracer("host", "1.2")
    facts = {"big": 2**62, "tags": ["a", "b"], "ok": True, "ratio": 0.5, "name": "Zürich ☃ \x00"}
    with tracer.start_as_current_span("request", attributes=facts):
        with loadspan.load("sdxl"), loadspan.stage("decrypt", size=2**53 + 1, path="/nowhere/\u2028model") as handle:
            rest()
            handle.set(deferred=True)
        with pytest.raises(ValueError, match="bad"), loadspan.load(), loadspan.stage("read"):
            fail(ValueError("bad \ud800 text"))
    disk.provider.force_flush()
    found = {span.span_id: span for span in disk.spans()}
    expected = {span.context.span_id.to_bytes(8, "big"): span for span in disk.memory.get_finished_spans()}
    assert found.keys() == expected.keys()
    for key, span in expected.items():
        line = found[key]
        assert line.name == span.name
        assert line.trace_id == span.context.trace_id.to_bytes(16, "big")
        assert line.parent_span_id == (span.parent.span_id.to_bytes(8, "big") if span.parent is not None else b"")
        assert (line.start_time_unix_nano, line.end_time_unix_nano) == (span.start_time, span.end_time)
        assert line.kind == span.kind.value + 1
        assert line.status.code == span.status.status_code.value
        if "bad" not in str(span.status.description):
            assert attributes(line.attributes) == dict(span.attributes)
    failed = next(span for span in found.values() if span.name == "read")
    assert failed.status.code == 2
    assert failed.status.message == "bad ? text"
    [event] = failed.events
    assert event.name == "exception"
    assert attributes(event.attributes)["exception.message"] == "bad ? text"


def test_resource_scope_and_links_are_kept(disk: Setup) -> None:
    tracer = disk.provider.get_tracer("host", "1.2")
    with tracer.start_as_current_span("first") as first:
        pass
    from opentelemetry.trace import Link

    with tracer.start_as_current_span("second", links=[Link(first.get_span_context())]):
        pass
    with loadspan.load():
        pass
    disk.provider.force_flush()
    data = [json.loads(line)["resourceSpans"][0] for line in lines(disk.folder)]
    for resource in data:
        assert {pair["key"]: pair["value"] for pair in resource["resource"]["attributes"]}["service.name"] == {"stringValue": "a test"}
    scopes = [scope["scope"] for resource in data for scope in resource["scopeSpans"]]
    assert {"name": "host", "version": "1.2"} in scopes
    assert {"name": "loadspan", "version": loadspan.__version__} in scopes
    second = next(span for span in disk.spans() if span.name == "second")
    assert [link.span_id for link in second.links] == [first.get_span_context().span_id.to_bytes(8, "big")]


def test_numbers_that_json_has_not_are_text(disk: Setup) -> None:
    span = disk.provider.get_tracer("host").start_span("odd")
    span.set_attributes({"nan": float("nan"), "infinite": float("-inf"), "huge": 2**70})
    span.end()
    [line] = parsed(encode([span]))  # type: ignore[list-item]
    assert attributes(line.attributes) == {"nan": "nan", "infinite": "-inf", "huge": str(2**70)}


def test_a_file_name_that_is_no_text_harms_no_line(disk: Setup, tmp_path: Path) -> None:
    import torch

    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfemodel.pt")
    torch.save({"weight": torch.zeros(10)}, path)
    with loadspan.load():
        torch.load(path, weights_only=True)
        rest()
    spans = disk.spans()
    assert [attributes(span.attributes)["file.path"] for span in spans if span.name == "deserialize"] == [f"{tmp_path}/??model.pt"]
    for span in disk.memory.get_finished_spans():
        json.dumps(dict(span.attributes or {}), ensure_ascii=False).encode()  # as every other exporter has to


# Files


def test_files_are_private_and_one_per_process(disk: Setup) -> None:
    some_loads(disk)
    disk.provider.force_flush()
    [path] = disk.folder.glob("trace-*.jsonl")
    assert path.name == f"trace-{os.getpid()}.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(disk.folder.stat().st_mode) == 0o700


def test_loads_are_on_disk_when_they_end_others_when_the_batch_is_sent_and_none_twice(disk: Setup) -> None:
    some_loads(disk)
    early = Counter(span.name for span in disk.spans())
    assert early == {"load model": 3, "read": 3}
    disk.provider.force_flush()
    assert Counter(span.name for span in disk.spans()) == {"load model": 3, "read": 3, "request": 3}
    assert len({span.span_id for span in disk.spans()}) == 9


def test_stages_are_on_disk_before_their_load_ends(disk: Setup) -> None:
    with loadspan.load():
        with loadspan.stage("read"):
            rest()
        limit = time.monotonic() + 2
        while not (disk.folder.exists() and [span.name for span in disk.spans()] == ["read"]):
            assert time.monotonic() < limit
            time.sleep(0.02)


def test_lines_of_many_threads_do_not_mix(disk: Setup) -> None:
    threads = [threading.Thread(target=some_loads, args=(disk, 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    disk.provider.force_flush()
    spans = disk.spans()
    assert len(spans) == len({span.span_id for span in spans}) == 240


def test_after_shutdown_nothing_is_taken(disk: Setup) -> None:
    some_loads(disk, 1)
    disk.provider.shutdown()
    before = lines(disk.folder)
    some_loads(disk, 1)
    assert lines(disk.folder) == before
    assert telemetry.writers == []


def test_the_folder_may_come_from_the_environment_and_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "folder", None)
    monkeypatch.setattr(telemetry, "writers", [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOADSPAN_DIR", "here")
    named = LoadspanSpanExporter()
    monkeypatch.delenv("LOADSPAN_DIR")
    dated = LoadspanSpanExporter()
    monkeypatch.chdir("/")
    assert named.folder == tmp_path / "here"
    assert dated.folder.parent == tmp_path / "loadspan-runs"
    assert dated.folder.name.endswith(f"-{os.getpid()}")


def test_it_is_known_by_its_name() -> None:
    [found] = entry_points(group="opentelemetry_traces_exporter", name="loadspan")
    assert found.load() is LoadspanSpanExporter


# Processes of their own

PRELUDE = """
import logging, os, resource, signal, sys, threading, time
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
import loadspan
from loadspan.instrument.exporter import LoadspanSpanExporter
logging.basicConfig(format="%(levelname)s %(message)s")
provider = TracerProvider()
exporter = LoadspanSpanExporter(sys.argv[1])
provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=60_000))
loadspan.LoadspanInstrumentor().instrument(tracer_provider=provider)
def load(name):
    with loadspan.load(name), loadspan.stage("read", size=10):
        time.sleep(0.002)
"""


def child(script: str, folder: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + script, str(folder)], capture_output=True, text=True, check=False, timeout=60
    )


def models(folder: Path) -> Counter[str]:
    """Loads on disk by the name of their model."""
    spans = [span for line in lines(folder) for span in parsed(line)]
    return Counter(attributes(span.attributes)["loadspan.model.name"] for span in spans if span.name == "load model")


def test_a_forked_child_writes_a_file_of_its_own(tmp_path: Path) -> None:
    script = """
load("before")
if os.fork() == 0:
    load("child")
    os._exit(0)
os.wait()
load("after")
"""
    done = child(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert models(tmp_path) == {"before": 1, "child": 1, "after": 1}
    assert len(list(tmp_path.glob("trace-*.jsonl"))) == 2


def test_a_fork_in_the_middle_of_a_load_leaves_it_to_the_parent(tmp_path: Path) -> None:
    script = """
with loadspan.load("parent"):
    with loadspan.stage("read"):
        time.sleep(0.002)
        pid = os.fork()
        if pid == 0:
            load("child")
            os._exit(0)
        os.wait()
"""
    done = child(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert models(tmp_path) == {"parent": 1, "child": 1}


@pytest.mark.parametrize("leave", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_had_ended_survives_the_death_of_the_process(leave: str, tmp_path: Path) -> None:
    done = child(f"load('one')\nload('two')\n{leave}\n", tmp_path)
    assert done.returncode == (3 if "_exit" in leave else -signal.SIGKILL)
    assert models(tmp_path) == {"one": 1, "two": 1}


def test_a_host_that_closes_every_descriptor_loses_nothing(tmp_path: Path) -> None:
    done = child("load('one')\nos.closerange(3, 512)\nload('two')\n", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert models(tmp_path) == {"one": 1, "two": 1}


UNWRITABLE = """
for _ in range(5):
    load("lost")
assert loadspan.stage("read")(lambda: 7)() == 7
with provider.get_tracer("host").start_as_current_span("request"):
    pass
assert provider.force_flush()
print("the host is well")
"""


def test_a_folder_that_cannot_be_written_is_said_once_and_the_host_is_well(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = child(UNWRITABLE, tmp_path / "file" / "run")
    assert (done.returncode, done.stdout) == (0, "the host is well\n")
    said = done.stderr.splitlines()
    assert len(said) == 1, done.stderr
    assert said[0].startswith("WARNING loadspan: ")
    assert said[0].endswith("Not a directory. Spans of this process are not kept on disk.")


def test_a_failed_write_is_reported_to_the_sdk(disk: Setup, caplog: pytest.LogCaptureFixture) -> None:
    disk.exporter.folder = Path("/proc/nowhere")
    span = disk.provider.get_tracer("host").start_span("foreign")
    span.end()
    assert disk.exporter.export([span]) is SpanExportResult.FAILURE  # type: ignore[list-item]
    assert disk.exporter.export([span]) is SpanExportResult.FAILURE  # type: ignore[list-item]
    assert len(caplog.records) == 1


FILL = """
for index in range(400):
    load("x" * 500)
print("the host is well")
"""


def check_full(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    __tracebackhide__ = True
    assert (done.returncode, done.stdout) == (0, "the host is well\n"), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Spans of this process are not kept on disk." in done.stderr
    assert 10 < models(folder).total() < 400  # whole lines up to the end, and no more


def test_a_file_that_may_not_grow_keeps_whole_lines(tmp_path: Path) -> None:
    check_full(child("resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))" + FILL, tmp_path), tmp_path)


def test_a_full_disk_keeps_whole_lines(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a small filesystem; the test before this one limits the file instead")
    try:
        check_full(child(FILL, folder), folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607 - wherever it is, as mount above


def test_bytes_written_are_few(disk: Setup) -> None:
    """A load of five stages is a few kilobytes."""
    with loadspan.load("model"):
        for name in ("read", "decrypt", "deserialize", "load_state_dict", "to_device"):
            with loadspan.stage(name, size=10):
                rest(LONG)
    assert sum(map(len, lines(disk.folder))) < 10_000
