"""Loads as metrics, through the real SDK: what is recorded, with which attributes, by which writer."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
import torch
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider
from safetensors.torch import load_file

import loadspan
from loadspan import LoadspanInstrumentor, metric_names, names
from loadspan.instrument.live import recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

from metered import SIZE, Measured, child, load


def test_a_load_is_one_observation_with_the_trace_as_its_exemplar(measuring: Callable[..., Measured], weights: Path) -> None:
    measured = measuring()
    load(weights)
    (point,) = measured.points(metric_names.LOAD_DURATION)
    (root,) = [span for span in measured.spans.get_finished_spans() if span.name == names.LOAD_SPAN]
    assert point.count == 1
    assert point.sum == pytest.approx((root.end_time - root.start_time) / 1e9, abs=1e-6)
    assert point.attributes[names.MODEL_NAME] == "llama"
    assert names.ERROR_TYPE not in point.attributes
    assert {exemplar.trace_id for exemplar in point.exemplars} == {root.context.trace_id}
    assert point.explicit_bounds == metric_names.LOAD_DURATION.bounds
    assert measured.value(metric_names.LOAD_COUNT) == 1
    assert measured.value(metric_names.LOAD_SIZE) == SIZE
    assert measured.value(metric_names.LOAD_LAST_DURATION) == pytest.approx(point.sum)


def test_the_stages_of_a_load_add_up_to_it_and_have_their_bytes(measuring: Callable[..., Measured], weights: Path) -> None:
    measured = measuring()
    load(weights)
    (whole,) = measured.points(metric_names.LOAD_DURATION)
    assert sum(measured.by_stage(metric_names.STAGE_DURATION).values()) == pytest.approx(whole.sum, abs=1e-6)
    assert measured.by_stage(metric_names.STAGE_SIZE) == {
        names.DESERIALIZE: SIZE,
        names.LOAD_STATE_DICT: SIZE,
        names.CONVERT: SIZE / 2,
    }
    rates = measured.by_stage(metric_names.STAGE_THROUGHPUT)
    assert names.DESERIALIZE not in rates  # it maps the file; the bytes come later
    spans = {span.name: span for span in measured.spans.get_finished_spans()}
    for stage, rate in rates.items():
        assert rate == pytest.approx(spans[stage].attributes[names.THROUGHPUT], rel=1e-6)


def test_several_calls_of_a_stage_are_one_observation_of_the_load(measuring: Callable[..., Measured]) -> None:
    measured = measuring()
    with loadspan.load("shards"):
        for number in range(4):
            with loadspan.stage(names.READ, size=1000):
                time.sleep(0.003)
            with loadspan.stage(names.DECRYPT, size=number):
                time.sleep(0.002)
    (point,) = [point for point in measured.points(metric_names.STAGE_SIZE) if point.attributes[names.STAGE] == names.READ]
    assert (point.count, point.sum) == (1, 4000)
    (point,) = [point for point in measured.points(metric_names.STAGE_THROUGHPUT) if point.attributes[names.STAGE] == names.READ]
    assert point.count == 1
    assert 0 < point.sum <= 4000 / 0.012


def test_a_failed_load_is_told_by_its_error_type_alone(measuring: Callable[..., Measured], tmp_path: Path) -> None:
    measured = measuring()
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.safetensors")
    (point,) = measured.points(metric_names.LOAD_DURATION)
    assert point.attributes[names.ERROR_TYPE] == "FileNotFoundError"
    failed = {
        point.attributes[names.STAGE] for point in measured.points(metric_names.STAGE_DURATION) if names.ERROR_TYPE in point.attributes
    }
    assert failed == {names.DESERIALIZE}
    assert measured.points(metric_names.LOAD_LAST_DURATION) == []
    assert measured.value(metric_names.LOAD_ACTIVE) == 0


def test_a_load_inside_a_load_is_not_counted_twice_but_its_stages_are(measuring: Callable[..., Measured], weights: Path) -> None:
    measured = measuring()
    with loadspan.load("pipeline"):
        load(weights, "unet")
        load(weights, "vae")
        assert measured.value(metric_names.LOAD_ACTIVE) == 1
    (point,) = measured.points(metric_names.LOAD_DURATION)
    assert point.attributes[names.MODEL_NAME] == "pipeline"
    assert measured.value(metric_names.LOAD_COUNT) == 1
    assert measured.by_stage(metric_names.STAGE_SIZE)[names.LOAD_STATE_DICT] == 2 * SIZE
    seconds = measured.by_stage(metric_names.STAGE_DURATION)
    assert sum(seconds.values()) == pytest.approx(point.sum, abs=1e-6)


def test_counters_begin_with_nothing_before_the_first_load(measuring: Callable[..., Measured]) -> None:
    measured = measuring()
    assert [measured.value(metric) for metric in (metric_names.LOAD_ACTIVE, metric_names.LOAD_COUNT, metric_names.LOAD_SIZE)] == [0, 0, 0]
    assert measured.points(metric_names.LOAD_DURATION) == []


def test_an_implicit_load_runs_until_its_end_and_a_dropped_one_leaves_nothing(measuring: Callable[..., Measured], weights: Path) -> None:
    measured = measuring()
    kept = load_file(weights)
    assert measured.value(metric_names.LOAD_ACTIVE) == 1
    recorder.close_all()
    assert measured.value(metric_names.LOAD_ACTIVE) == 0
    assert measured.value(metric_names.LOAD_COUNT) == 1
    torch.nn.Linear(2, 2).load_state_dict(torch.nn.Linear(2, 2).state_dict())
    recorder.close_all()
    assert measured.value(metric_names.LOAD_ACTIVE) == 0
    assert measured.value(metric_names.LOAD_COUNT) == 1
    del kept


def test_loads_that_are_not_sampled_are_measured_all_the_same(measuring: Callable[..., Measured], weights: Path) -> None:
    measured = measuring(tracer=TracerProvider(sampler=ALWAYS_OFF, resource=Resource({"service.instance.id": "a process"})))
    load(weights)
    assert measured.value(metric_names.LOAD_COUNT) == 1
    assert measured.by_stage(metric_names.STAGE_SIZE)[names.CONVERT] == SIZE / 2


def test_metrics_need_no_traces(measuring: Callable[..., Measured], weights: Path) -> None:
    measured = measuring(tracer=NoOpTracerProvider())
    load(weights)
    (point,) = measured.points(metric_names.LOAD_DURATION)
    assert point.exemplars == []
    assert measured.by_stage(metric_names.STAGE_SIZE)[names.LOAD_STATE_DICT] == SIZE


def test_without_a_meter_provider_nothing_is_kept(weights: Path) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    LoadspanInstrumentor().instrument(tracer_provider=provider)
    try:
        load(weights)
        assert len(recorder.metrics._ended) == 0  # noqa: SLF001 - what would grow
        assert exporter.get_finished_spans()
    finally:
        LoadspanInstrumentor().uninstrument()
        provider.shutdown()


def test_models_without_end_are_not_series_without_end(measuring: Callable[..., Measured]) -> None:
    measured = measuring()
    for number in range(3 * metric_names.VALUES):
        with loadspan.load(f"model {number}"):
            pass
    points = measured.points(metric_names.LOAD_DURATION)
    assert len(points) == metric_names.VALUES + 1
    assert sum(point.count for point in points) == 3 * metric_names.VALUES
    assert [point.count for point in points if names.MODEL_NAME not in point.attributes] == [2 * metric_names.VALUES]


def test_only_declared_attributes_are_recorded(measuring: Callable[..., Measured], weights: Path) -> None:
    measured = measuring()
    load(weights)
    for metric in metric_names.METRICS:
        for point in measured.points(metric):
            assert set(point.attributes) <= set(metric.attributes)


SHARED = "service.instance.id=pod.container"


@pytest.mark.parametrize(
    ("environment", "resource", "told"),
    [
        ({}, {"service.instance.id": "random"}, False),
        ({"OTEL_RESOURCE_ATTRIBUTES": f"a=b, {SHARED}"}, {"service.instance.id": "pod.container"}, True),
        ({}, {"service.name": "serve"}, True),
    ],
)
def test_the_process_is_named_where_its_resource_does_not_tell_it_from_others(
    measuring: Callable[..., Measured],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    resource: dict[str, str],
    told: bool,  # noqa: FBT001 - a case
) -> None:
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    measured = measuring(resource=Resource(resource))
    with loadspan.load():
        pass
    expected = {names.PROCESS_PID: os.getpid()} if told else {}
    assert measured.points(metric_names.LOAD_COUNT)[0].attributes == expected
    assert all((names.PROCESS_PID in point.attributes) == told for point in measured.points(metric_names.STAGE_DURATION))


ONE_LOAD = """
with loadspan.load("m"):
    pass
print(json.dumps(told()))
"""


def test_each_rank_has_its_own_last_duration_and_its_group_on_the_span() -> None:
    environment = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "job-7"}
    found = child(ONE_LOAD, environment)
    (gauge,) = found["metrics"]["loadspan.load.last_duration"]
    assert gauge["loadspan.rank"] == 3
    assert {key: found["attributes"][key] for key in (names.LOAD_ID, names.RANK, names.RANK_LOCAL, names.WORLD_SIZE)} == {
        "loadspan.load.id": "job-7",
        "loadspan.rank": 3,
        "loadspan.rank.local": 1,
        "loadspan.world_size": 4,
    }
    assert all("loadspan.rank" not in point for name, points in found["metrics"].items() for point in points if "last" not in name)


def test_a_single_process_has_no_rank() -> None:
    found = child(ONE_LOAD, {"RANK": "0", "WORLD_SIZE": "1"})
    assert names.RANK not in found["attributes"]
    assert "loadspan.rank" not in found["metrics"]["loadspan.load.last_duration"][0]


@pytest.mark.parametrize("name", ["TRACEPARENT", "traceparent"])
def test_a_load_belongs_to_the_trace_that_the_environment_names(name: str) -> None:
    found = child(ONE_LOAD, {name: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    assert found["parent"] == {"trace": "0af7651916cd43dd8448eb211c80319c", "span": "b7ad6b7169203331"}


@pytest.mark.parametrize("value", ["", "00-zz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\x1b[31m" * 9])
def test_a_trace_that_is_none_is_not_one(value: str) -> None:
    assert child(ONE_LOAD, {"TRACEPARENT": value})["parent"] is None


FORKED = """
import warnings
warnings.simplefilter("ignore")
with loadspan.load("parent"):
    pass
spans.clear()
read, write = os.pipe()
if os.fork() == 0:
    with loadspan.load("child"):
        pass
    os.write(write, json.dumps(told()).encode())
    os._exit(0)
os.close(write)
with open(read) as file:
    sys.stdout.write(file.read())
os.wait()
"""


def test_a_forked_process_writes_series_of_its_own() -> None:
    found = child(FORKED, {})
    counts = {point.get("process.pid"): point["value"] for point in found["metrics"]["loadspan.load.count"]}
    assert counts[found["pid"]] == 1
    models = {point["loadspan.model.name"] for point in found["metrics"]["loadspan.load.last_duration"] if "process.pid" in point}
    assert models == {"child"}


def test_what_was_seen_of_cache_and_link_is_told_of_the_last_load(measuring: Callable[..., Measured]) -> None:
    measured = measuring()
    found = {names.DEVICE_TYPE: "cuda", names.DEVICE_INDEX: 1, names.LINK_BANDWIDTH: 7.88e9, names.CACHE_RESIDENCY: 0.25}
    for degraded in (False, True):
        with loadspan.load("llama") as handle:
            handle._frame.attributes.update(found | {names.LINK_DEGRADED: degraded})  # noqa: SLF001 - this machine has no such device
    of_link = {names.DEVICE_TYPE: "cuda", names.DEVICE_INDEX: 1}
    for metric, value, attributes in (
        (metric_names.LINK_DEGRADED, 1, of_link),
        (metric_names.LINK_BANDWIDTH, 7.88e9, of_link),
        (metric_names.CACHE_RESIDENCY, 0.25, {names.MODEL_NAME: "llama"}),
    ):
        (point,) = measured.points(metric)
        assert (point.value, dict(point.attributes)) == (value, attributes)
