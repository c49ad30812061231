"""Runs a case: its files written, loaded bare, loaded under `loadspan run`, each in a process of its own, and compares what came of it."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judge import Outcome, failed, judge

from loadspan.errors import UserError
from loadspan.report import tracefile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from case import Case

    from loadspan.model import Load

HERE = Path(__file__).parent
TIMEOUT = 280
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
QUIET["PYTHONHASHSEED"] = "0"  # what is told of a set is told in its order
_OURS = "loadspan: internal error"
_BAR = re.compile(r"[^\r\n]*?\d+%\|[^|\r\n]*\|[^\[\r\n]*\[[^\]\r\n]*\]")
"""A progress bar, behind which a message may follow in the same line."""
_PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+")  # of a server that a case starts
_TIMED = re.compile(r"\d+%\||it/s|s/it|\?it\b|B/s|\d+it \[")
"""What else says how long something took."""


class HalfFailed(Exception):  # noqa: N818 - as `TimeoutExpired`
    """A half did not come to its end."""


@dataclass(frozen=True, slots=True)
class Half:
    """What a user saw of one half."""

    seconds: float
    raised: str
    lines: list[str]
    """What was returned or raised, warned of and printed."""


def run(module: str, case: Case, folder: Path) -> Outcome:
    """Run *case* of *module*; its files are below *folder*, and those of other cases are removed from there."""
    try:
        return _run(module, case, folder)
    except HalfFailed as failure:
        return failed(case, str(failure))
    except OSError as error:  # its files are gone, or there is no room for them
        return failed(case, f"{type(error).__name__}: {error}")


def _run(module: str, case: Case, folder: Path) -> Outcome:
    files, out = folder / case.files, folder / f"{case.files}.json"
    if not out.exists():
        for old in folder.iterdir():
            _remove(old)
        files.mkdir()
        _child(case, ("write", module, case.library, case.name, str(files), str(out)))
    truth = case.sizes(json.loads(out.read_text()))
    with tempfile.TemporaryDirectory(dir=folder, prefix="work-") as work:
        bare = _load(module, case, files, Path(work))
        outcome: Outcome | None = None
        for again in (False, True):
            found, loads = _recorded(module, case, files, Path(work), f"run-{again}")
            judged = judge(
                case, truth, loads, raised=found.raised, different=difference(bare.lines, found.lines), seconds=found.seconds, again=again
            )
            if outcome is None or len(judged.wrong) != 1 or (judged.coverage or 0) > (outcome.coverage or 0):
                outcome = judged  # the better of two that differ in nothing else; what is wrong in the second counts
            if again or not outcome.only_covered_too_little:
                break
    return outcome


def _remove(old: Path) -> None:
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink()


def _recorded(module: str, case: Case, files: Path, work: Path, name: str) -> tuple[Half, list[Load]]:
    folder = work / name
    half = _load(module, case, files, work, inside=("-m", "loadspan", "run", "--quiet", "-o", str(folder), "--", sys.executable))
    try:
        return half, tracefile.read(folder).loads
    except UserError:  # it holds nothing at all
        return half, []


def _load(module: str, case: Case, files: Path, work: Path, inside: Iterable[str] = ()) -> Half:
    out = work / "seen.json"
    out.unlink(missing_ok=True)
    said = _child(case, ("load", module, case.library, case.name, str(files), str(out)), inside)
    seen: dict[str, Any] = json.loads(out.read_text())
    return Half(seen["seconds"], seen["raised"], [_PORT.sub("~", line) for line in (*seen["seen"], *said)])


def _child(case: Case, words: Sequence[str], inside: Iterable[str] = ()) -> list[str]:
    """Run one half; returns what it printed. Whatever loadspan says of its own failures is a failure."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LOADSPAN_"))}
    environment |= QUIET | (case.environment or {})
    argv = [sys.executable, *inside, "-B", str(HERE / "child.py"), *words]
    place = Path(words[-1]).parent
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", check=False, env=environment, timeout=TIMEOUT, cwd=place
        )
    except subprocess.TimeoutExpired:
        raise HalfFailed(f"{words[0]} did not end in {TIMEOUT} s") from None
    half = f"{words[0]}{' recorded' if inside else ''}"
    if _OURS in done.stderr:
        raise HalfFailed(f"{half}: {_after(_OURS, done.stderr)}")
    if done.returncode or not Path(words[-1]).exists():
        raise HalfFailed(f"{half} ended with {done.returncode}: {_last(done.stderr)}")
    return [*(f"prints {line}" for line in done.stdout.splitlines()), *(f"says {line}" for line in spoken(done.stderr))]


def _after(start: str, text: str) -> str:
    """The first line from *start* on, and the place that its traceback ends with."""
    found = text[text.index(start) :].splitlines()
    places = [line.strip() for line in found if line.startswith("  File ")]
    return " ".join([found[0], *places[-1:]])


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def spoken(text: str) -> list[str]:
    """Lines of a standard error that are the same each time: without progress bars, addresses, times and numbers of processes."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", _BAR.sub("\n", text)) if line.strip() and not _TIMED.search(line)]
    return [re.sub(r"0x[0-9a-f]+|\b\d{2}:\d{2}:\d{2}\S*( +\d+(?= \S+:\d+\]))?|\bpid[ =]\d+", "~", line) for line in lines]


def difference(bare: Sequence[str], ours: Sequence[str]) -> str:
    """The first line that differs, without and with loadspan; empty if none does."""
    changes = [line for line in difflib.unified_diff(bare, ours, lineterm="", n=0) if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    bare_line = next((line[1:] for line in changes if line[0] == "-"), "")
    our_line = next((line[1:] for line in changes if line[0] == "+"), "")
    return f"{bare_line[:160]!r} is {our_line[:160]!r}" if changes else ""
