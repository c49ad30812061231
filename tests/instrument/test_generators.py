"""Generators: recorded step by step, and for their consumers what they were."""

from __future__ import annotations

import asyncio
import gc
import inspect
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from work import rest

import loadspan
from loadspan.instrument.calls import wrap
from loadspan.instrument.patching import Kind, Target
from recorded import Spans, check, outline, parts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator


def test_the_time_between_two_steps_of_a_generator_is_its_consumers(spans: Spans) -> None:
    @loadspan.stage("read")
    def chunks() -> Iterator[int]:
        for index in range(5):
            rest(0.004)
            yield index

    with loadspan.load():
        for _ in chunks():
            rest(0.03)
    load = spans.load()
    assert outline(load) == [{"load model": ["read"]}]
    check(load)
    assert 0.02 <= parts(load)["read"] < 0.1
    assert parts(load)["other"] >= 0.15
    assert load["children"][0]["attributes"]["loadspan.busy_time"] == pytest.approx(parts(load)["read"], abs=0.002)


def test_stages_that_the_consumer_opens_are_not_in_the_generators(spans: Spans) -> None:
    @loadspan.stage("read")
    def chunks() -> Iterator[int]:
        for index in range(3):
            rest()
            yield index

    with loadspan.load(), loadspan.stage("deserialize"):
        for _ in chunks():
            with loadspan.stage("decrypt"):
                rest()
    load = spans.load()
    assert outline(load["children"][0]["children"]) == ["read", "decrypt", "read", "decrypt", "read", "decrypt", "read"]
    check(load)


def test_a_thousand_steps_leave_room_for_the_spans_after_them(spans: Spans) -> None:
    @loadspan.stage("read")
    def chunks() -> Iterator[int]:
        yield from range(1000)

    with loadspan.load():
        assert sum(1 for _ in chunks()) == 1000
        with loadspan.stage("to_device"):
            rest()
    load = spans.load()
    assert outline(load) == [{"load model": ["read", "to_device"]}]
    assert "loadspan.span.folded" not in load["attributes"]
    assert "loadspan.operation.count" not in load["children"][1]["attributes"]
    # Every next() is a call, also the one that finds nothing more.
    assert load["children"][0]["attributes"]["loadspan.operation.count"] == 1001


def talk() -> Generator[str, str, str]:
    """A generator that answers, survives a ValueError, refuses a KeyError and cleans up."""
    heard = []
    try:
        while len(heard) < 3:
            try:
                heard.append((yield f"heard {len(heard)}"))
            except ValueError as error:  # noqa: PERF203 - the generator goes on after it
                heard.append(f"survived {error}")
        return "+".join(map(str, heard))
    finally:
        heard.append("clean")


def converse(make: Callable[[], Generator[str, str, str]]) -> list[Any]:
    """All that a consumer can do to a generator, and what it sees of it."""
    seen: list[Any] = []
    generator = make()
    seen += [inspect.getgeneratorstate(generator), next(generator), generator.send("a"), generator.throw(ValueError("b"))]
    try:
        generator.send("c")
    except StopIteration as stop:
        seen.append(("returned", stop.value))
    seen.append(next(generator, "nothing more"))

    generator = make()
    next(generator)
    try:
        generator.throw(KeyError("k"))
    except KeyError as error:
        seen.append((error.args, error.__context__))
    generator = make()
    next(generator)
    seen.append(generator.close())
    seen.append(next(generator, "closed"))
    generator = make()
    seen.append(generator.close())
    generator = make()
    try:
        generator.throw(KeyError("early"))
    except KeyError as error:
        seen.append(error.args)
    try:
        make().send("not None")  # type: ignore[arg-type]
    except TypeError as error:
        seen.append(str(error))

    def delegate() -> Generator[str, str, str]:
        return (yield from make())

    generator = delegate()
    seen += [next(generator), generator.send("x"), generator.send("y")]
    try:
        generator.send("z")
    except StopIteration as stop:
        seen.append(stop.value)
    return seen


@pytest.mark.parametrize("scope", [loadspan.stage("read"), loadspan.load("model")], ids=["stage", "load"])
def test_send_throw_close_and_return_value_are_those_of_the_original(spans: Spans, scope: Any) -> None:
    with loadspan.load():
        assert converse(scope(talk)) == converse(talk)
    check(spans.load())


def test_a_generator_that_ignores_its_closing_is_told_off_as_the_original_is(spans: Spans) -> None:
    @loadspan.stage("read")
    def stubborn() -> Iterator[int]:
        while True:
            try:
                yield 1
            except GeneratorExit:  # noqa: PERF203 - the generator goes on after it
                yield 2

    with loadspan.load():
        generator = stubborn()
        next(generator)
        with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
            generator.close()
    check(spans.load())


def test_a_load_generator_is_one_load_and_its_consumers_stages_are_not_in_it(spans: Spans) -> None:
    @loadspan.load("streamed")
    def weights() -> Iterator[int]:
        for index in range(3):
            with loadspan.stage("read"):
                rest()
            yield index

    for _ in weights():
        assert loadspan.current() is not None
        assert not trace.get_current_span().get_span_context().is_valid
    load = spans.load()
    assert outline(load) == [{"load model": ["read", "read", "read"]}]
    check(load)


def test_a_load_generator_that_is_abandoned_ends_its_load(spans: Spans) -> None:
    @loadspan.load("abandoned")
    def weights() -> Iterator[int]:
        with loadspan.stage("read"):
            rest()
        yield 1
        yield 2

    generator = weights()
    next(generator)
    del generator
    gc.collect()
    load = spans.load()
    assert load["error"] is None
    check(load)


def test_an_asynchronous_generator_behaves_as_the_original(spans: Spans) -> None:
    async def answers() -> AsyncGenerator[str, str]:
        heard = yield "first"
        try:
            heard = yield f"heard {heard}"
        except ValueError as error:
            heard = yield f"survived {error}"
        await asyncio.sleep(0.005)
        yield f"last {heard}"

    async def converse_with(make: Callable[[], AsyncGenerator[str, str]]) -> list[Any]:
        generator = make()
        seen = [await anext(generator), await generator.asend("a"), await generator.athrow(ValueError("b")), await generator.asend("c")]
        seen.append(await anext(generator, "nothing more"))
        generator = make()
        await anext(generator)
        await generator.aclose()
        seen.append(await anext(generator, "closed"))
        generator = make()
        await anext(generator)
        try:
            await generator.athrow(KeyError("k"))
        except KeyError as error:
            seen.append(str(error.args))
        return seen

    async def main() -> None:
        assert await converse_with(loadspan.stage("download")(answers)) == await converse_with(answers)
        async with loadspan.load("model"):
            assert [item async for item in loadspan.stage("download")(answers)()] == ["first", "heard None", "last None"]

    asyncio.run(main())
    load = next(load for load in spans.loads() if load["attributes"].get("loadspan.model.name") == "model")
    assert outline(load) == [{"load model": ["download"]}]
    assert load["children"][0]["attributes"]["loadspan.operation.count"] == 4
    check(load)


def test_asynchronous_generators_at_once_keep_to_their_tasks(spans: Spans) -> None:
    @loadspan.stage("download")
    async def chunks() -> AsyncGenerator[int, None]:
        for index in range(3):
            await asyncio.sleep(0.003)
            yield index

    async def serve(name: str) -> None:
        async with loadspan.load(name):
            async for _ in chunks():
                async with loadspan.stage("decrypt"):
                    await asyncio.sleep(0.003)

    async def main() -> None:
        await asyncio.gather(serve("one"), serve("two"))

    asyncio.run(main())
    for load in spans.loads():
        assert outline(load["children"]) == ["download", "decrypt", "download", "decrypt", "download", "decrypt", "download"]
        check(load)


def by_row(function: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    """*function*, recorded as a row of fine calls says."""
    row = Target(module=__name__, attribute=function.__name__, kind=Kind.FINE, stage="deserialize", why="a test", **more)
    return wrap(row, function)


def test_each_step_of_a_fine_generator_is_a_call_with_its_bytes(spans: Spans) -> None:
    def weights() -> Iterator[tuple[str, bytes]]:
        for index in range(1, 4):
            rest(0.004)
            yield f"w{index}", bytes(1000 * index)

    with loadspan.load():
        for _ in by_row(weights, size=lambda result, *_: len(result[1]), label=lambda *_: "w")():
            rest(0.02)
    load = spans.load()
    assert outline(load) == [{"load model": ["deserialize"]}]
    check(load)
    found = load["children"][0]["attributes"]
    # Every next() is a call, also the one that finds nothing more: it has no bytes.
    assert (found["loadspan.size"], found["loadspan.operation.count"]) == (6000, 4)
    assert 0.012 <= parts(load)["deserialize"] < 0.04
    assert parts(load)["other"] >= 0.06


def test_send_throw_close_and_return_value_are_those_of_the_original_of_a_fine_generator(spans: Spans) -> None:
    with loadspan.load():
        assert converse(by_row(talk)) == converse(talk)
    check(spans.load())


def test_a_fine_generator_that_fails_is_recorded_as_failed(spans: Spans) -> None:
    def weights() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with loadspan.load(), pytest.raises(OSError, match="gone"):
        list(by_row(weights)())
    assert spans.load()["children"][0]["attributes"]["error.type"] == "OSError"


def test_who_only_waits_for_bytes_that_come_all_the_while_has_no_throughput(spans: Spans) -> None:
    def weights() -> Iterator[bytes]:
        rest(0.004)
        yield bytes(1000)

    size = {"size": lambda result, *_: len(result)}
    with loadspan.load():
        list(by_row(weights, **size)())
        with loadspan.stage("initialize"):
            list(by_row(weights, waits=True, **size)())
    plain, waiting = spans.load()["children"][0], spans.load()["children"][1]["children"][0]
    assert "loadspan.throughput" in plain["attributes"]
    assert "loadspan.throughput" not in waiting["attributes"]
    assert waiting["attributes"]["loadspan.size"] == 1000
