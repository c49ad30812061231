"""Threads that go on after the stage in which they were started: what they do belongs to what is around it, and is not lost."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from work import rest

import loadspan
from loadspan.instrument.calls import wrap
from loadspan.instrument.patching import Kind, Target
from recorded import Spans, check, outline

if TYPE_CHECKING:
    from collections.abc import Callable


def chunks(seconds: float, **more: Any) -> Callable[[], bytes]:
    """A fine call of *seconds* that reads 1000 bytes."""

    def chunk() -> bytes:
        rest(seconds)
        return bytes(1000)

    row = Target(
        module=__name__, attribute="chunk", kind=Kind.FINE, stage="read", size=lambda result, *_: len(result), why="a test", **more
    )
    return wrap(row, chunk)


@pytest.mark.parametrize("bursts", [False, True])
def test_fine_calls_of_a_thread_that_outlives_its_stage_count(spans: Spans, *, bursts: bool) -> None:
    read, over = chunks(0.0002, bursts=bursts, path=lambda *_: "/model"), threading.Event()

    def work() -> None:
        for _ in range(20):
            read()
        began.set()
        over.wait()
        for _ in range(30):
            read()

    began = threading.Event()
    with loadspan.load():
        with loadspan.stage("deserialize"):
            thread = threading.Thread(target=work)
            thread.start()
            began.wait()
        over.set()
        with loadspan.stage("initialize"):
            thread.join()
    load = spans.load()
    check(load)
    assert outline(load) == [{"load model": [{"deserialize": ["read"]}, "initialize", "read"]}]
    assert load["attributes"]["loadspan.size"] == 50_000


def test_a_fine_call_that_ends_after_its_stage_counts(spans: Spans) -> None:
    read, began = chunks(0.1), threading.Event()

    def work() -> None:
        began.set()
        read()

    with loadspan.load():
        with loadspan.stage("deserialize"):
            thread = threading.Thread(target=work)
            thread.start()
            began.wait()
            rest(0.02)
        thread.join()
    load = spans.load()
    check(load)
    assert outline(load) == [{"load model": ["deserialize", "read"]}]
    assert load["attributes"]["loadspan.size"] == 1000


def test_stages_of_a_thread_that_outlives_its_stage_are_in_what_is_around_it(spans: Spans) -> None:
    over = threading.Event()

    def work() -> None:
        over.wait()
        with loadspan.stage("decrypt") as stage:
            stage.add(10)
            rest()

    with loadspan.load():
        with loadspan.stage("deserialize"):
            thread = threading.Thread(target=work)
            thread.start()
            rest()
        over.set()
        thread.join()
    load = spans.load()
    check(load)
    assert outline(load) == [{"load model": ["deserialize", "decrypt"]}]
