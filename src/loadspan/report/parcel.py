"""
Trace files to OTLP/JSON requests, for sending a run to a server.

A file goes line by line and leaves in requests of bounded size, so a run may be larger than memory. Spans leave as they were written;
only those that no server could take (no id, no time) are left out, and counted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.report import tracefile, tree
from loadspan.report.otlp import SPAN_ID, TRACE_ID, spans_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from loadspan.report.tracefile import Recording

MOST_SPANS = 512
MOST_BYTES = 1 << 20
"""Before compression. Collectors refuse 20 MiB and gRPC 4 MiB; a span of a load is some kB."""

_LARGEST_FILE = 64 << 20  # of one OTLP JSON object, which has to be read whole
_SERVICE_NAME = "service.name"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a span came from, as JSON objects without the lists: an entry of `resourceSpans`, and one of its `scopeSpans`."""

    resource: str
    scope: str


@dataclass(slots=True)
class Seen:
    """What the files of a run held, as far as somebody asks afterwards."""

    spans: dict[str, set[str]] = field(default_factory=dict)
    """Span ids by trace id, both in lower case."""
    by_file: dict[str, Origin] = field(default_factory=dict)
    by_trace: dict[str, Origin] = field(default_factory=dict)
    services: set[str] = field(default_factory=set)
    skipped: int = 0
    """Spans that no server can take."""

    def origin(self, trace_id: str, pid: int | None) -> Origin | None:
        """Where a span of this trace and process would have come from."""
        file = names.TRACE_FILE.format(pid=pid)
        return self.by_file.get(file) or self.by_trace.get(trace_id) or next(iter(self.by_file.values()), None)


@dataclass(frozen=True, slots=True)
class Piece:
    """One span as it was written."""

    trace_id: str
    span_id: str
    origin: Origin
    span: dict[str, Any]


def recording(path: Path) -> Recording:
    """
    The loads at *path* as `tracefile.read` gives them; here a file may also be one OTLP JSON object over many lines.

    Raises:
        UserError: there is no run at *path*, or nothing of it is readable.
    """
    document = _one_document(path) if path.is_file() else None
    if document is None:
        return tracefile.read(path)
    return tracefile.Recording(loads=tree.build(spans_in(document) or []), processes=[], warnings=[])


def pieces(path: Path, seen: Seen) -> Iterator[Piece]:
    """Every span at *path* once, noted in *seen*."""
    for file in sorted(path.glob(tracefile.TRACE_GLOB)) if path.is_dir() else [path]:
        for document in _documents(file):
            yield from _pieces(document, file.name, seen)


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    """OTLP JSON objects of a file: one a line, or one in all. Whatever else is in it has been warned of by who read the loads."""
    whole = _one_document(path)
    if whole is not None:
        found = _parsed(whole)
        if found is not None:
            yield found
        return
    try:
        with path.open("rb") as file:
            while line := file.readline(_LARGEST_FILE):
                found = _parsed(line)
                if found is not None:
                    yield found
    except OSError:
        return


def _one_document(path: Path) -> bytes | None:
    """The content of a file that is one OTLP JSON object, if its first line alone is not."""
    try:
        with path.open("rb") as file:
            first = file.readline(_LARGEST_FILE)
            while first.isspace():
                first = file.readline(_LARGEST_FILE)
            if not first.lstrip().startswith(b"{") or _parsed(first) is not None:
                return None
            file.seek(0)
            whole = file.read(_LARGEST_FILE)
    except OSError:
        return None
    return whole if _parsed(whole) is not None else None


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(text, parse_constant=str)  # NaN is no JSON; as text it is the NaN of OTLP/JSON
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and isinstance(document.get("resourceSpans"), list) else None


def _pieces(document: dict[str, Any], file: str, seen: Seen) -> Iterator[Piece]:
    for resource, scope, spans in _lists(document):
        origin = Origin(_compact(resource), _compact(scope))
        seen.services.update(_services(resource))
        ours = isinstance(scope.get("scope"), dict) and scope["scope"].get("name") == names.SCOPE
        for span in spans:
            if not _is_sendable(span):
                seen.skipped += 1
                continue
            trace_id, span_id = span["traceId"].lower(), span["spanId"].lower()
            if ours:
                seen.by_file.setdefault(file, origin)
                seen.by_trace.setdefault(trace_id, origin)
            known = seen.spans.setdefault(trace_id, set())
            if span_id not in known:  # a Collector that retries writes a span twice
                known.add(span_id)
                yield Piece(trace_id, span_id, origin, span)


def _lists(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[Any]]]:
    """Resource, scope and spans of each list of spans; the first two without what is in them."""
    for resource_spans in document["resourceSpans"]:
        scopes = resource_spans.get("scopeSpans") if isinstance(resource_spans, dict) else None
        for scope_spans in scopes if isinstance(scopes, list) else ():
            spans = scope_spans.get("spans") if isinstance(scope_spans, dict) else None
            if isinstance(spans, list):
                resource = {key: value for key, value in resource_spans.items() if key != "scopeSpans"}
                yield resource, {key: value for key, value in scope_spans.items() if key != "spans"}, spans


def _services(resource: dict[str, Any]) -> Iterator[str]:
    inner = resource.get("resource")
    items = inner.get("attributes") if isinstance(inner, dict) else None
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("key") == _SERVICE_NAME and isinstance(item.get("value"), dict):
            name = item["value"].get("stringValue")
            if isinstance(name, str):
                yield name


def _is_sendable(span: Any) -> bool:
    """Whether a server can take it: one bad span would cost the whole request."""
    if not isinstance(span, dict) or not isinstance(span.get("name"), str):
        return False
    lists = [span.get(name) or [] for name in ("attributes", "events", "links")]
    if not all(isinstance(items, list) and all(isinstance(item, dict) for item in items) for items in lists):
        return False
    parent = span.get("parentSpanId") or None
    ids = ((TRACE_ID, span.get("traceId")), (SPAN_ID, span.get("spanId")), *([(SPAN_ID, parent)] if parent else []))
    if not all(isinstance(text, str) and pattern.fullmatch(text) for pattern, text in ids):
        return False
    try:
        start, end = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    return 0 < start <= end < 1 << 63


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


class Parcel:
    """Spans for one request after the other: *send* is given the body and the number of spans whenever one is full."""

    def __init__(self, send: Callable[[bytes, int], None]) -> None:
        self._send = send
        self._spans: dict[Origin, list[str]] = {}
        self._count = self._size = 0

    def add(self, origin: Origin, span: dict[str, Any]) -> None:
        """Put a span in, and send what was in before if both are too much for one request."""
        text = _compact(span)
        size = len(text) + (len(origin.resource) + len(origin.scope) if origin not in self._spans else 0)
        if self._count and (self._size + size > MOST_BYTES or self._count == MOST_SPANS):
            self.flush()
        self._spans.setdefault(origin, []).append(text)
        self._count += 1
        self._size += size

    def flush(self) -> None:
        """Send what is in."""
        if not self._count:
            return
        scopes: dict[str, list[str]] = {}
        for origin, spans in self._spans.items():
            scopes.setdefault(origin.resource, []).append(_with(origin.scope, "spans", spans))
        body = _with("{}", "resourceSpans", [_with(resource, "scopeSpans", entries) for resource, entries in scopes.items()])
        count, self._count, self._size, self._spans = self._count, 0, 0, {}
        self._send(body.encode("ascii"), count)


def _with(text: str, key: str, items: list[str]) -> str:
    """The JSON object *text* with a list added."""
    return f'{text[:-1]}{"," if text != "{}" else ""}"{key}":[{",".join(items)}]}}'
