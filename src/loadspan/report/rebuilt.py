"""
The spans that a killed process could not write: the root of its load, the stages it was in, and what those were in.

Without them a trace is a heap of stages whose parent nobody knows. Each gets the very id that its children name as their parent, the status
of a failure and the words that `show` has for its end. They are marked, for nobody measured when they ended: their end is when the process
was last seen.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.model import Load
from loadspan.report import timeline
from loadspan.report.otlp import SPAN_ID, TRACE_ID
from loadspan.report.tree import LAST_SEEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from loadspan.model import Span, Value

KILLED = "killed"
"""The `error.type` of a load that was open when its process last said so, and whose process is gone."""
UNFINISHED = "unfinished"
"""Name of a span that is known from its children alone."""


def spans_of(load: Load, written: set[str]) -> list[dict[str, Any]]:
    """
    What is missing of *load*, which never ended, as OTLP/JSON spans: itself, the stages open in it, and those only their children tell of.

    Args:
        load: a load whose process is gone. One inside of it that never ended either is asked for by itself.
        written: ids of all spans of its trace that there are, in lower case.
    """
    if not TRACE_ID.fullmatch(load.trace_id) or not SPAN_ID.fullmatch(load.span_id) or load.span_id.lower() in written:
        return []
    return list(_missing(load, load.trace_id, written))


def ending(load: Load) -> str:
    """`killed in read at 12.3 of 20.1 GB after 41.2 s`, of a load without an end."""
    return re.sub(r"^died\b", "killed", timeline.waterfall(load).ending or "never ended")


def _missing(load: Load, trace_id: str, written: set[str]) -> Iterator[dict[str, Any]]:
    end = _last_moment(load)
    message = ending(load)
    told = {names.REBUILT: True}
    if LAST_SEEN in load.attributes:
        told[names.ERROR_TYPE] = KILLED  # type: ignore[assignment] # both are values of attributes
    attributes: dict[str, Value] = {key: value for key, value in load.attributes.items() if key != LAST_SEEN}
    if load.pid is not None:
        attributes.setdefault(names.PROCESS_PID, load.pid)
    yield _span(load.name, trace_id, load.span_id, load.parent_id, (load.start, end), {**attributes, **told}, message)
    lost: dict[str, list[Span]] = defaultdict(list)
    here = {load.span_id, *(span.span_id for span in load.walk())}
    ids = {id(load): load.span_id}
    for child in load.children:
        parent = child.parent_id
        if child.end is not None and parent and parent not in here and parent.lower() not in written and SPAN_ID.fullmatch(parent):
            lost[parent].append(child)
    for span, above in _running(load):
        known: str | None = span.span_id
        if not SPAN_ID.fullmatch(span.span_id):
            # A stage that was open and has children in the file is the one they name: its id is theirs to tell.
            known = next((each for each, children in lost.items() if span.start <= min(child.start for child in children)), None)
            if known is not None:
                del lost[known]
        stage: dict[str, Value] = {names.STAGE: span.name, **span.attributes}
        made = known or _made_up(trace_id, span)
        ids[id(span)] = made
        yield _span(span.name, trace_id, made, ids[id(above)], (span.start, end), {**stage, **told}, message)
    for parent, children in lost.items():
        first = min(child.start for child in children)
        yield _span(UNFINISHED, trace_id, parent, load.span_id, (first, end), told, message)


def _running(load: Load) -> Iterator[tuple[Span, Span]]:
    """Stages that were open in *load*, each with what it was open in, outer ones first. Those of a load in it are told of with that."""
    todo: list[Span] = [load]
    for outer in todo:  # grows while it is walked
        for child in outer.children:
            if child.end is None and not isinstance(child, Load):
                yield child, outer
                todo.append(child)


def _last_moment(load: Load) -> int:
    seen = load.attributes.get(LAST_SEEN)
    moments = [moment for span in load.walk() for moment in (span.start, span.end) if moment is not None]
    return max([*moments, seen] if isinstance(seen, int) else moments)


def _made_up(trace_id: str, span: Span) -> str:
    """An id for a span that has none, the same every time: sent twice it is still one span."""
    return hashlib.sha256(f"{trace_id}/{span.span_id}/{span.name}".encode()).hexdigest()[:16]


def _span(
    name: str, trace_id: str, span_id: str, parent: str | None, times: tuple[int, int], attributes: Mapping[str, Value], message: str
) -> dict[str, Any]:
    found: dict[str, Any] = {"traceId": trace_id, "spanId": span_id, "name": name, "kind": 1}
    if parent is not None and SPAN_ID.fullmatch(parent):
        found["parentSpanId"] = parent
    start, end = times
    found |= {"startTimeUnixNano": str(start), "endTimeUnixNano": str(max(start, end))}
    found["attributes"] = [{"key": key, "value": _value(value)} for key, value in attributes.items()]
    found["status"] = {"code": 2, "message": message}
    return found


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, tuple):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": value}
