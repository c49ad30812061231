"""At most five hundred spans, which never touch."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from work import LONG, fine, layer, many_tensors, rest

import loadspan
from loadspan.instrument import stages
from recorded import Spans, check, outline, walk

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_load_has_at_most_five_hundred_spans_at_a_hundred_thousand_fine_and_five_thousand_coarse_calls(spans: Spans) -> None:
    with loadspan.load():
        for index in range(5_000):
            with loadspan.stage("convert" if index % 2 else "deserialize", size=1):
                if index < 700:
                    rest(0.0011)
                for _ in range(20):
                    fine(spans.recorder, "read", 1)
    load = spans.load()
    check(load)
    found = list(walk(load))
    assert 400 <= len(found) <= 500
    assert load["attributes"]["loadspan.span.folded"] > 0
    calls: dict[str, int] = {}
    for span in found[1:]:
        calls[span["name"]] = calls.get(span["name"], 0) + span["attributes"].get("loadspan.operation.count", 1)
    assert calls == {"read": 100_000, "convert": 2_500, "deserialize": 2_500}
    assert load["attributes"]["loadspan.size"] == 2_500  # of `deserialize`, the first stage that knows the weights


def test_calls_that_moved_nothing_leave_room_for_the_spans_after_them(spans: Spans) -> None:
    module = layer(0.1)
    with loadspan.load():
        for _ in range(600):
            module.to("cpu")
        with loadspan.stage("to_device"):
            rest()
    load = spans.load()
    assert outline(load) == [{"load model": ["to_device"]}]
    assert "loadspan.span.folded" not in load["attributes"]
    check(load)


def test_short_stages_with_fine_calls_in_them_leave_room_for_the_spans_after_them(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SHORT", 50_000_000)  # a busy machine may need a millisecond for nothing
    with loadspan.load():
        for _ in range(600):
            with loadspan.stage("deserialize"):
                fine(spans.recorder, "read", 1)
        with loadspan.stage("to_device"):
            rest(0.06)
    load = spans.load()
    assert outline(load) == [{"load model": ["deserialize", "read", "to_device"]}]
    assert "loadspan.span.folded" not in load["attributes"]


def test_siblings_of_many_threads_never_touch(spans: Spans) -> None:
    gate = threading.Barrier(8)

    def work() -> None:
        gate.wait()
        for _ in range(25):
            with loadspan.stage("read"):
                rest(0.0011)

    with loadspan.load():
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    check(spans.load())


def test_tallies_that_follow_each_other_at_once_do_not_touch(spans: Spans) -> None:
    with loadspan.load():
        for name in ("read", "decrypt", "deserialize", "convert", "to_device"):
            for _ in range(50):
                fine(spans.recorder, name, 1)
    check(spans.load())


def test_twenty_thousand_tensors_are_one_span(spans: Spans, tmp_path: Path) -> None:
    import safetensors

    with loadspan.load(), safetensors.safe_open(many_tensors(tmp_path, 20_000), framework="pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a handle is no mapping
    load = spans.load()
    assert outline(load) == [{"load model": ["deserialize"]}]
    assert load["attributes"]["loadspan.size"] == sum(tensor.nbytes for tensor in found.values())
    check(load)


def test_short_and_long_calls_add_up_in_bytes(spans: Spans) -> None:
    with loadspan.load():
        for index in range(40):
            with loadspan.stage("read", size=100):
                if index % 4 == 0:
                    rest(LONG)
    load = spans.load()
    assert sum(child["attributes"]["loadspan.size"] for child in load["children"]) == 4_000
    assert load["attributes"]["loadspan.size"] == 4_000
