"""How things are measured: bare and instrumented in turn, in one process, and what the trace then says."""

from __future__ import annotations

import gc
import statistics
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from loadspan.model import Load

Runs = dict[str, list[float]]


@dataclass(kw_only=True)
class Row:
    """One line of the table: values of one thing, and the most (or least) it may be."""

    what: str
    unit: str = ""
    values: list[float] = field(default_factory=list)
    most: float | None = None
    least: float | None = None
    noise: list[float] = field(default_factory=list)
    """The same between two bare runs."""
    note: str = ""
    problem: str = ""
    """Why there are no values: not run, failed."""

    @property
    def verdict(self) -> str:
        """Whether the median keeps the budget."""
        if self.problem or not self.values:
            return self.problem
        middle = statistics.median(self.values)
        kept = (self.most is None or middle <= self.most) and (self.least is None or middle >= self.least)
        return ("ok" if kept else "OVER") if self.budget else ""

    @property
    def budget(self) -> str:
        """The budget as text."""
        if self.most is not None:
            return f"<= {self.most:g} {self.unit}".strip()
        return f">= {self.least:g} {self.unit}".strip() if self.least is not None else ""

    @property
    def measured(self) -> str:
        """Median, least and most as text."""
        return f"{spread(self.values)} {self.unit}".strip() if self.values else ""

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self) | {"measured": self.measured, "budget": self.budget, "verdict": self.verdict}


def spread(values: Sequence[float]) -> str:
    """Median, and least and most where they differ: `1.004 (0.998..1.013)`."""
    middle, low, high = statistics.median(values), min(values), max(values)
    if all(float(value).is_integer() for value in values):
        digits = 0
    else:
        # Ratios near 1 and tiny numbers, then ordinary ones, then large ones.
        digits = 4 if abs(middle) < 0.1 or 0.5 < abs(middle) < 2 else 2 if abs(middle) < 100 else 0  # noqa: PLR2004 - as said above
    text = f"{middle:.{digits}f}"
    return text if low == high else f"{text} ({low:.{digits}f}..{high:.{digits}f})"


@contextmanager
def recording(folder: Path) -> Iterator[None]:
    """What `loadspan run` puts into a program; afterwards nothing of it is left, its thread included."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from loadspan import LoadspanInstrumentor
    from loadspan.instrument.exporter import LoadspanSpanExporter
    from loadspan.instrument.live import sampler
    from loadspan.instrument.sampler import TICK

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(LoadspanSpanExporter(folder)))
    instrumentor = LoadspanInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        yield
    finally:
        instrumentor.uninstrument()
        ran = sampler._running  # noqa: SLF001 - an idle sampler would tick on into the bare run
        sampler.stop()
        provider.shutdown()
        while ran and sampler._running:  # noqa: SLF001 - as above
            time.sleep(TICK / 10)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and CPU seconds of *work*; what it made is dropped after."""
    cpu, begun = time.process_time(), time.perf_counter()
    made = work()
    taken = time.perf_counter() - begun, time.process_time() - cpu
    del made
    return taken


def rounds(pairs: int, run: Callable[[Path | None], tuple[float, float]], folder: Path) -> Runs:
    """
    Run bare and instrumented in turn, *pairs* times, after a round that does not count.

    A round is bare, bare, instrumented, or the reverse: the two of each comparison are neighbors, in both orders.
    """
    found: Runs = {"bare": [], "instrumented": [], "bare cpu": [], "instrumented cpu": [], "again": []}
    for number in range(pairs + 1):
        order = ["again", "bare", "instrumented"]
        for kind in order if number % 2 else reversed(order):
            gc.collect()
            seconds, cpu = run(folder / f"run-{number}" if kind == "instrumented" else None)
            if number:
                found[kind].append(seconds)
                if kind != "again":
                    found[f"{kind} cpu"].append(cpu)
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Quotients of pairs."""
    return [above / below for above, below in zip(over, under, strict=True) if below]


def differences(bare: Callable[[], float], instrumented: Callable[[], float], pairs: int, folder: Path) -> list[float]:
    """What *instrumented* says more than *bare*, *pairs* times in turn after one that does not count; a run folder each."""
    found = []
    for number in range(pairs + 1):
        values = {}
        for kind in ("bare", "instrumented") if number % 2 else ("instrumented", "bare"):
            gc.collect()
            if kind == "bare":
                values[kind] = bare()
            else:
                with recording(folder / str(number)):
                    values[kind] = instrumented()
        if number:
            found.append(values["instrumented"] - values["bare"])
    return found


# What the trace says


def loads_in(folder: Path) -> list[Load]:
    """The loads of a run folder."""
    from loadspan.errors import UserError
    from loadspan.report import tracefile

    try:
        return [load for load in tracefile.read(folder).loads if load.end is not None]
    except UserError:
        return []  # nothing was recorded, which the rows will say


def coverage(loads: Sequence[Load]) -> float | None:
    """Share of the loads' time that is in a stage."""
    known = [(load.duration or 0.0, load.number(names.COVERAGE)) for load in loads]
    total = sum(duration for duration, share in known if share is not None)
    return sum(duration * share for duration, share in known if share is not None) / total if total else None


def staged(loads: Sequence[Load]) -> float:
    """Seconds of the loads that are in a stage."""
    return sum((load.duration or 0.0) * (load.number(names.COVERAGE) or 0.0) for load in loads)


def elsewhere(loads: Sequence[Load]) -> str:
    """What ran most in no stage, as the loads tell it: `other: function (file.py:12) 100%`."""
    frames = [load.attributes.get(names.OTHER_FRAMES) for load in loads]
    return next((f"other: {found[0]}" for found in frames if isinstance(found, tuple) and found), "")


def sizes(loads: Sequence[Load], truth: dict[str, int]) -> dict[str, float]:
    """Recorded over true bytes, by stage; "load" is the load itself. 0 where nothing was recorded."""
    found: dict[str, float] = {}
    for stage, true in truth.items():
        spans = loads if not stage else [span for load in loads for span in load.stages if span.name == stage]
        found[stage or "load"] = sum(span.number(names.SIZE) or 0.0 for span in spans) / true
    return found


def span_count(loads: Sequence[Load]) -> int:
    """Spans of all loads."""
    return sum(1 for load in loads for _ in load.walk())
