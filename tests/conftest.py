"""
Fixtures for everything that records (a guard that raises, spans in memory) and for everything that reads a machine (recorded ones).

Our own failures are swallowed in the host's processes; here they must be seen, so the guard raises unless a test is about swallowing.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

import loadspan.guard
import machines
from recorded import Spans, provider_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from loadspan.facts.tree import Tree


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "swallowing: the guard swallows, as it does in a host's process")
    # How long an example takes says how busy the machine is, and nothing about what is tested.
    settings.register_profile("loadspan", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("loadspan")


@pytest.fixture(autouse=True)
def raising(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own exceptions reach the test."""
    monkeypatch.setattr(loadspan.guard, "raising", request.node.get_closest_marker("swallowing") is None)


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], Tree]:
    """`machine("desktop")` unpacks `tests/machines/desktop.txt`."""
    return lambda name: machines.unpack(name, tmp_path / "machines" / name)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Spans]]:
    """`recording(sampler=...)` instruments with a provider made so, once in a test."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from loadspan import LoadspanInstrumentor
    from loadspan.instrument import implicit
    from loadspan.instrument.live import recorder

    for name in ("LOADSPAN_DIR", "LOADSPAN_FILE_READS", "LOADSPAN_MIN_SIZE", "LOADSPAN_IDLE_TIMEOUT", "LOADSPAN_PENDING_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    providers = []

    def start(**options: Any) -> Spans:
        exporter = InMemorySpanExporter()
        provider = provider_of(exporter, **options)
        providers.append(provider)
        recorder.repetitions, recorder.ended = implicit.Repetitions(), implicit.Ended()
        LoadspanInstrumentor().instrument(tracer_provider=provider)
        return Spans(exporter, provider, recorder)

    yield start
    LoadspanInstrumentor().uninstrument()
    if recorder.loads:
        gc.collect()  # a forgotten generator holds its load open
    recorder.close_all()
    left = [(load.name, load.explicit) for load in recorder.loads], [stage.name for stage in recorder.stages]
    recorder.abandon()
    for provider in providers:
        provider.shutdown()
    assert left == ([], []), "loads or stages were left open"


@pytest.fixture
def spans(recording: Callable[..., Spans]) -> Spans:
    """Instrumented, everything sampled, spans in memory."""
    return recording()
