"""The reader: what can be read is shown, what cannot is said in one line, and nothing makes it fail otherwise."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import traces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadspan.errors import UserError
from loadspan.model import Load, OpenStage, Stage
from loadspan.report import terminal, timeline, tracefile

if TYPE_CHECKING:
    from pathlib import Path


def outline(load: Load) -> Any:
    """Names of a load and all below it."""
    return [load.name, *(outline(child) for child in load.children)] if load.children else load.name


def write(folder: Path, *lines: str, pid: int = 4242) -> Path:
    path = folder / f"trace-{pid}.jsonl"
    path.write_text("".join(lines))
    return path


def test_a_run_folder_becomes_loads_with_nested_stages(tmp_path: Path) -> None:
    write(tmp_path, *(traces.line(span) for span in traces.founding_load()))
    recording = tracefile.read(tmp_path)
    assert recording.warnings == []
    (load,) = recording.loads
    assert outline(load) == ["load model", ["decrypt", "read"], "to_device"]
    assert (load.pid, load.trace_id, load.duration, load.text("loadspan.model.name")) == (4242, traces.TRACE, 12.0, "sdxl-base")
    assert load.partition == {"read": 6.25, "decrypt": 1.75, "to_device": 3.9, "other": 0.1}
    assert load.attributes["loadspan.other.frames"] == ("build_unet (unet.py:311) 80 %",)
    assert load.attributes["loadspan.implicit"] is True
    assert [type(child) for child in load.children] == [Stage, Stage]


def test_a_single_file_reads_like_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path, *(traces.line(span) for span in traces.founding_load()))
    assert tracefile.read(path).loads == tracefile.read(tmp_path).loads


def test_stages_of_child_processes_join_the_load_of_their_parent(tmp_path: Path) -> None:
    *stages, root = traces.founding_load()
    write(tmp_path, traces.line(root), pid=1)
    write(tmp_path, traces.line(*stages, pid=2), pid=2)
    (load,) = tracefile.read(tmp_path).loads
    assert outline(load) == ["load model", ["decrypt", "read"], "to_device"]


def test_an_inner_load_is_a_child_and_a_host_span_between_is_skipped(tmp_path: Path) -> None:
    host = traces.line(traces.span("GET /", "h0", None, 0, 9), traces.span("task", "h1", "a0", 1, 5), scope="flask")
    ours = traces.line(
        traces.span("read", "a2", "a1", 2, 3), traces.span("load model", "a1", "h1", 2, 4), traces.span("load model", "a0", "h0", 1, 6)
    )
    write(tmp_path, host, ours)
    (load,) = tracefile.read(tmp_path).loads
    assert outline(load) == ["load model", ["load model", "read"]]


def test_a_torn_last_line_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    lines = [traces.line(span) for span in traces.founding_load()]
    path = write(tmp_path, *lines, lines[0][:200])
    recording = tracefile.read(tmp_path)
    assert recording.warnings == [f"{path} line 5 is incomplete. Showing the 4 lines before it."]
    assert len(recording.loads) == 1


def test_foreign_lines_between_are_counted_and_the_rest_is_shown(tmp_path: Path) -> None:
    lines = [traces.line(span) for span in traces.founding_load()]
    path = write(tmp_path, lines[0], "not json\n", *lines[1:], '{"resourceLogs": []}\n')
    recording = tracefile.read(tmp_path)
    assert recording.warnings == [f"{path} lines 2, 6 are not OTLP JSON. Showing the other 4 lines."]
    assert len(recording.loads) == 1


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "empty. Record one: loadspan run -- python serve.py"),
        (b'{"a": 1}\n', "not a trace file, line 1 is not OTLP JSON. Pass a run folder or a trace-PID.jsonl."),
        (b"hello\nworld\n", "not a trace file, line 1 is not OTLP JSON. Pass a run folder or a trace-PID.jsonl."),
        (bytes(range(256)) * 100, "not a trace file, line 1 is not OTLP JSON. Pass a run folder or a trace-PID.jsonl."),
        (b"[" * 1_000_000 + b"\n", "not a trace file, line 1 is not OTLP JSON. Pass a run folder or a trace-PID.jsonl."),
        (
            b'{"resourceSpans": ' + b"9" * 5000 + b"}\n",
            "not a trace file, line 1 is not OTLP JSON. Pass a run folder or a trace-PID.jsonl.",
        ),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path: Path, content: bytes, wrong: str) -> None:
    path = tmp_path / "trace-1.jsonl"
    path.write_bytes(content)
    for given_path in (path, tmp_path):
        with pytest.raises(UserError) as caught:
            tracefile.read(given_path)
        assert str(caught.value) == f"{path}: {wrong}"


def test_a_missing_path_and_an_empty_folder_say_how_to_record(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such file or folder\. Record one"):
        tracefile.read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no trace file \(\*\.jsonl\)\. Record one: loadspan run -- python serve\.py"):
        tracefile.read(tmp_path)


def test_one_foreign_file_does_not_hide_the_others(tmp_path: Path) -> None:
    write(tmp_path, *(traces.line(span) for span in traces.founding_load()))
    (tmp_path / "notes.jsonl").write_text("hello\n")
    recording = tracefile.read(tmp_path)
    assert len(recording.loads) == 1
    assert len(recording.warnings) == 1


def test_attributes_of_a_wrong_type_are_left_out_and_the_others_kept(tmp_path: Path) -> None:
    span = traces.span("load model", "a0", None, 0, 1, good=1)
    span["attributes"] += [
        {"key": "text", "value": {"stringValue": 5}},
        {"key": "whole", "value": {"intValue": "many"}},
        {"key": "huge", "value": {"intValue": "9" * 4000}},
        {"key": "real", "value": {"doubleValue": "NaN"}},
        {"key": "truth", "value": {"boolValue": "yes"}},
        {"key": "list", "value": {"arrayValue": None}},
        {"key": 7, "value": {"intValue": "7"}},
        {"key": "kind", "value": {"kvlistValue": {}}},
        {"value": {"intValue": "7"}},
        None,
        {"key": "last", "value": {"doubleValue": 2}},
    ]
    write(tmp_path, traces.line(span))
    (load,) = tracefile.read(tmp_path).loads
    assert load.attributes == {"good": 1, "last": 2.0}


def test_a_killed_load_is_rebuilt_from_the_state_file(tmp_path: Path) -> None:
    write(tmp_path, traces.line(traces.span("decrypt", "a1", "a0", 0, 4), traces.span("read", "a3", "lost", 4.5, 5)))
    reading = {"name": "deserialize", "start": traces.at(4), "size": 12_300_000_000, "file_size": 20_100_000_000, "file": "base.enc"}
    traces.write_state(tmp_path, 4242, [traces.open_load("a0", 0, reading, model="sdxl", size=14 * traces.GB)], updated=9)
    recording = tracefile.read(tmp_path)
    (load,) = recording.loads
    assert (load.end, load.pid, load.text("loadspan.model.name"), load.number("loadspan.size")) == (None, 4242, "sdxl", 14e9)
    assert load.open_stages == (OpenStage(name="deserialize", size=12_300_000_000, file_size=20_100_000_000),)
    assert outline(load) == ["load model", "decrypt", "deserialize", "read"]
    assert [child.end is None for child in load.children] == [False, True, False]
    assert not recording.running(load, traces.at(60))
    assert recording.running(load, traces.at(10))


def test_a_state_file_alone_is_enough(tmp_path: Path) -> None:
    traces.write_state(tmp_path, 7, [traces.open_load("a0", 0)], updated=9)
    (load,) = tracefile.read(tmp_path).loads
    assert (load.end, load.pid, load.children) == (None, 7, ())


def test_a_state_older_than_the_trace_adds_nothing(tmp_path: Path) -> None:
    write(tmp_path, *(traces.line(span) for span in traces.founding_load()))
    traces.write_state(tmp_path, 4242, [traces.open_load("a0", 0)], updated=11.9)
    (load,) = tracefile.read(tmp_path).loads
    assert load.duration == 12.0


def test_a_killed_load_without_a_state_file_is_rebuilt_from_its_stages(tmp_path: Path) -> None:
    spans = [traces.span("read", "a1", "a0", 3, 4, loadspan__model__name="flux"), traces.span("decrypt", "a2", "a0", 4, 6)]
    write(tmp_path, traces.line(*spans))
    (load,) = tracefile.read(tmp_path).loads
    assert (load.span_id, load.start, load.end, load.text("loadspan.model.name")) == ("a0", traces.at(3), None, "flux")
    assert outline(load) == ["load model", "read", "decrypt"]


def test_a_broken_state_file_is_as_good_as_none(tmp_path: Path) -> None:
    write(tmp_path, *(traces.line(span) for span in traces.founding_load()))
    for pid, text in enumerate(("", "[]", "{", '{"pid": "x"}', '{"pid": 5, "updated": 1, "loads": [3, {"trace_id": []}]}'), 10):
        (tmp_path / f"state-{pid}.json").write_text(text)
    assert len(tracefile.read(tmp_path).loads) == 1


def test_spans_written_twice_count_once_and_different_spans_of_one_id_are_kept(tmp_path: Path) -> None:
    lines = [traces.line(span) for span in traces.founding_load()]
    other = traces.line(traces.span("convert", "a1", "a0", 9, 10))
    write(tmp_path, *lines, *lines, other)
    (load,) = tracefile.read(tmp_path).loads
    assert outline(load) == ["load model", ["decrypt", "read"], "to_device", "convert"]


def test_parents_in_a_circle_lose_no_span(tmp_path: Path) -> None:
    circle = [traces.span("read", "a1", "a2", 1, 2), traces.span("decrypt", "a2", "a3", 0, 3), traces.span("convert", "a3", "a1", 1, 2)]
    write(tmp_path, traces.line(*circle, traces.span("load model", "b0", "b0", 5, 6), traces.span("read", "c0", "c0", 7, 8)))
    loads = tracefile.read(tmp_path).loads
    assert [outline(load) for load in loads] == [["load model", ["decrypt", ["read", "convert"]]], "load model", ["load model", "read"]]


def test_a_chain_of_twenty_thousand_parents_is_read_and_drawn(tmp_path: Path) -> None:
    chain = [traces.span("read", f"{i + 1:x}", f"{i:x}", i, 20_001) for i in range(20_000)]
    write(tmp_path, traces.line(traces.span("load model", "0", None, 0, 20_002), *chain))
    (load,) = tracefile.read(tmp_path).loads
    assert sum(1 for _ in load.stages) == 20_000
    assert len(terminal.lines(timeline.waterfall(load), terminal.Look())) < 100


_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["a0", "a1", "load model", "read", "2"])
)
_ANY = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
_VALUES = st.dictionaries(st.sampled_from(["stringValue", "intValue", "doubleValue", "boolValue", "arrayValue"]), _ANY, max_size=2)
_KEYS = st.sampled_from(
    ["loadspan.size", "loadspan.partition.other", "loadspan.coverage", "loadspan.throughput", "process.pid", "error.type"]
)
_SPANS = st.fixed_dictionaries(
    {},
    optional={
        "name": _SCALARS,
        "traceId": st.sampled_from(["t", "u"]) | _ANY,
        "spanId": st.sampled_from(["a0", "a1", "a2"]) | _ANY,
        "parentSpanId": st.sampled_from(["a0", "a1", "a2"]) | _ANY,
        "startTimeUnixNano": st.integers(0, 1 << 64).map(str) | st.integers() | _ANY,
        "endTimeUnixNano": st.integers(0, 1 << 64).map(str) | st.integers() | _ANY,
        "status": st.fixed_dictionaries({}, optional={"code": _ANY, "message": _ANY}) | _ANY,
        "attributes": st.lists(st.fixed_dictionaries({}, optional={"key": _KEYS | _ANY, "value": _VALUES | _ANY}), max_size=4) | _ANY,
    },
)
_STATES = st.fixed_dictionaries(
    {"pid": st.just(1), "updated": st.integers(0, 1 << 62)},
    optional={
        "loads": st.lists(
            st.fixed_dictionaries(
                {"trace_id": st.sampled_from(["t", "u"]), "span_id": st.sampled_from(["a0", "a1"]), "start": st.integers(1, 1 << 62)},
                optional={"parent_id": _ANY, "size": _ANY, "model": _ANY, "stages": _ANY | st.lists(_ANY)},
            ),
            max_size=3,
        )
    },
)


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spans=st.lists(_SPANS | _ANY, max_size=6), state=_STATES, tail=st.binary(max_size=20))
def test_whatever_a_file_holds_is_drawn_or_refused(tmp_path: Path, spans: list[Any], state: dict[str, Any], tail: bytes) -> None:
    (tmp_path / "trace-1.jsonl").write_bytes(traces.line(*spans).encode() + tail)
    (tmp_path / "state-1.json").write_text(json.dumps(state))
    try:
        recording = tracefile.read(tmp_path)
    except UserError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either outcome is right
        return
    for load in recording.loads:
        for line in terminal.lines(timeline.waterfall(load), terminal.Look(width=80)):
            assert line.isprintable()
            assert len(line) <= 80


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError):
        tracefile.read(path)
