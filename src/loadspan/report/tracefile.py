"""
Run folders and trace files to loads.

Reads line by line: a run may be larger than memory would like, and its last line may be torn. What can be read is shown; what cannot is
said in a warning, or in a `UserError` when nothing is left to show.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadspan.errors import UserError
from loadspan.report import statefile, tree
from loadspan.report.otlp import spans_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadspan.model import Load
    from loadspan.report.otlp import RawSpan
    from loadspan.report.statefile import Process

TRACE_GLOB = "*.jsonl"
_RECORD_ONE = "Record one: loadspan run -- python serve.py"
_LONGEST_LINE = 64 << 20  # a batch of 512 spans is below 1 MB; a longer line is another kind of file, and not worth the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a run folder or a trace file holds."""

    loads: list[Load]
    """Outermost loads by start; inner loads are their children."""
    processes: list[Process]
    """State files, one per process that wrote one."""
    warnings: list[str]
    """One line each on what could not be read."""

    def running(self, load: Load, now: int, *, here: bool = False) -> bool:
        """Whether *load* has no end because its process is still at it; *now* and *here* as for `Process.alive`."""
        return load.end is None and any(process.pid == load.pid and process.alive(now, here=here) for process in self.processes)


@dataclass(slots=True)
class _Lines:
    """Progress through one file: how many lines were read, which of them were not spans, why it stopped early."""

    path: Path
    read: int = 0
    """Lines with something on them."""
    bad: list[int] = field(default_factory=list)
    torn: bool = False
    too_long: bool = False

    def spans(self) -> Iterator[RawSpan]:
        with self.path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE):
                complete = line.endswith(b"\n")
                self.too_long = len(line) == _LONGEST_LINE and not complete
                if not complete and self.too_long:
                    return
                if line.isspace():
                    continue
                self.read += 1
                spans = spans_in(line)
                if spans is not None:
                    yield from spans
                elif complete:
                    self.bad.append(self.read)
                else:
                    self.torn = True

    @property
    def good(self) -> int:
        return self.read - len(self.bad) - self.torn

    def warnings(self) -> Iterator[str]:
        """What to say about this file, of which something was readable."""
        if self.torn:
            yield f"{self.path} line {self.read} is incomplete. Showing the {self.good} lines before it."
        if self.too_long:
            yield f"{self.path}: line {self.read + 1} is longer than any span. Showing the {self.good} lines before it."
        if self.bad:
            lines, verb = ("line", "is") if len(self.bad) == 1 else ("lines", "are")
            numbers = ", ".join(map(str, self.bad[:5])) + (f" and {len(self.bad) - 5} more" if len(self.bad) > 5 else "")  # noqa: PLR2004 - five are enough to look
            yield f"{self.path} {lines} {numbers} {verb} not OTLP JSON. Showing the other {self.good} lines."


def read(path: Path) -> Recording:
    """
    All loads of a run folder, or of one trace file.

    Raises:
        UserError: there is no run at *path*, or nothing of it is readable.
    """
    if path.is_dir():
        return _read_files(path, sorted(path.glob(TRACE_GLOB)), statefile.read_all(path))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder. {_RECORD_ONE}")
    state = path.with_name(path.name.replace("trace-", "state-", 1)).with_suffix(".json")
    process = statefile.read(state) if path.name.startswith("trace-") else None
    return _read_files(path, [path], [process] if process else [])


def _read_files(path: Path, files: list[Path], processes: list[Process]) -> Recording:
    if not files and not any(process.loads for process in processes):
        if processes:
            raise UserError(f"{path}: the program ran without loading a model. Nothing to show.")
        raise UserError(f"{path}: no trace file ({TRACE_GLOB}). {_RECORD_ONE}")
    spans: list[RawSpan] = []
    refused: list[str] = []
    warnings: list[str] = []
    # Hundreds of thousands of objects are made and all are kept: every pass of the garbage collector over them is wasted.
    collecting = gc.isenabled()
    gc.disable()
    try:
        for file in files:
            _read_file(file, spans, refused, warnings)
        loads = tree.build(spans, processes)
    finally:
        if collecting:
            gc.enable()
    if refused and not loads and len(refused) == len(files):
        raise UserError(refused[0])
    return Recording(loads=loads, processes=processes, warnings=[*refused, *warnings])


def _read_file(path: Path, spans: list[RawSpan], refused: list[str], warnings: list[str]) -> None:
    """Add the spans of one file, or the reason why there are none."""
    lines = _Lines(path)
    pid = _pid_of(path)
    try:
        for span in lines.spans():
            if span.pid is None:
                span.pid = pid
            spans.append(span)
    except OSError as error:
        refused.append(f"{path}: {(error.strerror or 'unreadable').lower()}. Run as a user who can read it, or pass one readable file.")
        return
    if lines.good:
        warnings.extend(lines.warnings())
    elif not lines.read and not lines.too_long:
        refused.append(f"{path}: empty. {_RECORD_ONE}")
    elif lines.torn and not lines.bad and path.name.startswith("trace-"):
        refused.append(f"{path} line 1 is incomplete, and there is no line before it. {_RECORD_ONE}")
    else:
        refused.append(f"{path}: not a trace file, line 1 is not OTLP JSON. Pass a run folder or a trace-PID.jsonl.")


def _pid_of(path: Path) -> int | None:
    digits = path.stem.removeprefix("trace-")
    return int(digits) if digits.isdecimal() and len(digits) < 12 else None  # noqa: PLR2004 - longer is no process id
