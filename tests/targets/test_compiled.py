"""torch's compiler: what it takes is told, what it traces is left alone, and what it has compiled runs as it did."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch._dynamo
from hosts import failure

import loadspan
from loadspan.instrument.live import recorder
from recorded import check, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from recorded import Spans


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()  # noqa: SLF001 - documented so
    yield
    torch._dynamo.reset()  # noqa: SLF001 - as above


class Swapping(torch.nn.Module):
    """Does at inference what loaders do: moves a part of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.part = torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        """Move it where it is."""
        return self.part.to("cpu")(x) + 1


def stages(load: Any, name: str) -> list[Any]:
    return [span["attributes"] for span in walk(load) if span["name"] == name]


def test_a_first_call_is_compiled_in_the_load_that_it_is_in_and_the_second_is_not(spans: Spans) -> None:
    module = torch.compile(torch.nn.Linear(4, 4), backend="eager")
    with loadspan.load("warm-up"), torch.no_grad():
        module(torch.ones(2, 4))
    with loadspan.load("again"), torch.no_grad():
        module(torch.ones(2, 4))
    first, second = spans.loads()
    check(first)
    assert len(stages(first, "compile")) == 1
    assert stages(second, "compile") == []


def test_a_first_call_that_nobody_declared_is_a_load_of_its_own(spans: Spans) -> None:
    spans.set(min_size=0)
    module = torch.compile(torch.nn.Linear(4, 4), backend="eager")
    module(torch.ones(2, 4))
    (load,) = spans.loads()
    assert load["attributes"]["loadspan.loader"] == "torch"
    assert [span["name"] for span in walk(load)] == ["load model", "compile"]


def test_nothing_of_ours_breaks_a_graph(recording: Callable[..., Spans]) -> None:
    def explain() -> tuple[int, int]:
        torch._dynamo.reset()  # noqa: SLF001 - documented so
        found = torch._dynamo.explain(Swapping())(torch.ones(2, 4))  # noqa: SLF001 - as above
        return found.graph_count, found.graph_break_count

    bare = explain()
    recording()
    assert explain() == bare == (1, 0)
    with loadspan.load("open"):
        assert explain() == bare
        torch.compile(Swapping(), backend="eager", fullgraph=True)(torch.ones(2, 4))
        program = torch.export.export(Swapping(), (torch.ones(2, 4),), strict=True)
    assert program.module()(torch.ones(2, 4)).shape == (2, 4)


def test_neither_installing_nor_leaving_compiles_anything_again(recording: Callable[..., Spans]) -> None:
    counted = torch._dynamo.testing.CompileCounter()  # type: ignore[attr-defined] # noqa: SLF001 - a module of its own
    module = torch.compile(torch.nn.Linear(4, 4), backend=counted)
    for install in (lambda: None, recording, loadspan.LoadspanInstrumentor().uninstrument):
        install()
        module(torch.ones(2, 4))
    assert counted.frame_count == 1


def test_an_export_is_no_compilation(spans: Spans) -> None:
    torch.export.export(torch.nn.Linear(4, 4), (torch.ones(2, 4),), strict=True)
    recorder.close_all()
    assert spans.loads() == []


def test_a_graph_that_cannot_be_compiled_fails_as_it_did(recording: Callable[..., Spans]) -> None:
    def broken(x: Any) -> Any:
        torch._dynamo.graph_break()  # noqa: SLF001 - documented so
        return x

    def call() -> None:
        torch._dynamo.reset()  # noqa: SLF001 - documented so
        torch.compile(broken, backend="eager", fullgraph=True)(torch.ones(2))

    expected = failure(call)
    spans = recording()
    with loadspan.load("open"):
        assert failure(call) == expected
    assert len(stages(spans.loads()[0], "compile")) == 1


def test_what_another_process_compiled_is_a_cache_of_its_bytes(spans: Spans) -> None:
    artifacts = b"nothing of the kind"
    with loadspan.load("warm-up"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compiler.load_cache_artifacts(artifacts)
    (stage,) = stages(spans.loads()[0], "cache")
    assert (stage["loadspan.size"], stage["loadspan.cache.hit"]) == (len(artifacts), False)


def test_an_exported_program_is_a_load_of_its_file(spans: Spans, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(4, 4), (torch.ones(2, 4),)), path)
    spans.finish()
    torch.export.load(path)
    load = spans.loads()[-1]
    check(load)
    assert (load["attributes"]["loadspan.loader"], load["attributes"]["loadspan.model.name"]) == ("torch", "model.pt2")
    (stage,) = stages(load, "deserialize")
    assert (stage["loadspan.size"], stage["loadspan.format"]) == (path.stat().st_size, "pt2")
