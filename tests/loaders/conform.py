"""
Whether what loadspan records of each loader is right: `python tests/loaders/conform.py`.

Each case runs twice, bare and under `loadspan run`, each time in a process of its own on the same warm files. `--write` puts the outcome
into docs/loaders.md; `--environment NAME` runs in an environment with other versions, made with uv from its file in `environments/`.
Exits with 0 if every case that ran is ok, 1 if one is wrong, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import environments
import halves
import table
from case import cases_of, modules
from judge import NotRun, Outcome, version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from case import Case

HERE = Path(__file__).parent
_TOLD = ("torch", "numpy")
OK, WRONG, NOTHING = 0, 1, 2


def outcome_of(module: str, case: Case, folder: Path) -> Outcome | NotRun:
    """Run *case* of *module*, if what it needs is here."""
    lacking = case.lacking()
    if lacking:
        return NotRun(library=case.library, name=case.name, why=f"needs {', '.join(lacking)}")
    return halves.run(module, case, folder)


def chosen(only: Sequence[str], parts: Sequence[str] = ()) -> list[tuple[str, Case | Outcome]]:
    """
    Cases whose library and name contain each of *only*, of the modules *parts* or of all.

    A module that cannot be imported is an outcome, and a wrong one.
    """
    found = [(module, case) for module in modules() if not parts or module.rpartition(".")[2] in parts for case in _cases_or_error(module)]
    return [(module, case) for module, case in found if all(text in f"{case.library}, {case.name}" for text in only)]


def _cases_or_error(module: str) -> Sequence[Case | Outcome]:
    try:
        return cases_of(module)
    except Exception as error:  # noqa: BLE001 - the others run nevertheless
        return [Outcome(library=module, version="", name="import", wrong=[f"{type(error).__name__}: {error}"])]


class Progress:
    """Cases that ran, of so many; says how each of them ended."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._done = 0
        self._lock = threading.Lock()

    def run(self, group: Sequence[tuple[str, Case | Outcome]]) -> list[table.Row]:
        """Run a *group* of cases, which share files."""
        rows: list[table.Row] = []
        with tempfile.TemporaryDirectory(prefix="loadspan-loaders-") as folder:
            for module, case in group:
                begun = time.monotonic()
                outcome = case if isinstance(case, Outcome) else outcome_of(module, case, Path(folder))
                rows.append(asdict(outcome))
                with self._lock:
                    self._done += 1
                    what = f"{table.verdict(rows[-1])}{' (the second time)' if rows[-1].get('again') else ''}"
                    _say(f"[{self._done}/{self._number}] {case.library}, {case.name}: {what}, {time.monotonic() - begun:.1f} s")
        return rows


def run_all(every: Sequence[tuple[str, Case | Outcome]], jobs: int = 1) -> list[table.Row]:
    """Run the cases *every*, *jobs* at once. One that was only covered too little beside others runs once more alone."""
    groups = [list(found) for _, found in itertools.groupby(every, lambda place: (place[0], getattr(place[1], "files", "")))]
    progress = Progress(len(every))
    with ThreadPoolExecutor(jobs) as pool:
        rows = [row for found in pool.map(progress.run, groups) for row in found]
    if jobs > 1:
        again = [number for number, row in enumerate(rows) if "wrong" in row and Outcome(**row).only_covered_too_little]
        _say(f"alone: {len(again)}" if again else "", end="\n" if again else "")
        rows = [Progress(1).run([every[number]])[0] if number in again else row for number, row in enumerate(rows)]
    return rows


def versions() -> str:
    """Python and what else every case depends on."""
    found = {"Python": platform.python_version(), **{name: version(name) for name in _TOLD}}
    return ", ".join(f"{name} {number}" for name, number in found.items() if number)


def in_environment(name: str, words: Sequence[str]) -> tuple[str, list[table.Row]]:
    """
    Run the cases in the environment *name*: its versions and the outcomes.

    Raises:
        CannotBeMade: it is not there, and cannot be made.
    """
    if not environments.is_made(name):
        _say(f"environment {name}: making it in {environments.place(name)}")
    python = environments.make(name)
    with tempfile.TemporaryDirectory(prefix="loadspan-environment-") as folder:
        out = Path(folder) / "rows.json"
        done = subprocess.run([python, str(HERE / "conform.py"), "--json", str(out), *words], env=environments.here(), check=False)
        if not out.exists():
            raise environments.CannotBeMade(f"the cases ended with {done.returncode}")
        found: tuple[str, list[table.Row]] = tuple(json.loads(out.read_text()))
    return found


def main() -> int:
    """Run the cases here or in other environments."""
    about = (__doc__ or "").strip().partition("\n")[0]
    parser = argparse.ArgumentParser(
        description=about, epilog="Exits with 0 if all is ok, 1 if a case is wrong, 2 if nothing could be run."
    )
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="cases whose library and name contain TEXT")
    known = ", ".join(environments.known())
    parser.add_argument("--environment", action="append", metavar="NAME", help=f"{known}, or all; default: core, which is this one")
    parser.add_argument("--write", action="store_true", help="put the outcome into docs/loaders.md")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at once (default: 1, which disturbs no load)")
    parser.add_argument("--list", action="store_true", help="print the cases and what they need that is not here, and run nothing")
    parser.add_argument("--json", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--cases", action="append", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list:
        return _list(arguments.only)
    if arguments.json:
        rows = run_all(chosen(arguments.only, arguments.cases), arguments.jobs)
        Path(arguments.json).write_text(json.dumps([versions(), rows]))
        return _code(rows)
    wanted = arguments.environment or [environments.CORE]
    if unknown := set(wanted) - {*environments.known(), "all"}:
        parser.error(f"no environment {', '.join(sorted(unknown))}; there are {known}")
    return max(_one(name, arguments) for name in (environments.known() if "all" in wanted else wanted))


def _one(name: str, arguments: argparse.Namespace) -> int:
    words = [f"--jobs={arguments.jobs}", *(f"--only={text}" for text in arguments.only)]
    try:
        told, rows = in_environment(name, [*words, *(f"--cases={part}" for part in environments.cases_of(name))])
    except environments.CannotBeMade as why:
        _say(f"environment {name}: not run: {why}")
        return NOTHING
    if not rows:
        _say(f"environment {name}: no case is named {' and '.join(arguments.only)}")
        return NOTHING
    _say(f"\nenvironment {name}: {told}\n\n{table.terminal(rows)}\n")
    if arguments.write:
        table.write(name, told, rows, whole=not arguments.only)
        _say(f"written: {table.PAGE}")
    return _code(rows)


def _code(rows: list[table.Row]) -> int:
    if any(row.get("wrong") for row in rows):
        return WRONG
    return OK if any("why" not in row for row in rows) else NOTHING


def _list(only: Sequence[str]) -> int:
    for _, case in chosen(only):
        lacking = [] if isinstance(case, Outcome) else case.lacking()
        _say(f"{case.library}, {case.name}{': needs ' + ', '.join(lacking) if lacking else ''}")
    return OK


def _say(what: str, end: str = "\n") -> None:
    print(what, end=end, flush=True)  # noqa: T201 - the command's output


if __name__ == "__main__":
    sys.exit(main())
