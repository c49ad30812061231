"""
Span exporter of the embedded default: OTLP JSON lines, one file per process, written as each span ends.

Usable as `OTEL_TRACES_EXPORTER=loadspan`. The SDK puts a batch in front of every exporter, and a batch dies with its process; so loadspan's
own spans are handed over directly as they end, and the batch's later copy of the same span is left out.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from loadspan import names, settings
from loadspan.instrument import state, telemetry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext

_LOGGER = logging.getLogger("loadspan")
_INT64 = 1 << 63
_REMEMBERED = 10_000


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int) and -_INT64 <= value < _INT64:
        return {"intValue": str(value)}  # 64-bit integers are text in OTLP JSON
    if isinstance(value, float) and value == value and abs(value) != float("inf"):  # noqa: PLR0124 - NaN is no JSON number
        return {"doubleValue": value}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": telemetry.valid(str(value))}


def _attributes(attributes: Any) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in (attributes or {}).items()]


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = cast("SpanContext", span.get_span_context())  # a span that has ended has one
    line: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": telemetry.valid(span.name),
        "kind": span.kind.value + 1,  # OTLP counts from 1, the API from 0
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes),
    }
    if span.parent is not None:
        line["parentSpanId"] = f"{span.parent.span_id:016x}"
    if span.events:
        line["events"] = [
            {"timeUnixNano": str(event.timestamp), "name": event.name, "attributes": _attributes(event.attributes)} for event in span.events
        ]
    if span.links:
        line["links"] = [{"traceId": f"{link.context.trace_id:032x}", "spanId": f"{link.context.span_id:016x}"} for link in span.links]
    if span.status.status_code.value:
        line["status"] = {"code": span.status.status_code.value}
        if span.status.description:
            line["status"]["message"] = telemetry.valid(span.status.description)
    return line


def _scope(scope: InstrumentationScope | None) -> dict[str, Any]:
    return {} if scope is None else {"name": scope.name, **({"version": scope.version} if scope.version else {})}


def encode(spans: Iterable[ReadableSpan]) -> str:
    """Spans of one resource as one line of OTLP JSON (a `TracesData` message)."""
    scopes: dict[Any, list[dict[str, Any]]] = {}
    resource = None
    for span in spans:
        resource = span.resource
        scopes.setdefault(span.instrumentation_scope, []).append(_span(span))
    entry = {
        "resource": {"attributes": _attributes(resource.attributes if resource is not None else None)},
        "scopeSpans": [{"scope": _scope(scope), "spans": lines} for scope, lines in scopes.items()],
    }
    return json.dumps({"resourceSpans": [entry]}, ensure_ascii=True, separators=(",", ":")) + "\n"


def run_folder() -> Path:
    """Folder of this process's files: `LOADSPAN_DIR`, else a new one under `loadspan-runs`."""
    folder = settings.read_or_default().run_dir
    if folder is None:
        folder = Path("loadspan-runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return folder.absolute()


class LoadspanSpanExporter(SpanExporter):
    """Appends spans to `trace-<pid>.jsonl` in the run folder. A folder that cannot be written is said once; the host goes on."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else run_folder()
        self._lock = threading.Lock()
        self._direct: dict[int, None] = {}
        self._ended: deque[ReadableSpan] = deque()
        self._complained = False
        telemetry.writers.append(self)
        state.folder = self.folder
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        # What waits is the parent's to write; the lock may have been held by a thread that is not here.
        self._lock = threading.Lock()
        self._ended.clear()

    def receive(self, span: Any) -> None:
        """Take a span of ours that has ended."""
        if getattr(span, "end_time", None) is not None and span.get_span_context().trace_flags.sampled:
            self._ended.append(span)

    def write(self) -> None:
        """Put the spans taken so far on disk, as one line."""
        spans = []
        while self._ended:
            spans.append(self._ended.popleft())
        if spans:
            self._direct |= dict.fromkeys(_identity(span) for span in spans)
            while len(self._direct) > _REMEMBERED:
                del self._direct[next(iter(self._direct))]
            self._append(encode(spans))

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append *spans*, but for those that were written as they ended."""
        self.write()
        fresh = [span for span in spans if not self._was_written(span)]
        if not fresh or self._append(encode(fresh)):
            return SpanExportResult.SUCCESS
        return SpanExportResult.FAILURE

    def _was_written(self, span: ReadableSpan) -> bool:
        return self._direct.pop(_identity(span), 0) is None

    def _append(self, line: str) -> bool:
        path = self.folder / names.TRACE_FILE.format(pid=os.getpid())
        try:
            # One write call a line, so that lines of threads do not mix; opened each time, so that a fork or a closed descriptor cannot
            # send a line to the wrong file.
            with self._lock:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    whole = line.encode()
                    if (done := os.write(descriptor, whole)) < len(whole):
                        os.ftruncate(descriptor, os.fstat(descriptor).st_size - done)  # the disk is full: no half line in the file
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                finally:
                    os.close(descriptor)
        except OSError as error:
            if not self._complained:
                self._complained = True
                _LOGGER.warning("loadspan: %s: %s. Spans of this process are not kept on disk.", path, error.strerror or error)
            return False
        return True

    def shutdown(self) -> None:
        """Write what is left and take no more spans."""
        self.write()
        if self in telemetry.writers:
            telemetry.writers.remove(self)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - writing takes no time to speak of
        """Write what is left."""
        self.write()
        return True


def _identity(span: ReadableSpan) -> int:
    context = span.get_span_context()
    return context.span_id if context is not None else 0
