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
from typing import TYPE_CHECKING

from loadspan import names
from loadspan.commands import show
from loadspan.errors import UserError
from loadspan.model import Load
from loadspan.report import delivery, parcel
from loadspan.report.endpoint import Endpoint
from loadspan.report.jaeger import UI_PORT, Jaeger
from loadspan.report.links import Links
from loadspan.report.text import clean
from loadspan.report.upload import Upload

if TYPE_CHECKING:
    from loadspan.report.tracefile import Recording

_PROBE = 1.0  # seconds; a Jaeger on this machine answers in one millisecond
_WAIT = 10
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
        unfinished = [load for outer in recording.loads for load in _unfinished(outer)]
        running = _running(path, recording, unfinished)
        dead = [load for load in unfinished if id(load) not in running]
        done = delivery.deliver(path, dead, jaeger, upload)
        if not done.seen.spans:
            raise UserError(f"{path}: no span in it that a server could take. Record one: loadspan run -- python serve.py")
        if arguments.wait and not upload.rejected:
            delivery.wait(done, jaeger, arguments.wait)
        # A load within another is told of where it never ended and the other did: a killed rank.
        inner = [load for outer in recording.loads if outer.end is not None for load in _unfinished(outer)]
        links = Links([*recording.loads, *inner], running, done, jaeger, upload, otlp)
        for warning in (*recording.warnings, *links.warnings(arguments.wait)):
            print(clean(f"loadspan view: {warning}"), file=sys.stderr)
        print(json.dumps(links.as_json(), indent=2) if arguments.json else "\n".join(links.lines()))
        if arguments.open and not _open(links.address):
            print(clean(f"loadspan view: no browser could be opened. Open {links.address}"), file=sys.stderr)
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


def _unfinished(load: Load) -> list[Load]:
    """Those of a load and the loads in it that have no end."""
    return [span for span in load.walk() if isinstance(span, Load) and span.end is None]


def _running(path: Path, recording: Recording, unfinished: list[Load]) -> set[int]:
    """Identities of the loads whose process is still at it."""
    # Where the run was recorded on this machine, the machine itself is asked: a state file looks alive for two more seconds.
    run = (path if path.is_dir() else path.parent) / names.RUN_FILE
    here = False
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        here = json.loads(run.read_bytes()).get("host") == socket.gethostname()
    now = time.time_ns()
    return {id(load) for load in unfinished if recording.running(load, now, here=here)}


def _open(address: str) -> bool:
    with contextlib.suppress(webbrowser.Error):
        return webbrowser.open(address)
    return False
