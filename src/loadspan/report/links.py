"""What `view` tells of a run that it sent: the links, a line per load, what is not as it should be, and all of it for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan import names, units
from loadspan.report import rebuilt, timeline
from loadspan.report.text import clean, left

if TYPE_CHECKING:
    from loadspan.model import Load
    from loadspan.report.delivery import Delivery
    from loadspan.report.endpoint import Endpoint
    from loadspan.report.jaeger import Jaeger
    from loadspan.report.upload import Upload

_MOST_LISTED = 20
_WIDEST_MODEL = 40


class Links:
    """
    What there is to say about a delivery.

    Args:
        loads: those to tell of.
        running: identities of those whose process is still at it.
        done: what was done.
        jaeger: has the pages.
        upload: knows what was taken.
        otlp: where it was sent.
    """

    def __init__(self, loads: list[Load], running: set[int], done: Delivery, jaeger: Jaeger, upload: Upload, otlp: Endpoint) -> None:
        self._loads = [load for load in loads if load.trace_id.lower() in done.seen.spans]
        self._running = running
        self._done = done
        self._jaeger = jaeger
        self._upload = upload
        self._otlp = otlp

    def warnings(self, waited: float) -> list[str]:
        """One line for each thing that is not as it should be."""
        done, found = self._done, []
        if done.seen.skipped:
            found.append(f"{_count(done.seen.skipped, 'span')} left out: without valid ids or times no server takes them.")
        if self._running:
            found.append(
                f"{_count(len(self._running), 'load')} still running: sent as far as written. Run this again when the program has ended."
            )
        if done.replaced:
            traces = _count(len(done.replaced), "trace")
            found.append(f"{traces} had been sent before the load ended: Jaeger shows the {names.REBUILT} spans beside the real ones.")
        if self._upload.rejected:
            reason = f": {self._upload.reason.rstrip('.')}" if self._upload.reason else ""
            found.append(f"{_count(self._upload.rejected, 'span')} rejected by {self._otlp.url}{reason}. The pictures are not complete.")
        if done.missing:
            spans, traces = sum(done.missing.values()), _count(len(done.missing), "trace")
            found.append(
                f"{_count(spans, 'span')} of {traces} not in Jaeger after {waited:g} s. Is {self._otlp.url} where this Jaeger takes spans "
                "(--otlp)? A sampling Collector or an old run's date may also keep them from it; --wait waits longer."
            )
        return found

    def lines(self) -> list[str]:
        """The links, a line per load; of many those that failed and the longest."""
        kept = sorted(self._loads, key=lambda load: (self._failed(load), load.duration or 0), reverse=True)[:_MOST_LISTED]
        kept.sort(key=lambda load: load.start)
        rows = [(self._model(load), self._duration(load), self._page(load)) for load in kept]
        if not rows:
            rows = [("no load", "", self._jaeger.page(trace_id)) for trace_id in list(self._done.seen.spans)[:_MOST_LISTED]]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        found = [self._sent()]
        found += ["  ".join((left(model, widths[0]), left(duration, widths[1]), link)) for model, duration, link in rows]
        if len(self._loads) > 1:
            listed = f", {len(kept)} of them above: those that failed, then the longest" if len(self._loads) > len(kept) else ""
            search = f" In a list: {self._search()}" if self._search() else ""
            found.append(f"{len(self._loads)} loads{listed}.{search}")
        return found

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        done = self._done
        return {
            "otlp": self._otlp.url,
            "sent": self._upload.sent,
            "present": done.present,
            "rebuilt": sum(map(len, done.rebuilt.values())),
            "rejected": self._upload.rejected,
            "skipped": done.seen.skipped,
            "missing": sum(done.missing.values()),
            "loads": [self._as_json(load) for load in self._loads],
            "traces": [
                {"trace_id": trace_id, "url": self._jaeger.page(trace_id), "spans": len(spans), "missing": done.missing.get(trace_id, 0)}
                for trace_id, spans in done.seen.spans.items()
            ],
        }

    def _as_json(self, load: Load) -> dict[str, Any]:
        found = {
            "trace_id": load.trace_id.lower(),
            "span_id": load.span_id.lower(),
            "url": self._page(load),
            "model": load.text(names.MODEL_NAME),
            "pid": load.pid,
            "start": load.start,
            "end": load.end,
            "duration": load.duration,
            "failure": timeline.waterfall(load).failure if load.end is not None else None,
            "killed": rebuilt.ending(load) if self._is_dead(load) else None,
        }
        return {key: value for key, value in found.items() if value is not None}

    @property
    def address(self) -> str:
        """The one page to open: the trace, or the list of several."""
        longest = max(self._loads, key=lambda load: load.duration or 0, default=None)
        trace_id = next(iter(self._done.seen.spans)) if longest is None else longest.trace_id.lower()
        return self._search() or self._jaeger.page(trace_id)

    def _search(self) -> str | None:
        """The list of the loads, where they are in several traces of one service: Jaeger lists traces, and those of one service."""
        if len(self._done.seen.services) != 1 or len({load.trace_id.lower() for load in self._loads}) < 2:  # noqa: PLR2004 - one is no list
            return None
        starts = [load.start for load in self._loads]
        (service,) = self._done.seen.services
        return self._jaeger.search(service, min(starts), max(starts))

    def _page(self, load: Load) -> str:
        return self._jaeger.page(load.trace_id.lower())

    def _sent(self) -> str:
        done, sent, url = self._done, self._upload.sent, self._otlp.url
        if sent or not done.present:
            text = f"Sent {_count(sent, 'span')} to {url}{f'; {done.present} more were there already' if done.present else ''}."
        else:
            text = f"Nothing to send: {'the span is' if done.present == 1 else f'all {done.present} spans are'} there already."
        number = sum(map(len, done.rebuilt.values()))
        if number:
            verb = "was" if number == 1 else "were"
            text += f" {number} of the spans {verb} rebuilt for what never ended and {verb} marked {names.REBUILT}."
        return clean(text)

    def _model(self, load: Load) -> str:
        return clean(load.text(names.MODEL_NAME) or names.LOAD_SPAN)[:_WIDEST_MODEL]

    def _duration(self, load: Load) -> str:
        if self._is_dead(load):
            return clean(rebuilt.ending(load))
        if load.duration is None:
            return "still running"
        return units.seconds(load.duration) + (" failed" if self._failed(load) else "")

    def _failed(self, load: Load) -> bool:
        return load.end is None or load.error is not None or load.text(names.ERROR_TYPE) is not None

    def _is_dead(self, load: Load) -> bool:
        return load.end is None and id(load) not in self._running


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
