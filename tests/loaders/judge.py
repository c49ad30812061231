"""What is right about the loads that were recorded of a case, and what is wrong. No process is started here."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from case import Case, Truth

    from loadspan.model import Load, Span

EXACT = 0.001
COVERED = 0.99
_SLACK = 2_000_000  # nanoseconds: spans are kept apart by microseconds, for views that merge spans which touch
_ADDS_UP = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was seen of a case, and what of it is wrong. `wrong` is empty for a case that conforms."""

    library: str
    version: str
    name: str
    wrong: list[str]
    loader: str = ""
    stages: Sequence[str] = ()
    raises: str = ""
    size: int = 0
    """True bytes, over all stages of which they are known."""
    off: float | None = None
    """Recorded / true bytes - 1 of the stage that is most off; None where no truth is known."""
    coverage: float | None = None
    """Of the load that has the least."""
    spans: int = 0
    """Of the load that has the most."""
    identical: bool = False
    seconds: float = 0.0
    """What loading took, recorded."""
    again: bool = False
    """Whether the recorded half ran twice, because something else disturbed the first."""

    @property
    def only_covered_too_little(self) -> bool:
        """Whether nothing is wrong but that a little time was not explained: a busy machine can be why."""
        return len(self.wrong) == 1 and self.wrong[0].startswith("coverage ") and (self.coverage or 0) > COVERED - 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRun:
    """A case that did not run here, and why."""

    library: str
    name: str
    why: str


def failed(case: Case, why: str) -> Outcome:
    """The outcome of a case that could not be brought to its end."""
    return Outcome(library=case.library, version=version(case.library), name=case.name, wrong=[why])


def version(distribution: str) -> str:
    """Installed version of *distribution*, empty if it is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def judge(
    case: Case, truth: Truth, loads: Sequence[Load], *, raised: str, different: str, seconds: float = 0.0, again: bool = False
) -> Outcome:
    """The outcome of *case*, of which *loads* were recorded. *different* says what a user saw of the recording, nothing if all is well."""
    seen = {stage.name for load in loads for stage in load.stages}
    recorded = {name: sum(span.size or 0 for load in loads for span in load.stages if span.name == name) for name in truth}
    off = max((recorded[name] / size - 1 for name, size in truth.items() if size), key=abs, default=None)
    coverage = min((load.number(names.COVERAGE) or 0.0 for load in loads), default=None)
    loaders = sorted({load.text(names.LOADER) or "none" for load in loads})
    most = max((sum(1 for _ in load.walk()) for load in loads), default=0)
    found = {
        f"{len(loads)} loads, not {case.loads}": len(loads) != case.loads,
        f"loader {', '.join(loaders)}, not {case.loader}": bool(loads) and loaders != [case.loader],
        f"no stage {', '.join(sorted(set(case.stages) - seen))}": not seen >= set(case.stages),
        f"unknown stages {', '.join(sorted({*case.stages, *truth} - set(names.STAGES)))}": bool({*case.stages, *truth} - set(names.STAGES)),
        f"bytes: {_amiss(recorded, truth)}": bool(_amiss(recorded, truth)),
        f"coverage {100 * (coverage or 0):.2f} %": coverage is not None and coverage < COVERED and not raised,
        f"{most} spans, more than {case.spans}": most > case.spans,
        f"raises {raised or 'nothing'}, not {case.raises or 'anything'}": raised != case.raises,
        f"not identical: {different}": bool(different),
    }
    wrong = [what for what, is_so in found.items() if is_so] + [odd for load in loads for odd in _odd(load)]
    return Outcome(
        library=case.library,
        version=version(case.library),
        name=case.name,
        wrong=wrong,
        loader=", ".join(loaders),
        stages=[stage for stage in names.STAGES if stage in seen],
        raises=raised,
        size=sum(truth.values()),
        off=off,
        coverage=coverage,
        spans=most,
        identical=not different,
        seconds=seconds,
        again=again,
    )


def _amiss(recorded: Truth, truth: Truth) -> str:
    wrong = [name for name, size in truth.items() if abs(recorded[name] - size) > EXACT * size]
    return ", ".join(f"{name} {recorded[name]:,}, not {truth[name]:,}" for name in wrong)


def _odd(load: Load) -> Iterator[str]:
    """What no load may be, whatever was loaded."""
    if load.end is None or load.duration is None:
        yield "a load without an end"
        return
    whole = sum(load.partition.values())
    if abs(whole - load.duration) > _ADDS_UP * load.duration + 1e-4:
        yield f"the parts are {whole:.4f} s, the load {load.duration:.4f} s"
    for parent in load.walk():
        for child in parent.children:
            yield from _misplaced(parent, child)


def _misplaced(parent: Span, child: Span) -> Iterator[str]:
    if child.end is None:
        yield f"{child.name} without an end"
    elif parent.end is not None and (child.start < parent.start - _SLACK or child.end > parent.end + _SLACK):
        yield f"{child.name} is not inside {parent.name}"
    if child.attributes.get(names.DEFERRED) is True and names.THROUGHPUT in child.attributes:
        yield f"{child.name} whose bytes come later has a throughput"
    if child.name not in names.STAGES and child.name != names.LOAD_SPAN:
        yield f"a span named {child.name}"
