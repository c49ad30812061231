"""
What loadspan costs, and whether what it records is right: `python benchmarks/overhead.py`.

Bare and instrumented run in turn in one process, so that the ratio of neighbors means something on a busy machine. The column
"bare/bare" is the same ratio between two bare runs: what the machine does by itself. At full scale a load is made to take 1.5 s here,
which needs up to 9 GB of disk, 20 GB of memory and 20 minutes; `--scale 0.1` is quick, but then a load is short and its ratio above
the budget.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import _measure
import _parts
from _measure import Row
from _scenarios import SCENARIOS, Scenario

if TYPE_CHECKING:
    from loadspan.model import Load

_SCENARIOS = {scenario.name: scenario for scenario in SCENARIOS}
_NAMES = (*_SCENARIOS, *_parts.PARTS)
_LIMIT = 900
"""Seconds after which a scenario is given up."""
_INTERNAL = "loadspan: internal error"
_EXACT = 0.001
_SECONDS = 1.5
"""Of a load that the budget speaks of."""
_LARGEST, _CLOSE = 3.0, 1.1
"""Most that a scenario is made larger for it, and what is not worth it."""
_RESULT = "result.json"


# One scenario, in a process of its own


def _sized(scenario: Scenario, folder: Path, scale: float) -> tuple[dict[str, int], float]:
    """Write a scenario; at full scale so large that the load takes here what the budget speaks of. Returns the truth and the scale."""

    def write(scale: float) -> dict[str, int]:
        truth = scenario.write(folder, scale)
        os.sync()  # writing back later would disturb the loads
        return truth

    truth = write(scale)
    if scale < 1:
        return truth, scale
    bare = [_measure.timed(functools.partial(scenario.load, folder, scenario.fresh(folder)))[0] for _ in range(3)]
    factor = min(_SECONDS / min(bare), _LARGEST)
    if factor < _CLOSE:
        return truth, scale
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return write(scale * factor), scale * factor


def _load_rows(scenario: Scenario, folder: Path, pairs: int, scale: float) -> list[Row]:
    truth, scale = _sized(scenario, folder, scale)

    def run(record_to: Path | None) -> tuple[float, float]:
        ready = scenario.fresh(folder)
        if record_to is None:
            return _measure.timed(lambda: scenario.load(folder, ready))
        with _measure.recording(record_to):
            return _measure.timed(lambda: scenario.load(folder, ready))

    found = _measure.rounds(pairs, run, folder)
    loads = [_measure.loads_in(folder / f"run-{number}") for number in range(1, pairs + 1)]
    best = min(found["instrumented"]) / min(found["bare"])
    cpu = statistics.median(_measure.ratios(found["instrumented cpu"], found["bare cpu"]) or [1.0])
    return [
        Row(
            what=f"load time / bare, {scenario.title}",
            values=_measure.ratios(found["instrumented"], found["bare"]),
            most=1.01,
            noise=_measure.ratios(found["again"], found["bare"]),
            note=f"bare {statistics.median(found['bare']):.2f} s, scale {scale:.1f}; best/best {best:.4f}; CPU time {cpu:.4f}",
        ),
        *_truth_rows(scenario, loads, found["instrumented"], truth),
    ]


def _truth_rows(scenario: Scenario, loads: list[list[Load]], walls: list[float], truth: dict[str, int]) -> list[Row]:
    covered = [share for share in map(_measure.coverage, loads) if share is not None]
    staged = [_measure.staged(found) / wall for found, wall in zip(loads, walls, strict=True)]
    sizes = [_measure.sizes(found, truth) for found in loads]
    worst = [max((abs(ratio - 1) for ratio in found.values()), default=0.0) for found in sizes]
    wrong = {name: ratio for found in sizes for name, ratio in found.items() if abs(ratio - 1) > _EXACT}
    numbers = sorted({len(found) for found in loads})
    return [
        Row(
            what=f"coverage of what was recorded, {scenario.name}",
            values=covered,
            least=0.99,
            note="" if numbers == [1] else f"{'/'.join(map(str, numbers))} loads",
            problem="" if covered else "OVER: no load recorded",
        ),
        Row(
            what=f"share of the whole call in a stage, {scenario.name}",
            values=staged,
            least=0.98,  # coverage and what recording may take
            note=next(filter(None, map(_measure.elsewhere, loads)), ""),
        ),
        Row(
            what=f"recorded / true bytes - 1, {scenario.name}",
            values=worst,
            most=_EXACT,
            note=", ".join(f"{name} {ratio:.3f}" if ratio else f"{name} absent" for name, ratio in wrong.items()),
        ),
    ]


def _child(name: str, folder: Path, pairs: int, scale: float) -> None:
    rows = _load_rows(_SCENARIOS[name], folder, pairs, scale) if name in _SCENARIOS else _parts.PARTS[name](folder, pairs, scale)
    text = json.dumps([vars(row) for row in rows])
    (folder / _RESULT).write_text(text)


# All of them


def _environment() -> dict[str, str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LOADSPAN_"))}
    cores = len(os.sched_getaffinity(0))
    return environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # A core for everybody else: with all of them, torch's threads wait for the one that another program has delayed.
        "OMP_NUM_THREADS": str(max(1, cores - 1)),
        # Memory that was freed is kept and used again: fresh pages cost as much as the load, and not the same each time.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_ARENA_MAX": "1",
    }


def _measure_in_child(name: str, pairs: int, scale: float) -> list[Row]:
    needs = _SCENARIOS[name].needs if name in _SCENARIOS else _parts.NEEDS.get(name, ())
    missing = [module for module in needs if importlib.util.find_spec(module) is None]
    title = _SCENARIOS[name].title if name in _SCENARIOS else name
    if missing:
        return [Row(what=title, problem=f"not run: {', '.join(missing)} is not installed")]
    with tempfile.TemporaryDirectory(prefix="loadspan-benchmark-") as place:
        command = [sys.executable, __file__, "--child", name, "--folder", place, "--pairs", str(pairs), "--scale", str(scale)]
        try:
            done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=_LIMIT, check=False)
        except subprocess.TimeoutExpired:
            return [Row(what=title, problem=f"failed: not done after {_LIMIT} s")]
        result = Path(place, _RESULT)
        if done.returncode or not result.exists():
            print(done.stderr, file=sys.stderr)
            return [Row(what=title, problem=f"failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")]
        rows = [Row(**row) for row in json.loads(result.read_text())]
    if _INTERNAL in done.stderr:
        print(done.stderr, file=sys.stderr)
        rows.append(Row(what=title, problem=f"failed: {_INTERNAL}"))
    return rows


def _facts() -> dict[str, str]:
    from loadspan.facts import storage

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    cpu = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    with tempfile.NamedTemporaryFile() as file:
        mount = storage.of_file(file.name)
    packages = ("torch", "safetensors", "transformers", "diffusers", "cryptography", "opentelemetry-sdk")
    return {
        "CPU": f"{cpu[0] if cpu else platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        **{package: version(package) for package in packages},
        "filesystem": mount.filesystem if mount is not None else "unknown",
        "load average before": " ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


_HEADERS = ("what", "measured: median (least..most)", "budget", "", "bare/bare", "note")


def _cells(row: Row) -> tuple[str, ...]:
    return row.what, row.measured, row.budget, row.verdict, _measure.spread(row.noise) if row.noise else "", row.note


def _table(rows: list[Row], *, markdown: bool) -> str:
    lines = [_HEADERS, *map(_cells, rows)]
    if markdown:
        cells = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join([cells[0], "|" + "---|" * len(_HEADERS), *cells[1:]])
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADERS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _check_space(chosen: list[str], scale: float) -> None:
    needed = (
        max((_SCENARIOS[name].disk for name in chosen if name in _SCENARIOS), default=0) * scale * (_LARGEST if scale >= 1 else 1) + 3e8
    )
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < needed:
        print(f"{folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed. Set TMPDIR or use --scale.", file=sys.stderr)
        raise SystemExit(2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what loadspan costs.")
    parser.add_argument("--pairs", type=int, default=7, metavar="N", help="pairs of runs for each load (default: 7)")
    parser.add_argument("--only", action="append", choices=_NAMES, metavar="NAME", help=f"one of: {', '.join(_NAMES)}; may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the loads (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value to FILE")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--child", choices=_NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pairs < 1 or arguments.scale <= 0:
        parser.error("--pairs and --scale: not positive")
    return arguments


def main() -> int:
    """Measure, print, and return 1 if something failed; a budget that is not kept is no failure."""
    arguments = _arguments()
    if arguments.child:
        _child(arguments.child, arguments.folder, arguments.pairs, arguments.scale)
        return 0
    chosen = arguments.only or list(_NAMES)
    _check_space(chosen, arguments.scale)
    facts, begun, rows = _facts(), time.monotonic(), []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += _measure_in_child(name, arguments.pairs, arguments.scale)
    facts["load average after"] = " ".join(f"{value:.1f}" for value in os.getloadavg())
    facts["pairs, scale"] = f"{arguments.pairs}, {arguments.scale:g}"
    facts["measured in"] = f"{time.monotonic() - begun:.0f} s"
    print("\n".join(f"{'- ' if arguments.markdown else ''}{name}: {value}" for name, value in facts.items()), end="\n\n")
    print(_table(rows, markdown=arguments.markdown))
    if arguments.json:
        arguments.json.write_text(json.dumps({"facts": facts, "rows": [row.as_dict() for row in rows]}, indent=1) + "\n")
    return int(any(row.problem.startswith("failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
