"""
Whether what loadspan records of each loader is right: `python tests/loaders/conform.py`.

Each case runs twice, bare and under `loadspan run`, each time in a process of its own on the same warm files. `--write` puts the outcome
into docs/loaders.md; `--environment NAME` runs in an environment with other versions, made with uv from its file in `environments/`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import environments
import table
from case import all_cases

from loadspan import names
from loadspan.report import tracefile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from case import Case, Truth

    from loadspan.model import Load

HERE = Path(__file__).parent
EXACT = 0.001
COVERED = 0.99
TIMEOUT = 280
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen of a case, and what of it is wrong. `wrong` is empty for a case that conforms."""

    library: str
    version: str
    name: str
    loader: str
    stages: list[str]
    size: int
    """Bytes over all stages whose truth is known."""
    off: float | None
    """Recorded / true bytes - 1 of the stage that is most off; None where no truth is known."""
    coverage: float
    spans: int
    identical: bool
    wrong: list[str]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class NotRun:
    """A case that did not run here, and why."""

    library: str
    name: str
    why: str


def missing(case: Case) -> list[str]:
    """Modules that the case needs and that are not installed here."""
    return [module for module in case.needs if importlib.util.find_spec(module.partition(".")[0]) is None]


def run(case: Case, folder: Path) -> Outcome:
    """Write the files of *case* below *folder* unless they are there, load them bare and recorded, and compare."""
    files, out = folder / case.files, folder / f"{case.files}.json"
    if not out.exists():
        files.mkdir()
        _child(case, "write", files, out)
    truth: Truth = json.loads(out.read_text())
    work = Path(tempfile.mkdtemp(dir=folder))
    bare = _child(case, "load", files, work / "bare.json")
    ours = _child(case, "load", files, work / "ours.json", inside=("-m", "loadspan", "run", "--quiet", "-o", str(work / "run"), "--"))
    loads = tracefile.read(work / "run").loads
    first, second = (json.loads((work / name).read_text()) for name in ("bare.json", "ours.json"))
    identical = first["digest"] == second["digest"] and bare == ours
    return _judge(case, case.sizes(truth), loads, identical=identical, seconds=first["seconds"])


def _child(case: Case, action: str, folder: Path, out: Path, inside: Iterable[str] = ()) -> str:
    """Run one half; returns what it printed. Whatever loadspan says of its own failures is one of ours."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LOADSPAN_"))}
    environment |= QUIET | (case.environment or {})
    argv = [sys.executable, *inside]
    if inside:
        argv.append(sys.executable)
    argv += ["-B", str(HERE / "child.py"), action, case.library, case.name, str(folder), str(out)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, timeout=TIMEOUT, cwd=out.parent)
    if done.returncode or not out.exists() or "loadspan: internal error" in done.stderr:
        raise RuntimeError(f"{case.library}, {case.name}: {action} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def _judge(case: Case, truth: Truth, loads: list[Load], *, identical: bool, seconds: float) -> Outcome:
    spans = [span for load in loads for span in load.walk()]
    seen = {stage.name for load in loads for stage in load.walk() if stage.name in names.STAGES}
    sizes = {name: sum(span.size or 0 for span in spans if span.name == name) for name in truth}
    off = max((sizes[name] / size - 1 for name, size in truth.items() if size), key=abs, default=None)
    coverage = min((load.number(names.COVERAGE) or 0.0 for load in loads), default=0.0)
    loaders = sorted({load.text(names.LOADER) or "?" for load in loads})
    most = max((sum(1 for _ in load.walk()) for load in loads), default=0)
    found = {
        f"{len(loads)} loads, not {case.loads}": len(loads) != case.loads,
        f"loader {', '.join(loaders)}, not {case.loader}": loaders != [case.loader],
        f"no stage {', '.join(sorted(set(case.stages) - seen))}": not seen >= set(case.stages),
        f"bytes { ({name: (sizes[name], size) for name, size in truth.items()}) }": off is not None and abs(off) > EXACT,
        f"coverage {coverage:.3f}": coverage < COVERED,
        f"{most} spans": most > case.spans,
        "another result": not identical,
    }
    return Outcome(
        library=case.library,
        version=importlib.metadata.version(case.library),
        name=case.name,
        loader=", ".join(loaders),
        stages=[stage for stage in names.STAGES if stage in seen],
        size=sum(truth.values()),
        off=off,
        coverage=coverage,
        spans=most,
        identical=identical,
        wrong=[what for what, is_so in found.items() if is_so],
        seconds=seconds,
    )


def run_all(only: str, folder: Path) -> list[Outcome | NotRun]:
    """Run every case whose library and name contain *only*; prints each as it ends."""
    outcomes: list[Outcome | NotRun] = []
    for case in all_cases():
        if only not in f"{case.library}, {case.name}":
            continue
        lacking = missing(case)
        outcome = NotRun(case.library, case.name, f"not installed: {', '.join(lacking)}") if lacking else run(case, folder)
        outcomes.append(outcome)
        print(table.line(asdict(outcome)), flush=True)  # noqa: T201 - the command's output
    return outcomes


def main() -> int:
    """Run the cases; 1 if one of them is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose library and name contain TEXT")
    known = ", ".join(environments.known())
    parser.add_argument("--environment", action="append", metavar="NAME", help=f"{known}, or all; default: this one")
    parser.add_argument("--write", action="store_true", help="put the outcome into docs/loaders.md")
    parser.add_argument("--json", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.environment:
        wanted = environments.known() if arguments.environment == ["all"] else arguments.environment
        codes = [environments.run(name, arguments.only, write=arguments.write) for name in wanted]
        return max(codes)
    with tempfile.TemporaryDirectory(prefix="loadspan-loaders-") as folder:
        outcomes = run_all(arguments.only, Path(folder))
    rows = [asdict(outcome) for outcome in outcomes]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([platform.python_version(), rows]))
    if arguments.write and not arguments.only:
        table.write("core", platform.python_version(), rows)
    return int(any(row.get("wrong") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
