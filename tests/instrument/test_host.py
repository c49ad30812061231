"""What the host sees of us: its current span, its samplers, its peace where nobody records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from work import MB, checkpoint, layer, rest

import loadspan
from loadspan.instrument.live import recorder
from recorded import Spans, outline, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


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


def test_spans_of_the_host_keep_a_parent_however_many_stages_there_are(spans: Spans) -> None:
    tracer = spans.provider.get_tracer("host")
    with loadspan.load():
        for _ in range(520):
            with loadspan.stage("download"), tracer.start_as_current_span("GET"):
                pass
    load, *without = spans.all()
    assert without == []
    assert sum(span["name"] == "GET" for span in walk(load)) == 520
    assert len([span for span in walk(load) if span["scope"] == "loadspan"]) <= 500


def test_spans_of_the_host_in_a_step_of_a_generator_keep_a_parent(spans: Spans) -> None:
    tracer = spans.provider.get_tracer("host")

    @loadspan.stage("download")
    def chunks() -> Iterator[int]:
        for index in range(3):
            with tracer.start_as_current_span("GET"):
                rest()
            yield index

    with loadspan.load():
        assert list(chunks()) == [0, 1, 2]
    [load] = spans.all()
    assert outline(load)[0]["load model"][:3] == [{"download": ["GET"]}] * 3


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
        assert loadspan.stage("read")(lambda: 7)() == 7
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


def test_after_uninstrument_a_declared_load_goes_to_the_global_provider_again(spans: Spans) -> None:
    loadspan.LoadspanInstrumentor().uninstrument()
    with loadspan.load(), loadspan.stage("read"):
        rest()
    assert recorder.loads == []
    assert spans.all() == []


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
