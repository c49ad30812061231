"""
OTLP JSON lines to raw spans.

Nothing here trusts its input: whatever has the wrong type is left out, and the rest is kept.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from sys import intern
from typing import TYPE_CHECKING, Any

from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadspan.model import Value

TRACE_ID = re.compile(r"(?!0{32})[0-9a-fA-F]{32}")
SPAN_ID = re.compile(r"(?!0{16})[0-9a-fA-F]{16}")
"""Ids that a server takes; a reader is content with less."""

_INT64 = 1 << 63
_STATUS_ERROR = (2, "2", "STATUS_CODE_ERROR")


@dataclass(slots=True, eq=False)
class RawSpan:
    """One span of a trace file before it has a place in a tree; `end` is None where there is no usable one."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start: int
    end: int | None
    attributes: dict[str, Value] = field(default_factory=dict)
    error: str | None = None
    pid: int | None = None
    ours: bool = True
    """Of loadspan's scope. Other spans only say which load a stage below them belongs to."""


def spans_in(line: str | bytes) -> list[RawSpan] | None:
    """Spans of one line, or None for a line that is not OTLP JSON with spans."""
    try:
        document = json.loads(line)
    # RecursionError: nesting deeper than the parser follows. ValueError includes bytes that are not UTF-8 and integers of 5000 digits.
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("resourceSpans"), list):
        return None
    return list(_spans(document["resourceSpans"]))


def _spans(resources: list[Any]) -> Iterator[RawSpan]:
    for resource_spans in _objects(resources):
        resource = resource_spans.get("resource")
        pid = _resource_pid(resource.get("attributes") if isinstance(resource, dict) else None)
        for scope_spans in _objects(resource_spans.get("scopeSpans")):
            scope = scope_spans.get("scope")
            ours = isinstance(scope, dict) and scope.get("name") == names.SCOPE
            for item in _objects(scope_spans.get("spans")):
                span = _span(item, pid, ours=ours)
                if span is not None:
                    yield span


def _objects(items: Any) -> Iterator[dict[str, Any]]:
    return (item for item in items if isinstance(item, dict)) if isinstance(items, list) else iter(())


def _span(item: dict[str, Any], resource_pid: int | None, *, ours: bool) -> RawSpan | None:
    """One span, or None without a start: it has no place in time."""
    start, end = _time(item.get("startTimeUnixNano")), _time(item.get("endTimeUnixNano"))
    if start is None:
        return None
    name, trace_id, span_id, parent_id = item.get("name"), item.get("traceId"), item.get("spanId"), item.get("parentSpanId")
    attributes = _attributes(item.get("attributes")) if ours else {}
    pid = _pid(attributes)
    return RawSpan(
        name=intern(name) if isinstance(name, str) else "",
        trace_id=intern(trace_id) if isinstance(trace_id, str) else "",
        span_id=intern(span_id) if isinstance(span_id, str) else "",
        parent_id=intern(parent_id) if isinstance(parent_id, str) and parent_id else None,
        start=start,
        end=end if end is not None and end >= start else None,
        attributes=attributes,
        error=_error(item.get("status")),
        pid=resource_pid if pid is None else pid,
        ours=ours,
    )


def _time(value: Any) -> int | None:
    """Nanoseconds; None for 0 too, which is how OTLP writes "not set"."""
    try:
        time = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return time if 0 < time < _INT64 and not isinstance(value, bool) else None


def _error(status: Any) -> str | None:
    if not isinstance(status, dict) or status.get("code") not in _STATUS_ERROR:
        return None
    message = status.get("message")
    return message if isinstance(message, str) else ""


def _resource_pid(items: Any) -> int | None:
    """The process of a resource. It has a dozen other attributes, repeated on every line and of no use here."""
    return _pid(_attributes([item for item in _objects(items) if item.get("key") == names.PROCESS_PID]))


def _pid(attributes: dict[str, Value]) -> int | None:
    pid = attributes.get(names.PROCESS_PID)
    return pid if isinstance(pid, int) and not isinstance(pid, bool) else None


def _attributes(items: Any) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for item in items if isinstance(items, list) else ():
        try:
            for kind, raw in item["value"].items():  # always one, and a loop over one is the quickest way to it
                value = _DECODERS[kind](raw)
                if value is not None:
                    found[intern(item["key"])] = value
        except (TypeError, KeyError, ValueError, OverflowError, AttributeError):  # noqa: PERF203 - one bad attribute costs one
            continue
    return found


def _text(raw: Any) -> str | None:
    # Interned, as the names are: a trace repeats both on every line, and memory is what reading a large one costs most.
    return intern(raw) if raw.__class__ is str else None


def _integer(raw: Any) -> int | None:
    number = int(raw) if raw.__class__ is str or raw.__class__ is int else None
    return number if number is not None and -_INT64 <= number < _INT64 else None


def _real(raw: Any) -> float | None:
    real = float(raw) if raw.__class__ is not bool else math.nan
    return real if math.isfinite(real) else None


def _truth(raw: Any) -> bool | None:
    return raw if raw.__class__ is bool else None


def _list(raw: Any) -> tuple[str, ...] | tuple[float, ...] | None:
    """A list of texts, or of numbers. A number that is none costs the list: those after it would move to another's place."""
    items = list(_objects(raw["values"]))
    texts = tuple(item["stringValue"] for item in items if isinstance(item.get("stringValue"), str))
    if texts or not items:
        return texts
    numbers = [_integer(item["intValue"]) if "intValue" in item else _real(item["doubleValue"]) for item in items]
    found = tuple(number for number in numbers if number is not None)
    return found if len(found) == len(numbers) else None


# Values come straight from the JSON parser, which makes no subclasses, so comparing classes is enough and twice as fast as isinstance.
_DECODERS: dict[str, Callable[[Any], Value | None]] = {
    "stringValue": _text,
    "intValue": _integer,
    "doubleValue": _real,
    "boolValue": _truth,
    "arrayValue": _list,
}
