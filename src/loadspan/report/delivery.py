"""A recorded run to a Jaeger: what it does not have yet is sent, what a killed process left out is rebuilt, and then it is asked again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadspan.errors import UserError
from loadspan.report import rebuilt
from loadspan.report.parcel import Origin, Parcel, Seen, pieces

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loadspan.model import Load
    from loadspan.report.jaeger import Jaeger
    from loadspan.report.upload import Upload

_PAUSE = 0.1
_LONGEST_PAUSE = 1.0
_NOBODY = Origin(
    '{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"unknown_service:python"}}]}}', '{"scope":{"name":"loadspan"}}'
)
"""Where spans of a process come from that was killed before it wrote one."""


@dataclass(slots=True)
class Delivery:
    """What was done with the spans of a run."""

    seen: Seen = field(default_factory=Seen)
    known: dict[str, dict[str, bool]] = field(default_factory=dict)
    """What Jaeger had before, by trace; see `Jaeger.spans_of`."""
    present: int = 0
    """Spans that it had, which were not sent."""
    rebuilt: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the spans made for killed processes, by trace."""
    replaced: set[str] = field(default_factory=set)
    """Traces in which Jaeger has a rebuilt span besides the one that the run has by now."""
    missing: dict[str, int] = field(default_factory=dict)
    """Spans that had not arrived when the wait was over, by trace."""


def deliver(path: Path, dead: Sequence[Load], jaeger: Jaeger, upload: Upload) -> Delivery:
    """
    Send the spans of a run.

    Args:
        path: its folder or file.
        dead: the loads without an end whose process is gone. One that still runs will write its root itself.
        jaeger: is asked what it has.
        upload: where it takes spans.

    Raises:
        UserError: a server does not answer, or not as it should.
    """
    done = Delivery()
    parcel = Parcel(upload.send)
    try:
        for piece in pieces(path, done.seen):
            known = _known(done, jaeger, piece.trace_id)
            if not known.get(piece.span_id, True):
                done.present += 1
                continue
            if piece.span_id in known:
                done.replaced.add(piece.trace_id)
            parcel.add(piece.origin, piece.span)
        for load in dead:
            _rebuild(done, load, jaeger, parcel)
        parcel.flush()
    except UserError as error:
        if not upload.sent:
            raise
        raise UserError(
            f"{str(error).rstrip('.')}. {upload.sent} spans had been sent before; nothing is sent twice when you run it again"
        ) from None
    return done


def _known(done: Delivery, jaeger: Jaeger, trace_id: str) -> dict[str, bool]:
    if trace_id not in done.known:
        done.known[trace_id] = jaeger.spans_of(trace_id)
    return done.known[trace_id]


def _rebuild(done: Delivery, load: Load, jaeger: Jaeger, parcel: Parcel) -> None:
    """Send what a killed process could not."""
    trace_id = load.trace_id.lower()
    written = done.seen.spans.get(trace_id, set())
    for span in rebuilt.spans_of(load, written):
        span_id = span["spanId"].lower()
        done.rebuilt.setdefault(trace_id, []).append(span_id)
        done.seen.spans.setdefault(trace_id, set()).add(span_id)
        if span_id in _known(done, jaeger, trace_id):
            done.present += 1
        else:
            parcel.add(done.seen.origin(trace_id, load.pid) or _NOBODY, span)


def wait(done: Delivery, jaeger: Jaeger, seconds: float) -> None:
    """Wait until Jaeger has every span, at most so long, and note what it then does not have."""
    deadline = time.monotonic() + seconds
    for trace_id, spans in done.seen.spans.items():
        pause = _PAUSE
        while missing := len(spans - jaeger.spans_of(trace_id).keys()):
            left = deadline - time.monotonic()
            if left <= 0:
                done.missing[trace_id] = missing
                break
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
