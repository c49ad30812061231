"""`loadspan view`: a finished run in a browser, by way of a Jaeger."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadspan import names, units
from loadspan.commands import show
from loadspan.errors import UserError
from loadspan.report import delivery, parcel, rebuilt, timeline
from loadspan.report.endpoint import Endpoint
from loadspan.report.jaeger import UI_PORT, Jaeger
from loadspan.report.text import clean, left
from loadspan.report.upload import Upload

if TYPE_CHECKING:
    from loadspan.model import Load
    from loadspan.report.delivery import Delivery
    from loadspan.report.tracefile import Recording

_PROBE = 1.0  # seconds; a Jaeger on this machine answers in one millisecond
_WAIT = 10.0
_MOST_LISTED = 20
_WIDEST_MODEL = 40
_INCOMPLETE = 2
_GET_ONE = (
    "Start one: `docker compose up -d` in collector/, or a release from https://www.jaegertracing.io/download; "
    f"or name yours: --jaeger http://HOST:{UI_PORT}"
)


class View:
    """
    Send a recorded run to a Jaeger and print the link to each load.

    What that Jaeger has of the run is not sent again. A load whose process was killed gets the root span that it could not write, marked
    as failed and with loadspan.rebuilt. Example: loadspan view --jaeger http://jaeger.example:16686
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of `view`."""
        parser.add_argument(
            "run", nargs="?", metavar="DIR|FILE", help=f"run folder or file of OTLP JSON (default: the newest folder below ./{show.RUNS})"
        )
        parser.add_argument(
            "--jaeger", metavar="URL", help=f"address of Jaeger as a browser opens it (default: {_here()} if one answers there)"
        )
        parser.add_argument("--otlp", metavar="URL", help="where it takes spans, OTLP over HTTP (default: port 4318 of the same host)")
        parser.add_argument(
            "--wait", type=_seconds, default=_WAIT, metavar="SECONDS", help="longest wait until Jaeger has all spans, 0 for none"
        )
        parser.add_argument("--open", action="store_true", help="open the browser: the load's page, or the list of several loads")
        parser.add_argument("--json", action="store_true", help="print what was done as JSON instead, times in nanoseconds since 1970")

    def run(self, arguments: argparse.Namespace) -> int:
        """Send the run; print the links."""
        path = Path(arguments.run) if arguments.run else show.newest_run()
        recording = parcel.recording(path)
        jaeger = _jaeger(arguments.jaeger)
        otlp = Endpoint(arguments.otlp or jaeger.otlp)
        upload = Upload(otlp)
        running = _running(path, recording)
        dead = [load for load in recording.loads if load.end is None and not any(load is other for other in running)]
        done = delivery.deliver(path, dead, jaeger, upload)
        if not done.seen.spans:
            raise UserError(f"{path}: no span in it that a server could take. Record one: loadspan run -- python serve.py")
        if arguments.wait and not upload.rejected:
            delivery.wait(done, jaeger, arguments.wait)
        view = _View(recording.loads, running, done, jaeger, upload, otlp)
        for warning in (*recording.warnings, *view.warnings(arguments.wait)):
            print(clean(f"loadspan view: {warning}"), file=sys.stderr)
        print(json.dumps(view.as_json(), indent=2) if arguments.json else "\n".join(view.lines()))
        if arguments.open and not _open(view.address):
            print(clean(f"loadspan view: no browser could be opened. Open {view.address}"), file=sys.stderr)
        return _INCOMPLETE if done.missing or upload.rejected else 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 1e6:  # noqa: PLR2004 - no one waits for days; NaN is neither
        raise argparse.ArgumentTypeError(f"{text}: not a number of seconds")
    return seconds


def _here() -> str:
    return f"http://localhost:{UI_PORT}"


def _jaeger(url: str | None) -> Jaeger:
    """The Jaeger that was named, else the one of this machine."""
    if url is not None:
        found = Jaeger(Endpoint(url))
        found.check()
        return found
    try:
        Jaeger(Endpoint(f"http://127.0.0.1:{UI_PORT}", timeout=_PROBE)).check()
    except UserError:
        raise UserError(f"no Jaeger at {_here()}. {_GET_ONE}") from None
    return Jaeger(Endpoint(_here()))  # the name that a browser's history has


def _running(path: Path, recording: Recording) -> list[Load]:
    """The loads whose process is still at it."""
    # Where the run was recorded on this machine, the machine itself is asked: a state file looks alive for two more seconds.
    run = (path if path.is_dir() else path.parent) / names.RUN_FILE
    here = False
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        here = json.loads(run.read_bytes()).get("host") == socket.gethostname()
    now = time.time_ns()
    return [load for load in recording.loads if recording.running(load, now, here=here)]


def _open(address: str) -> bool:
    with contextlib.suppress(webbrowser.Error):
        return webbrowser.open(address)
    return False


class _View:
    """What there is to say about a delivery."""

    def __init__(self, loads: list[Load], running: list[Load], done: Delivery, jaeger: Jaeger, upload: Upload, otlp: Endpoint) -> None:
        self._loads = [load for load in loads if load.trace_id.lower() in done.seen.spans]
        self._running = {id(load) for load in running}
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
            found.append(f"{traces} had been sent before the load ended: Jaeger shows the {rebuilt.REBUILT} spans beside the real ones.")
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
        """The links, a line per load; of many the longest."""
        kept = sorted(self._loads, key=lambda load: load.duration or 0, reverse=True)[:_MOST_LISTED]
        kept.sort(key=lambda load: load.start)
        rows = [(self._model(load), self._duration(load), self._page(load)) for load in kept]
        if not rows:
            rows = [("no load", "", self._jaeger.page(trace_id)) for trace_id in list(self._done.seen.spans)[:_MOST_LISTED]]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        found = [self._sent()]
        found += ["  ".join((left(model, widths[0]), left(duration, widths[1]), link)) for model, duration, link in rows]
        if len(self._loads) > 1:
            listed = f", the {len(kept)} longest of them above" if len(self._loads) > len(kept) else ""
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
            text += f" {number} of the spans {verb} rebuilt for what never ended and {verb} marked {rebuilt.REBUILT}."
        return clean(text)

    def _model(self, load: Load) -> str:
        return clean(load.text(names.MODEL_NAME) or names.LOAD_SPAN)[:_WIDEST_MODEL]

    def _duration(self, load: Load) -> str:
        if self._is_dead(load):
            return clean(rebuilt.ending(load))
        if load.duration is None:
            return "still running"
        failed = load.error is not None or load.text(names.ERROR_TYPE) is not None
        return units.seconds(load.duration) + (" failed" if failed else "")

    def _is_dead(self, load: Load) -> bool:
        return load.end is None and id(load) not in self._running


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
