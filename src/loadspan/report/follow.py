"""A run folder while it is being written: loads as they end, and what is open now."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from loadspan import names
from loadspan.report import statefile, tree
from loadspan.report.otlp import spans_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadspan.model import Load
    from loadspan.report.otlp import RawSpan
    from loadspan.report.statefile import Process

_MOST_AT_ONCE = 8 << 20  # bytes of one file in one look: the command's signals wait while we read
_MOST_WAITING = 100_000  # spans kept for roots to come; a killed process never writes its root


class Follower:
    """Reads what was appended to a run folder since the last look."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = defaultdict(int)
        self._waiting: dict[str, list[RawSpan]] = defaultdict(list)
        self._ended_roots: set[str] = set()
        self.processes: list[Process] = []

    def look(self) -> list[Load]:
        """
        Outermost loads that ended since the last look, by start. Refreshes `processes`.

        Raises:
            OSError: the folder cannot be read.
        """
        self.processes = statefile.read_all(self._folder)
        for path in sorted(self._folder.glob(names.TRACE_FILE.format(pid="*"))):
            for span in self._appended(path):
                self._waiting[span.trace_id].append(span)
                if span.ours and span.name == names.LOAD_SPAN:
                    self._ended_roots.add(span.trace_id)
        ended = [load for trace_id in sorted(self._ended_roots) for load in self._ended(trace_id)]
        while len(self._waiting) > 1 and sum(map(len, self._waiting.values())) > _MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]  # the trace that has waited longest
        return sorted(ended, key=lambda load: load.start)

    def _appended(self, path: Path) -> Iterator[RawSpan]:
        with path.open("rb") as file:
            file.seek(self._offsets[path])
            text = file.read(_MOST_AT_ONCE)
        complete = text.rfind(b"\n") + 1
        if not complete and len(text) == _MOST_AT_ONCE:
            complete = len(text)  # no line of ours is that long; skip it rather than read it again for ever
        self._offsets[path] += complete
        for line in text[:complete].splitlines():
            yield from spans_in(line) or ()

    def _ended(self, trace_id: str) -> Iterator[Load]:
        """Loads of one trace that ended, except those inside a load that is still open."""
        spans = self._waiting[trace_id]
        open_now = [load for process in self.processes for load in process.loads if load.trace_id == trace_id]
        roots = {span.span_id for span in spans if span.name == names.LOAD_SPAN}
        held = False
        for load in tree.build(spans):
            if load.end is None:
                continue
            if load.parent_id is not None and any(other.start <= load.start and other.span_id not in roots for other in open_now):
                held = True
                continue
            yield load
            below = {span.span_id for span in load.walk()}
            self._waiting[trace_id] = [span for span in self._waiting[trace_id] if span.span_id not in below]
        if not held:
            self._ended_roots.discard(trace_id)
        if not self._waiting[trace_id]:
            del self._waiting[trace_id]
