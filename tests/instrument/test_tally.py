"""Fine calls: one tally whatever their number, with what can be said of them and nothing else."""

from __future__ import annotations

import gc
import itertools
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from work import MB, fine, many_tensors, rest

import loadspan
from loadspan.instrument import quick as quick_module
from loadspan.instrument import stages as stages_module
from loadspan.instrument.patching import Target
from recorded import Spans, outline, walk

if TYPE_CHECKING:
    from pathlib import Path

    from recorded import Tree


def only(load: Tree, name: str) -> Tree:
    """The one stage *name* of a load."""
    found = [span for span in walk(load) if span["name"] == name]
    assert len(found) == 1, outline(load)
    return found[0]


def test_a_hundred_fine_calls_are_one_span_as_long_as_they_took(spans: Spans) -> None:
    with loadspan.load("model"):
        rest(0.005)
        for _ in range(100):
            fine(spans.recorder, "read", 1000, seconds=0.0001)
        rest(0.005)
    load = spans.load()
    assert outline(load) == [{"load model": ["read"]}]
    tally = load["children"][0]
    attributes = tally["attributes"]
    assert attributes["loadspan.stage"] == "read"
    assert attributes["loadspan.operation.count"] == 100
    assert attributes["loadspan.size"] == 100_000
    assert attributes["loadspan.concurrency"] == 1
    assert 0.01 <= attributes["loadspan.busy_time"] <= tally["duration"]
    assert tally["duration"] == pytest.approx(load["attributes"]["loadspan.partition.read"], abs=1e-6)
    assert attributes["loadspan.operation.extent"] >= tally["duration"]
    assert tally["start"] - load["start"] >= 5e6
    assert load["end"] - tally["end"] >= 5e6
    assert attributes["loadspan.throughput"] == pytest.approx(100_000 / attributes["loadspan.busy_time"])
    assert attributes["thread.name"] == "MainThread"


def test_calls_that_take_turns_are_drawn_beside_each_other_and_none_has_the_time_of_the_other(spans: Spans) -> None:
    with loadspan.load("model"):
        for _ in range(20):
            fine(spans.recorder, "read", 1000, seconds=0.002)
            fine(spans.recorder, "decrypt", 1000, seconds=0.001)
            rest(0.0005)
    load = spans.load()
    read, decrypt = only(load, "read"), only(load, "decrypt")
    for span, seconds in ((read, 0.04), (decrypt, 0.02)):
        assert span["duration"] == pytest.approx(load["attributes"][f"loadspan.partition.{span['name']}"], abs=1e-6)
        assert span["attributes"]["loadspan.operation.extent"] >= 0.06
        assert span["attributes"]["loadspan.busy_time"] >= seconds
    assert read["end"] < decrypt["start"]
    assert decrypt["end"] <= load["end"]


def test_reads_inside_decryption_are_drawn_as_long_as_they_took_of_it(spans: Spans) -> None:
    with loadspan.load("model"), loadspan.stage("decrypt"):
        for _ in range(10):
            fine(spans.recorder, "read", 1000, seconds=0.001)
            rest(0.003)
    load = spans.load()
    read, decrypt = only(load, "read"), only(load, "decrypt")
    found = load["attributes"]
    # What the recorder needed for the reads is inside the bar of what was decrypted.
    around = decrypt["duration"] - read["duration"] - found["loadspan.partition.decrypt"]
    assert -1e-5 < around < found["loadspan.partition.loadspan"] + 1e-5


def test_short_stages_that_take_turns_are_drawn_as_long_as_they_took(spans: Spans) -> None:
    with loadspan.load("model"):
        for _ in range(50):
            for name in ("read", "decrypt"):
                with loadspan.stage(name, size=10):
                    rest(0.0003)
    load = spans.load()
    for name in ("read", "decrypt"):
        seconds = sum(span["duration"] for span in walk(load) if span["name"] == name)
        assert seconds == pytest.approx(load["attributes"][f"loadspan.partition.{name}"], abs=1e-6)
        assert seconds >= 0.015


def test_calls_between_stages_are_drawn_between_them(spans: Spans) -> None:
    with loadspan.load("model"):
        for _ in range(5):
            for _ in range(3):
                fine(spans.recorder, "read", 1000, seconds=0.001)
            with loadspan.stage("load_state_dict"):
                rest(0.002)
    load = spans.load()
    assert outline(load) == [{"load model": ["read", "load_state_dict"] * 5}]
    for before, after in itertools.pairwise(load["children"]):
        assert before["end"] < after["start"]
    reads = [span for span in load["children"] if span["name"] == "read"]
    assert sum(span["attributes"]["loadspan.size"] for span in reads) == 15_000
    assert sum(span["duration"] for span in reads) == pytest.approx(load["attributes"]["loadspan.partition.read"], abs=1e-6)


def test_calls_of_unknown_size_have_no_size_and_no_throughput(spans: Spans) -> None:
    with loadspan.load():
        fine(spans.recorder, "decrypt")
        fine(spans.recorder, "decrypt")
    attributes = spans.load()["children"][0]["attributes"]
    assert "loadspan.size" not in attributes
    assert "loadspan.throughput" not in attributes
    assert attributes["loadspan.operation.count"] == 2


def test_tensors_of_a_mapped_file_are_deferred_and_have_no_throughput(spans: Spans, tmp_path: Path) -> None:
    import safetensors

    path = many_tensors(tmp_path, 50)
    with loadspan.load(), safetensors.safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - a handle is no mapping
            file.get_tensor(key)
    attributes = only(spans.load(), "deserialize")["attributes"]
    assert attributes["loadspan.deferred"] is True
    assert "loadspan.throughput" not in attributes
    assert attributes["loadspan.operation.count"] == 50
    assert attributes["loadspan.size"] == 50 * 16
    assert attributes["file.path"] == str(path)
    assert attributes["file.size"] == path.stat().st_size
    assert attributes["loadspan.format"] == "safetensors"
    assert attributes["loadspan.read.method"] == "mmap"
    assert "loadspan.cache.cold" not in attributes


def test_calls_of_two_threads_at_once_overlap_and_are_busy_for_longer_than_they_last(spans: Spans) -> None:
    together = threading.Barrier(2)

    def read() -> None:
        together.wait()
        for _ in range(3):
            fine(spans.recorder, "read", 10, seconds=0.02)

    with loadspan.load():
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    tally = only(spans.load(), "read")
    assert tally["attributes"]["loadspan.concurrency"] == 2
    assert tally["attributes"]["loadspan.operation.count"] == 6
    assert tally["attributes"]["loadspan.busy_time"] > tally["duration"]
    assert "thread.name" not in tally["attributes"]


def test_the_five_slowest_are_named_the_slowest_first(spans: Spans) -> None:
    slow = []
    with loadspan.load():
        for index in range(20):
            call = spans.recorder.begin_fine("read")
            if index % 3 == 0:
                rest(0.002 * (index + 1))
            took = spans.recorder.end_fine(call, MB)
            if took:
                slow.append((took, f"tensor.{index}"))
                spans.recorder.name_slow(call, took, MB, f"tensor.{index}")
    slowest = only(spans.load(), "read")["attributes"]["loadspan.slowest"]
    assert [line.split()[0] for line in slowest] == [name for _, name in sorted(slow, reverse=True)[:5]]
    assert all(" 1.00 MB " in line for line in slowest), slowest


def test_names_of_tensors_are_read_off_the_calls(spans: Spans, tmp_path: Path) -> None:
    import safetensors

    path = many_tensors(tmp_path, 8)
    with loadspan.load(), safetensors.safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - as above
            file.get_tensor(key)
    slowest = only(spans.load(), "deserialize")["attributes"]["loadspan.slowest"]
    assert len(slowest) == 5
    assert all(line.startswith("layers.") and " 16 B " in line for line in slowest), slowest


def test_of_attributes_a_tally_keeps_what_its_calls_have_in_common(spans: Spans) -> None:
    def row(**facts: Any) -> Target:
        return Target(module="m", attribute="a", why="w", stage="read", facts=lambda *_: facts)

    with loadspan.load():
        fine(spans.recorder, "read", row=row(**{"loadspan.format": "gguf", "loadspan.read.method": "direct"}), path="/nowhere/a")
        fine(spans.recorder, "read", row=row(**{"loadspan.format": "gguf", "loadspan.read.method": "mmap"}), path="/nowhere/b")
    attributes = only(spans.load(), "read")["attributes"]
    assert attributes["loadspan.format"] == "gguf"
    assert "loadspan.read.method" not in attributes
    assert attributes["loadspan.file.count"] == 2
    assert "file.size" not in attributes  # neither file exists: its size is unknown, not 0


def test_of_nested_calls_of_one_stage_the_outermost_counts(spans: Spans) -> None:
    with loadspan.load():
        outer = spans.recorder.begin_fine("read")
        assert spans.recorder.begin_fine("read") is None
        spans.recorder.end_fine(outer, 10)
    attributes = only(spans.load(), "read")["attributes"]
    assert attributes["loadspan.operation.count"] == 1
    assert attributes["loadspan.size"] == 10


def test_a_fine_call_in_one_of_another_stage_takes_its_time_from_it(spans: Spans) -> None:
    with loadspan.load():
        outer = spans.recorder.begin_fine("decrypt")
        rest(0.01)
        fine(spans.recorder, "read", 10, seconds=0.08)
        spans.recorder.end_fine(outer, 10)
    load = spans.load()
    assert sorted(outline(load["children"])) == ["decrypt", "read"]
    assert load["attributes"]["loadspan.partition.read"] >= 0.08
    assert 0.01 <= load["attributes"]["loadspan.partition.decrypt"] < 0.08


def test_a_fine_call_in_a_coarse_one_of_the_same_stage_is_counted_there(spans: Spans) -> None:
    with loadspan.load(), loadspan.stage("read"):
        for _ in range(3):
            fine(spans.recorder, "read", 100, seconds=0.001)
    load = spans.load()
    assert outline(load) == [{"load model": ["read"]}]
    attributes = load["children"][0]["attributes"]
    assert attributes["loadspan.size"] == 300
    assert attributes["loadspan.operation.count"] == 3
    assert "loadspan.busy_time" not in attributes


def test_a_tally_belongs_to_the_stage_in_which_its_calls_were_made(spans: Spans) -> None:
    with loadspan.load():
        with loadspan.stage("deserialize"):
            rest()
            fine(spans.recorder, "read", 1)
        fine(spans.recorder, "read", 1)
        with loadspan.stage("merge_lora"):
            rest()
            fine(spans.recorder, "read", 1)
    assert outline(spans.load()) == [{"load model": [{"deserialize": ["read"]}, "read", {"merge_lora": ["read"]}]}]


def test_bytes_of_calls_in_a_stage_count_for_the_load(spans: Spans) -> None:
    with loadspan.load(), loadspan.stage("deserialize"):
        rest()
        for _ in range(7):
            fine(spans.recorder, "read", 1000)
    assert spans.load()["attributes"]["loadspan.size"] == 7000


def test_a_failed_call_marks_the_tally_and_adds_no_bytes(spans: Spans) -> None:
    error = OSError(5, "Input/output error")
    with loadspan.load():
        fine(spans.recorder, "read", 10)
        call = spans.recorder.begin_fine("read")
        spans.recorder.end_fine(call, None, error)
        fine(spans.recorder, "read", 10)
    load = spans.load()
    tally = only(load, "read")
    assert tally["error"] == "[Errno 5] Input/output error"
    assert tally["attributes"]["error.type"] == "OSError"
    assert tally["attributes"]["loadspan.size"] == 20
    assert [name for name, _ in tally["events"]] == ["exception"]
    assert load["error"] is None  # the program coped with it


def test_short_coarse_calls_are_tallied(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stages_module.SHORT == 1_000_000
    monkeypatch.setattr(stages_module, "SHORT", 50_000_000)  # a busy machine may need a millisecond for nothing
    with loadspan.load():
        for _ in range(30):
            with loadspan.stage("convert", size=100):
                pass
        with loadspan.stage("convert", size=5):
            rest(0.06)
    load = spans.load()
    assert outline(load) == [{"load model": ["convert", "convert"]}]
    tally, stage = load["children"]
    assert tally["attributes"]["loadspan.operation.count"] == 30
    assert tally["attributes"]["loadspan.size"] == 3000
    assert "loadspan.operation.count" not in stage["attributes"]
    assert stage["attributes"]["loadspan.size"] == 5
    assert load["attributes"]["loadspan.size"] == 3005


def test_what_was_tallied_in_a_short_stage_is_kept(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages_module, "SHORT", 50_000_000)
    with loadspan.load(), loadspan.stage("merge_lora"):
        rest(0.06)
        for _ in range(20):
            with loadspan.stage("deserialize"):
                fine(spans.recorder, "read", 10)
    load = spans.load()
    assert outline(load) == [{"load model": [{"merge_lora": ["deserialize", "read"]}]}]
    read = only(load, "read")
    assert read["attributes"]["loadspan.operation.count"] == 20
    assert read["attributes"]["loadspan.size"] == 200


def test_a_short_stage_with_a_span_of_the_host_in_it_has_a_span(spans: Spans) -> None:
    with loadspan.load(), loadspan.stage("download"), spans.provider.get_tracer("http").start_as_current_span("GET"):
        pass
    assert outline(spans.load()) == [{"load model": [{"download": ["GET"]}]}]


def test_a_long_tally_is_shown_in_segments_while_it_runs(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_module, "SEGMENT", 20_000_000)
    with loadspan.load():
        for index in range(30):
            fine(spans.recorder, "read", 10, seconds=0.004)
            if index == 15:
                early = len(spans.all())
    assert early >= 2
    tallies = spans.load()["children"]
    assert 4 <= len(tallies) <= 15
    assert sum(tally["attributes"]["loadspan.operation.count"] for tally in tallies) == 30
    assert sum(tally["attributes"]["loadspan.size"] for tally in tallies) == 300
    assert all(before["end"] < after["start"] for before, after in itertools.pairwise(tallies))
    busy = sum(tally["attributes"]["loadspan.busy_time"] for tally in tallies)
    assert busy == pytest.approx(spans.load()["attributes"]["loadspan.partition.read"], abs=0.001)


def test_every_segment_of_a_lazy_reader_is_deferred(spans: Spans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    monkeypatch.setattr(quick_module, "SEGMENT", 10_000_000)
    with loadspan.load(), safetensors.safe_open(many_tensors(tmp_path, 40), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - as above
            file.get_tensor(key)
            rest(0.001)
    tallies = spans.load()["children"]
    assert len(tallies) >= 3
    for tally in tallies:
        assert tally["attributes"].get("loadspan.deferred") is True
        assert "loadspan.throughput" not in tally["attributes"]


def test_the_attributes_of_later_segments_are_those_of_the_first(spans: Spans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    monkeypatch.setattr(quick_module, "SEGMENT", 10_000_000)
    with loadspan.load(), safetensors.safe_open(many_tensors(tmp_path, 40), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - as above
            file.get_tensor(key)
            rest(0.001)
    constant = ("file.path", "file.size", "loadspan.format", "loadspan.read.method", "thread.name", "loadspan.stage")
    assert len({tuple(tally["attributes"].get(name) for name in constant) for tally in spans.load()["children"]}) == 1


@pytest.mark.parametrize("count", [20_000, 200_000])
def test_memory_stays_under_two_megabytes_whatever_the_number_of_calls(spans: Spans, count: int) -> None:
    recorder = spans.recorder
    with loadspan.load():
        fine(recorder, "read", 1)
        gc.collect()
        tracemalloc.start()
        try:
            for index in range(count):
                call = recorder.begin_fine("read", path="/nowhere/model")
                took = recorder.end_fine(call, 16)
                if took:
                    recorder.name_slow(call, took, 16, f"layer.{index}")
            used, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 2 * MB, (used, peak)
    # Traced allocation is slow, so that a new segment may have begun on the way.
    assert sum(tally["attributes"]["loadspan.operation.count"] for tally in spans.load()["children"]) == count + 1


def test_memory_stays_under_two_megabytes_for_a_file_of_twenty_thousand_tensors(spans: Spans, tmp_path: Path) -> None:
    import safetensors

    path = many_tensors(tmp_path, 20_000)
    with safetensors.safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        with loadspan.load():
            gc.collect()
            tracemalloc.start()
            try:
                for key in keys:
                    file.get_tensor(key)  # let go at once: what remains is ours
                gc.collect()
                used, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert used < 2 * MB
    assert sum(tally["attributes"]["loadspan.operation.count"] for tally in spans.load()["children"]) == 20_000


def test_memory_of_five_thousand_coarse_calls_stays_under_two_megabytes(spans: Spans) -> None:
    import torch

    modules = [torch.nn.Linear(2, 2) for _ in range(5_000)]
    states = [module.state_dict() for module in modules]
    with loadspan.load():
        gc.collect()
        tracemalloc.start()
        try:
            for module, state in zip(modules, states, strict=True):
                module.load_state_dict(state)
            gc.collect()
            snapshot = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
    # On a busy machine calls of a millisecond get spans, and those are the test's own exporter's to keep.
    kept = snapshot.filter_traces([tracemalloc.Filter(inclusive=False, filename_pattern="*/opentelemetry/*")])
    assert sum(trace.size for trace in kept.traces) < 2 * MB
    assert len(list(walk(spans.load()))) <= 500
