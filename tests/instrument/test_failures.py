"""Exceptions: told once, let go at once, and the host's own."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from work import LONG, fail, layer, rest

import loadspan
from recorded import Spans, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def test_an_exception_is_written_down_once_where_it_arose(spans: Spans) -> None:
    with (
        pytest.raises(ValueError, match="bad magic"),
        loadspan.load("broken"),
        loadspan.stage("deserialize"),
        loadspan.stage("decrypt"),
    ):
        fail(ValueError("bad magic"))
    load = spans.load()
    decrypt = load["children"][0]["children"][0]
    assert [span["error"] for span in walk(load)] == ["bad magic"] * 3
    assert [span["attributes"]["error.type"] for span in walk(load)] == ["ValueError"] * 3
    assert [len(span["events"]) for span in walk(load)] == [0, 0, 1]
    name, event = decrypt["events"][0]
    assert name == "exception"
    assert event["exception.type"] == "ValueError"
    assert event["exception.message"] == "bad magic"
    assert "bad magic" in event["exception.stacktrace"]


def test_an_exception_in_a_short_stage_is_written_down_once(spans: Spans) -> None:
    def read() -> None:
        rest()
        with loadspan.stage("read"):
            fail(OSError("gone"), 0.0)

    with pytest.raises(OSError, match="gone"), loadspan.load(), loadspan.stage("deserialize"):
        read()
    load = spans.load()
    assert [(span["name"], span["error"], len(span["events"])) for span in walk(load)] == [
        ("load model", "gone", 0),
        ("deserialize", "gone", 0),
        ("read", "gone", 1),
    ]


def test_an_exception_through_nested_fine_calls_is_written_down_once(spans: Spans) -> None:
    def decrypt_slowly() -> None:
        rest()
        outer, inner = spans.recorder.begin_fine("decrypt"), spans.recorder.begin_fine("read")
        try:
            fail(OSError("gone"), 0.0)
        except OSError as error:
            spans.recorder.end_fine(inner, None, error)
            spans.recorder.end_fine(outer, None, error)
            raise

    with pytest.raises(OSError, match="gone"), loadspan.load(), loadspan.stage("deserialize"):
        decrypt_slowly()
    load = spans.load()
    assert {span["name"]: span["error"] for span in walk(load)} == dict.fromkeys(("load model", "deserialize", "decrypt", "read"), "gone")
    assert sum(len(span["events"]) for span in walk(load)) == 1


def test_an_exception_through_nested_loads_is_written_down_once(spans: Spans) -> None:
    with pytest.raises(OSError, match="gone"), loadspan.load("outer"), loadspan.load("inner"), loadspan.stage("read"):
        fail(OSError("gone"))
    load = spans.load()
    assert [(span["error"], len(span["events"])) for span in walk(load)] == [("gone", 0), ("gone", 0), ("gone", 1)]


def test_an_exception_of_a_pool_job_is_written_down_in_its_stage_only(spans: Spans) -> None:
    @loadspan.stage("decrypt")
    def work() -> None:
        rest()
        raise OSError("gone")

    with ThreadPoolExecutor(1) as pool, pytest.raises(OSError, match="gone"), loadspan.load():
        pool.submit(work).result()
    load = spans.load()
    assert [(span["error"], len(span["events"])) for span in walk(load)] == [("gone", 0), ("gone", 1)]


def test_each_of_several_exceptions_is_written_down(spans: Spans) -> None:
    with loadspan.load():
        for attempt in range(20):
            # The exception is gone afterwards, and its address free for the next one.
            with contextlib.suppress(ConnectionError), loadspan.stage("download"):
                fail(ConnectionError(attempt))
            with loadspan.stage("read"):
                rest()
    load = spans.load()
    assert load["error"] is None
    assert "error.type" not in load["attributes"]
    failed = [stage for stage in load["children"] if stage["name"] == "download"]
    assert [stage["error"] for stage in failed] == [str(attempt) for attempt in range(20)]
    assert [len(stage["events"]) for stage in failed] == [1] * 20


def test_an_exception_is_let_go_when_the_host_lets_it_go(spans: Spans) -> None:
    """Its traceback holds the frames, these the tensors: after an out-of-memory error the host must get its memory back."""

    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []

    @loadspan.stage("to_device")
    def move(seconds: float) -> None:
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        rest(seconds)
        raise MemoryError("out of memory")

    def fine_move() -> None:
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        call = spans.recorder.begin_fine("read")
        try:
            fail(MemoryError("out of memory"), 0.0)
        except MemoryError as error:
            spans.recorder.end_fine(call, None, error)
            raise

    def fails(function: Callable[..., None], *args: Any) -> bool:
        with contextlib.suppress(MemoryError):
            function(*args)
            return False
        gc.collect()
        return held[-1]() is None

    with loadspan.load():
        assert fails(move, LONG)
        assert fails(move, 0.0)
        assert fails(fine_move)
    assert fails(move, LONG), "implicit"
    assert fails(fine_move), "implicit"


@pytest.mark.usefixtures("spans")
def test_a_failed_generator_lets_its_exception_go_at_once() -> None:
    held: list[weakref.ref[Any]] = []

    @loadspan.stage("read")
    def chunks() -> Iterator[int]:
        tensor = type("Tensor", (), {})()
        held.append(weakref.ref(tensor))
        yield 1
        raise OSError("gone")

    gc.disable()  # reference counts alone have to do it, as they do without us
    try:
        with loadspan.load():
            with contextlib.suppress(OSError):
                assert sum(chunks())
            assert held[0]() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("spans")
def test_a_context_copied_in_a_stage_keeps_no_module_and_no_tensor() -> None:
    import torch

    kept = []
    with loadspan.load():
        module, state = layer(), {"weight": torch.zeros(500, 1000)}
        module.register_load_state_dict_pre_hook(lambda *_: kept.append(contextvars.copy_context()))
        module.load_state_dict(state)
        held = [weakref.ref(module), weakref.ref(state["weight"])]
        del module, state
        gc.collect()
        assert [ref() for ref in held] == [None, None]
    assert len(kept) == 1


class BrokenModelError(Exception):
    """With a text that cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.swallowing
def test_an_exception_without_text_reaches_the_host_unchanged(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    error = BrokenModelError()
    with pytest.raises(BrokenModelError) as caught, loadspan.load(), loadspan.stage("read"):
        fail(error)
    assert caught.value is error
    load = spans.load()
    assert [span["attributes"]["error.type"].rpartition(".")[2] for span in walk(load)] == ["BrokenModelError"] * 2
    assert len(caplog.records) <= 1


def test_the_interruption_of_a_load_is_its_failure(spans: Spans) -> None:
    with pytest.raises(KeyboardInterrupt), loadspan.load(), loadspan.stage("read"):
        fail(KeyboardInterrupt())
    load = spans.load()
    assert [span["attributes"]["error.type"] for span in walk(load)] == ["KeyboardInterrupt"] * 2


def test_the_type_of_an_exception_is_qualified(spans: Spans) -> None:
    import safetensors.torch

    with pytest.raises(safetensors.SafetensorError), loadspan.load():
        safetensors.torch.load(b"no safetensors at all")
    assert spans.load()["attributes"]["error.type"].endswith(".SafetensorError")


def test_a_failed_call_brought_no_bytes(spans: Spans) -> None:
    with pytest.raises(OSError, match="x"), loadspan.load(), loadspan.stage("read", size=5):
        fail(OSError("x"))
    assert "loadspan.size" not in spans.load()["attributes"]
