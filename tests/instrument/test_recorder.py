"""Loads and stages: nesting, threads, tasks, generators, failures, limits, and what the host sees of them."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import contextvars
import gc
import inspect
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from work import LONG, MB, checkpoint, fail, fine, layer, many_tensors, rest

import loadspan
from loadspan.instrument.live import recorder
from loadspan.names import STAGES
from recorded import Spans, outline, walk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator
    from pathlib import Path

    from recorded import Tree


def parts(load: Tree) -> dict[str, float]:
    """The partition of a load by stage."""
    prefix = "loadspan.partition."
    return {key.removeprefix(prefix): value for key, value in load["attributes"].items() if key.startswith(prefix)}


def check(load: Tree) -> None:
    """What holds for every load."""
    __tracebackhide__ = True
    attributes = load["attributes"]
    assert sum(parts(load).values()) == pytest.approx(load["duration"], abs=0.001), "the parts add up"
    assert attributes["loadspan.coverage"] == pytest.approx(1 - parts(load)["other"] / load["duration"], abs=0.01)
    for span in walk(load):
        assert span["trace_id"] == load["trace_id"]
        assert span["start"] <= span["end"]
        siblings = [child for child in span["children"] if child["scope"] == "loadspan"]
        for child in siblings:
            assert span["start"] <= child["start"], (span["name"], child["name"])
            assert child["end"] <= span["end"], (span["name"], child["name"])
        edges = [(child["start"] // 1000, child["end"] // 1000) for child in siblings]
        for index, (begin, _) in enumerate(edges):
            assert all(abs(begin - end) >= 2 for other, (_, end) in enumerate(edges) if other != index), "siblings touch"
    assert len([span for span in walk(load) if span["scope"] == "loadspan"]) <= 500


# Nesting


def test_stages_of_a_load_are_its_children_in_order(spans: Spans) -> None:
    with loadspan.load("sdxl", loader="mine", device="cuda:1"):
        with loadspan.stage("read", size=10 * MB, path="/nowhere/model.enc"):
            rest()
        with loadspan.stage("decrypt"):
            rest()
        with loadspan.stage("load_state_dict"):
            rest()
    load = spans.load()
    assert outline(load) == [{"load model": ["read", "decrypt", "load_state_dict"]}]
    check(load)
    attributes = load["attributes"]
    assert attributes["loadspan.model.name"] == attributes["gen_ai.request.model"] == "sdxl"
    assert attributes["loadspan.loader"] == "mine"
    assert attributes["loadspan.device.type"] == "cuda"
    assert attributes["loadspan.device.index"] == 1
    assert attributes["loadspan.size"] == 10 * MB
    assert "loadspan.implicit" not in attributes
    assert set(parts(load)) == {"read", "decrypt", "load_state_dict", "other"}
    for stage in load["children"]:
        assert stage["attributes"]["loadspan.stage"] == stage["name"]
        assert stage["attributes"]["loadspan.model.name"] == "sdxl"
        assert stage["attributes"]["thread.name"] == "MainThread"
        assert parts(load)[stage["name"]] == pytest.approx(stage["duration"], abs=0.001)
    read, decrypt, _ = load["children"]
    assert read["attributes"]["loadspan.throughput"] == pytest.approx(10 * MB / read["duration"], rel=0.05)
    assert "loadspan.size" not in decrypt["attributes"]
    assert "loadspan.throughput" not in decrypt["attributes"]


def test_a_stage_in_another_takes_its_time_from_it(spans: Spans) -> None:
    with loadspan.load(), loadspan.stage("deserialize", size=1000):
        rest(0.01)
        with loadspan.stage("read", size=1000):
            rest(0.03)
    load = spans.load()
    assert outline(load) == [{"load model": [{"deserialize": ["read"]}]}]
    check(load)
    assert parts(load)["read"] >= 0.03
    assert 0.01 <= parts(load)["deserialize"] < 0.03
    deserialize = load["children"][0]["attributes"]
    assert deserialize["loadspan.busy_time"] < 0.03
    assert deserialize["loadspan.throughput"] == pytest.approx(1000 / deserialize["loadspan.busy_time"])


def test_the_same_stage_in_itself_is_counted_and_has_no_span(spans: Spans) -> None:
    with loadspan.load(), loadspan.stage("read"):
        for _ in range(3):
            with loadspan.stage("read", size=10, path="/nowhere/shard"):
                rest()
    load = spans.load()
    assert outline(load) == [{"load model": ["read"]}]
    check(load)
    attributes = load["children"][0]["attributes"]
    assert attributes["loadspan.size"] == 30
    assert attributes["loadspan.operation.count"] == 3
    assert attributes["file.path"] == "/nowhere/shard"
    assert load["attributes"]["loadspan.size"] == 30


def test_the_same_stage_deep_inside_itself_is_counted_at_the_outermost(spans: Spans) -> None:
    with loadspan.load(), loadspan.stage("read"), loadspan.stage("decrypt"):
        rest()
        with loadspan.stage("read", size=7):
            rest()
    load = spans.load()
    assert outline(load) == [{"load model": [{"read": ["decrypt"]}]}]
    assert load["children"][0]["attributes"]["loadspan.size"] == 7
    assert "loadspan.size" not in load["children"][0]["children"][0]["attributes"]


def test_one_scope_may_be_entered_again_while_it_is_open(spans: Spans) -> None:
    @loadspan.stage("convert")
    def halve(depth: int) -> int:
        rest(0.001)
        return depth if depth == 0 else halve(depth - 1)

    again = loadspan.load("twice")
    with again, again:
        assert halve(3) == 0
    load = spans.load()
    assert outline(load) == [{"load model": [{"load model": ["convert"]}]}]
    assert load["children"][0]["children"][0]["attributes"]["loadspan.operation.count"] == 3


def test_an_inner_load_is_a_part_of_the_outer_one(spans: Spans) -> None:
    with loadspan.load("pipeline"):
        with loadspan.load("unet"), loadspan.stage("read", size=100):
            rest(0.01)
        with loadspan.load("vae"):
            rest(0.01)
            with loadspan.stage("read", size=10):
                rest(0.01)
    load = spans.load()
    assert outline(load) == [{"load model": [{"load model": ["read"]}, {"load model": ["read"]}]}]
    for one in (load, *load["children"]):
        check(one)
    assert [child["attributes"]["loadspan.model.name"] for child in load["children"]] == ["unet", "vae"]
    assert load["attributes"]["loadspan.size"] == 110
    assert parts(load)["read"] == pytest.approx(sum(parts(child)["read"] for child in load["children"]), abs=0.001)
    assert parts(load)["other"] >= 0.01


def test_an_inner_load_in_a_stage_takes_its_stages_time_from_that(spans: Spans) -> None:
    with loadspan.load("outer"), loadspan.stage("initialize"):
        rest(0.01)
        with loadspan.load("inner"):
            fine(spans.recorder, "read", 5, seconds=0.03)
    load = spans.load()
    assert outline(load) == [{"load model": [{"initialize": [{"load model": ["read"]}]}]}]
    check(load)
    assert parts(load)["read"] >= 0.03
    assert 0.01 <= parts(load)["initialize"] < 0.03


def test_what_is_said_while_it_runs_is_on_the_span(spans: Spans) -> None:
    with loadspan.load() as load_handle:
        load_handle.set(model="llama", device="cpu")
        with loadspan.stage("merge_lora") as handle:
            rest()
            handle.add(3)
            handle.add(4)
            handle.set(adapter="style", format="safetensors", path=["/a/one", "/a/two"])
            loadspan.current().add(5)
        with loadspan.stage("cache", cache_hit=False, deferred=True, size=9):
            rest()
    load = spans.load()
    merge, cache = load["children"]
    assert merge["attributes"]["loadspan.size"] == 12
    assert merge["attributes"]["loadspan.adapter.name"] == "style"
    assert merge["attributes"]["loadspan.format"] == "safetensors"
    assert merge["attributes"]["loadspan.file.count"] == 2
    assert cache["attributes"]["loadspan.cache.hit"] is False
    assert cache["attributes"]["loadspan.deferred"] is True
    assert "loadspan.throughput" not in cache["attributes"]
    assert load["attributes"]["loadspan.model.name"] == "llama"
    assert load["attributes"]["loadspan.device.type"] == "cpu"
    assert "loadspan.device.index" not in load["attributes"]


def test_outside_of_everything_the_handle_does_nothing(spans: Spans) -> None:
    loadspan.current().add(5)
    loadspan.current().set(size=7)
    assert spans.loads() == []


def test_a_fact_or_stage_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'open' is not a stage"):
        loadspan.stage("open")
    with pytest.raises(TypeError, match="unknown fact 'bytes'"):
        loadspan.current().set(bytes=3)


# Threads


def test_a_thread_works_for_the_load_that_started_it(spans: Spans) -> None:
    def work() -> None:
        with loadspan.stage("decrypt"):
            rest()

    with loadspan.load("one"), loadspan.stage("deserialize"):
        thread = threading.Thread(target=work, name="decryptor")
        thread.start()
        thread.join()
    load = spans.load()
    assert outline(load) == [{"load model": [{"deserialize": ["decrypt"]}]}]
    assert load["children"][0]["children"][0]["attributes"]["thread.name"] == "decryptor"
    check(load)


def test_a_pool_job_works_for_whoever_submitted_it_not_for_whoever_started_the_thread(spans: Spans) -> None:
    def work(name: str) -> str:
        with loadspan.stage("read", model=name):
            rest()
        return name

    with ThreadPoolExecutor(1) as pool:
        with loadspan.load("one"):
            assert pool.submit(work, "one").result() == "one"
        with loadspan.load("two"):
            assert list(pool.map(work, ["two", "two"])) == ["two", "two"]
    loads = spans.loads()
    assert [outline(load) for load in loads] == [[{"load model": ["read"]}], [{"load model": ["read", "read"]}]]
    for load in loads:
        check(load)
        assert {stage["attributes"]["loadspan.model.name"] for stage in load["children"]} == {load["attributes"]["loadspan.model.name"]}


def test_a_bare_thread_born_in_a_load_works_for_it(spans: Spans) -> None:
    done = _thread.allocate_lock()
    done.acquire()

    def work() -> None:
        try:
            with loadspan.stage("read"):
                rest()
        finally:
            done.release()

    with loadspan.load():
        _thread.start_new_thread(work, ())
        done.acquire()
    load = spans.load()
    assert outline(load) == [{"load model": ["read"]}]
    check(load)


def test_stages_of_sixteen_threads_share_every_instant_and_add_up(spans: Spans) -> None:
    chance = random.Random(7)  # noqa: S311 - a plan, no secret
    plans = [[(chance.choice(STAGES), chance.choice(STAGES), chance.random() / 500) for _ in range(8)] for _ in range(16)]

    def work(plan: list[tuple[str, str, float]]) -> None:
        for outer, inner, seconds in plan:
            with loadspan.stage(outer):
                rest(seconds)
                with loadspan.stage(inner):
                    fine(spans.recorder, "read", 1, seconds=seconds) if "read" not in {outer, inner} else rest(seconds)

    with loadspan.load():
        threads = [threading.Thread(target=work, args=(plan,)) for plan in plans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    check(spans.load())


def test_a_stage_that_outlives_its_load_harms_nothing(spans: Spans) -> None:
    go = threading.Event()

    def work() -> None:
        with loadspan.stage("read"):
            go.wait(5)
            fine(spans.recorder, "decrypt", 1)

    with loadspan.load():
        thread = threading.Thread(target=work)
        thread.start()
        rest(0.01)
    go.set()
    thread.join()
    loads = [load for load in spans.loads() if "loadspan.implicit" not in load["attributes"]]
    check(loads[0])
    assert parts(loads[0])["read"] >= 0.005


# asyncio


def test_tasks_at_once_have_loads_of_their_own(spans: Spans) -> None:
    async def serve(name: str) -> None:
        async with loadspan.load(name):
            for stage in ("read", "decrypt", "deserialize"):
                async with loadspan.stage(stage):
                    await asyncio.sleep(0.005)
            await asyncio.to_thread(convert)

    @loadspan.stage("convert")
    def convert() -> None:
        rest()

    async def main() -> None:
        await asyncio.gather(*(serve(f"model-{index}") for index in range(5)))

    asyncio.run(main())
    loads = spans.loads()
    assert sorted(load["attributes"]["loadspan.model.name"] for load in loads) == [f"model-{index}" for index in range(5)]
    for load in loads:
        assert outline(load) == [{"load model": ["read", "decrypt", "deserialize", "convert"]}]
        check(load)


def test_tasks_begun_in_a_load_are_parts_of_it(spans: Spans) -> None:
    @loadspan.stage("download")
    async def fetch() -> int:
        await asyncio.sleep(0.005)
        return 3

    async def main() -> list[int]:
        async with loadspan.load():
            return await asyncio.gather(*(fetch() for _ in range(4)))

    assert asyncio.run(main()) == [3, 3, 3, 3]
    load = spans.load()
    assert outline(load) == [{"load model": ["download"] * 4}]
    check(load)
    assert parts(load)["download"] < 0.02  # shared, not added


def test_a_decorated_coroutine_function_stays_one() -> None:
    @loadspan.stage("read")
    async def coroutine() -> None: ...

    @loadspan.stage("read")
    def generator() -> Iterator[int]:
        yield 1

    @loadspan.stage("read")
    async def both() -> Any:
        yield 1

    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(both)


# Generators


def test_the_time_between_two_steps_of_a_generator_is_its_consumers(spans: Spans) -> None:
    @loadspan.stage("read")
    def chunks() -> Iterator[int]:
        for index in range(5):
            rest(0.004)
            yield index

    with loadspan.load():
        for _ in chunks():
            rest(0.01)
    load = spans.load()
    assert outline(load) == [{"load model": ["read"]}]
    check(load)
    assert 0.02 <= parts(load)["read"] < 0.05
    assert parts(load)["other"] >= 0.05
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
    assert sorted(outline(load["children"][0]["children"])) == ["decrypt", "decrypt", "decrypt", "read"]
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
        assert sorted(outline(load["children"])) == ["decrypt", "decrypt", "decrypt", "download"]
        check(load)


# Failures


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


# Limits


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


def test_short_stages_with_fine_calls_in_them_leave_room_for_the_spans_after_them(spans: Spans) -> None:
    with loadspan.load():
        for _ in range(600):
            with loadspan.stage("deserialize"):
                fine(spans.recorder, "read", 1)
        with loadspan.stage("to_device"):
            rest()
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


# Real libraries in one load


def test_a_real_load_is_covered_and_adds_up(spans: Spans, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    path = checkpoint(tmp_path, megabytes=40)
    with loadspan.load("base", path=path):
        model = layer(40)
        state = safetensors.torch.load_file(path)
        model.load_state_dict(state)
        model.to(torch.float16)
    load = spans.load()
    assert [name for name in outline(load["children"]) if name != "initialize"] == ["deserialize", "load_state_dict", "convert"]
    check(load)
    assert load["attributes"]["loadspan.size"] == 40 * MB
    deserialize, load_state_dict, convert = (child for child in load["children"] if child["name"] != "initialize")
    assert deserialize["attributes"]["loadspan.size"] == 40 * MB
    assert load_state_dict["attributes"]["loadspan.size"] == 40 * MB
    assert convert["attributes"]["loadspan.size"] == 20 * MB
    assert convert["attributes"]["loadspan.dtype"] == "float16"


# What the host sees


def test_in_an_explicit_stage_the_current_span_is_the_stages(spans: Spans) -> None:
    tracer = spans.provider.get_tracer("host")
    seen = []
    with tracer.start_as_current_span("request"), loadspan.load():
        seen.append(trace.get_current_span().get_span_context().span_id)
        with loadspan.stage("read"):
            seen.append(trace.get_current_span().get_span_context().span_id)
            trace.get_current_span().set_attribute("host", "was here")
            trace.get_current_span().add_event("hello")
            with tracer.start_as_current_span("http"):
                pass
        seen.append(trace.get_current_span().get_span_context().span_id)
    request = spans.all()[0]
    assert outline(request) == [{"request": [{"load model": [{"read": ["http"]}]}]}]
    load = request["children"][0]
    read = load["children"][0]
    assert seen == [load["span_id"], read["span_id"], load["span_id"]]
    assert read["attributes"]["host"] == "was here"
    assert read["events"] == [("hello", {})]
    assert not trace.get_current_span().get_span_context().is_valid


def test_in_an_implicit_stage_the_current_span_is_the_hosts(spans: Spans) -> None:
    tracer = spans.provider.get_tracer("host")
    with tracer.start_as_current_span("request") as request, loadspan.stage("read", size=10 * MB):
        rest()
        assert trace.get_current_span() is request
        with tracer.start_as_current_span("http"):
            pass
    spans.finish()
    tree = spans.all()[0]
    assert sorted(map(str, outline(tree["children"]))) == sorted(["http", str({"load model": ["read"]})])


def test_without_a_provider_nothing_is_recorded_and_nothing_happens(tmp_path: Path) -> None:
    import safetensors.torch

    path = checkpoint(tmp_path)
    instrumentor = loadspan.LoadspanInstrumentor()
    instrumentor.instrument()
    try:
        with loadspan.load("x") as handle, loadspan.stage("read") as stage:
            handle.set(model="y")
            stage.add(3)
            model = layer()
            model.load_state_dict(safetensors.torch.load_file(path))
            model.half()
            assert recorder.loads == []
            assert recorder.stages == []
            assert recorder.begin_fine("read") is None
        assert list(loadspan.stage("read")(talk)()) == ["heard 0", "heard 1", "heard 2"]
    finally:
        instrumentor.uninstrument()
    assert not recorder.repetitions


def test_what_was_sampled_out_is_not_recorded(recording: Callable[..., Spans], tmp_path: Path) -> None:
    import safetensors.torch
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    spans = recording(sampler=ALWAYS_OFF)
    path = checkpoint(tmp_path)
    with loadspan.load("outer"), loadspan.load("inner"), loadspan.stage("read") as stage:
        stage.add(3)
        assert spans.recorder.begin_fine("read") is None
    model = layer()
    model.load_state_dict(safetensors.torch.load_file(path))
    model.half()
    assert spans.loads() == []
    assert recorder.loads == []


def test_a_load_in_a_trace_that_was_sampled_out_is_not_recorded(recording: Callable[..., Spans]) -> None:
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    spans = recording(sampler=ParentBased(TraceIdRatioBased(0.0)))
    with spans.provider.get_tracer("host").start_as_current_span("request"), loadspan.load(), loadspan.stage("read"):
        rest()
    assert spans.all() == []


def test_suppressed_instrumentation_is_respected(spans: Spans) -> None:
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    with suppress_instrumentation(), loadspan.load(), loadspan.stage("read"):
        rest()
    assert spans.loads() == []


def test_a_sampler_sees_the_name_of_the_model_and_of_the_loader(recording: Callable[..., Spans]) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

    seen = []

    class Asking(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            seen.append((args[2], dict(kwargs.get("attributes") or args[4] or {})))
            return ALWAYS_ON.should_sample(*args, **kwargs)

        def get_description(self) -> str:
            return "asking"

    recording(sampler=Asking())
    with loadspan.load("sdxl", loader="mine"):
        pass
    name, attributes = seen[0]
    assert name == "load model"
    assert attributes["loadspan.model.name"] == "sdxl"


def test_after_uninstrument_calls_pass_through(spans: Spans, tmp_path: Path) -> None:
    import safetensors
    import torch

    stale = torch.load, safetensors.torch.load_file, torch.nn.Module.load_state_dict, torch.nn.Module._apply  # noqa: SLF001 - what is patched
    loadspan.LoadspanInstrumentor().uninstrument()
    path = checkpoint(tmp_path)
    model = layer()
    state = stale[1](path)
    stale[2](model, state)
    stale[3](model, lambda tensor: tensor.half())
    assert model.weight.dtype == torch.float16
    torch.save(state, tmp_path / "model.pt")
    assert stale[0](tmp_path / "model.pt").keys() == state.keys()
    assert spans.loads() == []
    assert recorder.loads == []


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
