"""`loadspan run`: record a program without changing it."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import signal
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from loadspan import names, settings, variables
from loadspan.commands import child, show
from loadspan.commands.runfile import RunFile
from loadspan.commands.screen import Screen
from loadspan.commands.watch import Watch
from loadspan.errors import UserError
from loadspan.report import ranks, terminal, timeline, tracefile
from loadspan.report.text import BOLD, RED, clean, join

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadspan.commands.child import Ending
    from loadspan.report.terminal import Look
    from loadspan.report.tracefile import Recording

_INTERVAL = 0.1  # as often as the state files change
_MOST_SUMMED_UP = 20
_LONG_AGO = 2.0  # seconds after which a waterfall is taken to have scrolled away
_HOLDS_A_RUN = (names.RUN_FILE, "trace-*.jsonl", "state-*.json")


class Run:
    """
    Run COMMAND and record every model load in it and in its child processes.

    COMMAND keeps its standard streams, arguments, signals and exit code; what loadspan says goes to standard error. Python programs are
    instrumented as by opentelemetry-instrument, and spans also go where OTEL_TRACES_EXPORTER says. If a signal kills COMMAND,
    the exit code is 128 + its number (after ^C loadspan itself ends by SIGINT, so that a shell's loop ends too).
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of `run`."""
        parser.usage = "loadspan run [-o DIR] [--quiet] -- COMMAND ..."
        parser.add_argument(
            "-o",
            "--output",
            metavar="DIR",
            help=f"run folder, new or without a run in it (default: {show.RUNS}/DATE-TIME-NAME, a new one for each run)",
        )
        parser.add_argument("--quiet", action="store_true", help="print nothing but errors: no progress, no waterfalls, no summary")
        parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="program to run, with its arguments")

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command; return its exit code."""
        command = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
        if not command:
            raise UserError("no command. Say what to run: loadspan run -- python serve.py")
        settings.read(os.environ)
        screen = Screen(sys.stderr)
        for warning in _warnings(os.environ):
            screen.say(f"loadspan run: {warning}")
        executable = child.find(command[0], os.environ)
        name = name_of(command)
        # Checks for the packages it needs, so before a folder is made.
        environ = child.environment(os.environ, Path(), name)
        folder = make_folder(Path(arguments.output) if arguments.output else None, name)
        environ[variables.RUN_DIR] = str(folder.absolute())
        look = show.look(sys.stderr)
        watch = Watch(folder, screen, look, quiet=arguments.quiet)
        record = RunFile(folder, command)
        if not arguments.quiet:
            screen.say(f"loadspan: recording to {clean(str(folder))}")
        try:
            ending = _follow(executable, command, environ, watch)
        except UserError:
            record.discard()
            raise
        record.close(ending)
        if not arguments.quiet:
            report = Report(folder, name, ending, watch, look)
            screen.say(*report.lines())
        return _leave(ending)


def _follow(executable: str, command: Sequence[str], environ: Mapping[str, str], watch: Watch) -> Ending:
    with child.Child(executable, command, environ) as running:
        try:
            ending = running.follow(_INTERVAL, watch.tick, watch.pause)
            watch.tick()  # the loads that ended with the command
        finally:
            watch.pause()
    return ending


def _leave(ending: Ending) -> int:
    if ending.signal == signal.SIGINT:
        # A shell ends its loop only if the program died of the signal; an exit code of 130 would let it go on.
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return ending.shell_code


def _warnings(environ: Mapping[str, str]) -> list[str]:
    """Settings that will surprise the user."""
    known = [variable.name for variable in variables.VARIABLES]
    found = []
    for name in sorted(environ):
        if name.startswith("LOADSPAN_") and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            found.append(f"{name}: unknown variable, ignored. {f'Did you mean {near[0]}?' if near else 'Known: ' + ', '.join(known)}")
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        found.append("OTEL_SDK_DISABLED=true: nothing will be recorded. Unset it.")
    return [clean(warning) for warning in found]


def name_of(command: Sequence[str]) -> str:
    """What a person would call *command*: `serve` for `/usr/bin/python3 -u app/serve.py --port 80`."""
    program = Path(command[0]).name
    if re.fullmatch(r"python[\d.]*", program):
        words = iter(command[1:])
        for word in words:
            if word == "-m":
                program = next(words, program)
                break
            if word in ("-W", "-X"):
                next(words, None)
            elif word == "-c":
                break
            elif not word.startswith("-"):
                program = Path(word).stem
                break
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", program).strip("-.")[:40] or "run"


def make_folder(chosen: Path | None, name: str) -> Path:
    """
    A run folder that holds no run yet: *chosen*, or a new one below the usual place. A folder made here is only for its user.

    Raises:
        UserError: it holds a run, or cannot be made or written.
    """
    if chosen is None:
        chosen = _new_folder(name)
    else:
        try:
            chosen.parent.mkdir(parents=True, exist_ok=True)
            chosen.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{chosen}: not a folder. Name another with -o.") from None
        except OSError as error:
            raise UserError(f"{chosen}: {_reason(error)}. Name a folder you can write to with -o.") from None
        if any(next(chosen.glob(pattern), None) for pattern in _HOLDS_A_RUN):
            raise UserError(f"{chosen}: holds a run already. Name another folder with -o, or remove this one.")
    return chosen


def _new_folder(name: str) -> Path:
    stem = f"{datetime.now().astimezone():%Y-%m-%d-%H%M%S}-{name}"
    for number in range(1, 1000):
        folder = show.RUNS / (stem if number == 1 else f"{stem}-{number}")
        try:
            show.RUNS.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if not show.RUNS.is_dir():
                break
        except OSError as error:
            raise UserError(f"{folder}: {_reason(error)}. Name a folder you can write to with -o.") from None
        else:
            return folder
    raise UserError(f"{show.RUNS}: no new folder can be made there. Name one with -o.")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


class Report:
    """The last words of a run: what was not told yet, what died, where it all is."""

    def __init__(self, folder: Path, name: str, ending: Ending, watch: Watch, look: Look) -> None:
        self._folder = folder
        self._name = name
        self._ending = ending
        self._watch = watch
        self._look = look

    def lines(self) -> list[str]:
        """The report."""
        found = []
        if self._ending.signal is not None:
            found.append(self._paint(f"loadspan: {self._name} was killed by {self._ending.signal_name}", RED))
        try:
            recording = tracefile.read(self._folder)
        except (UserError, OSError):  # an empty folder is the usual case: the command loaded nothing
            recording = tracefile.Recording(loads=[], processes=[], warnings=[])
        if not recording.loads:
            return [*found, f"loadspan: no load recorded. {_why_nothing(recording)}"]
        found += [f"loadspan: {clean(warning)}" for warning in recording.warnings]
        found += self._unfinished(recording)
        if self._watch.shown and (len(recording.loads) > 1 or self._scrolled_away()):
            found += self._summary(recording)
        if of_ranks := ranks.lines(recording.loads, self._look):
            found += [*of_ranks, ""]
        where = shlex.quote(clean(str(self._folder)))
        return [*found, f"loadspan: show it again with: loadspan show {where}"]

    def _unfinished(self, recording: Recording) -> list[str]:
        """Waterfalls of the loads without an end, which were never drawn."""
        now = time.time_ns()
        found = []
        for load in [load for load in recording.loads if load.end is None][:_MOST_SUMMED_UP]:
            waterfall = timeline.waterfall(load, running=recording.running(load, now, here=True), show_pid=True)
            found += ["", *terminal.lines(waterfall, self._look)]
        return [*found, ""] if found else []

    def _scrolled_away(self) -> bool:
        return time.monotonic() - self._watch.last_shown > _LONG_AGO

    def _summary(self, recording: Recording) -> list[str]:
        """A line per load; of many the longest."""
        loads = recording.loads
        now = time.time_ns()
        kept = sorted(sorted(loads, key=lambda load: load.duration or 0, reverse=True)[:_MOST_SUMMED_UP], key=lambda load: load.start)
        title = f"{len(loads)} loads" if len(loads) > 1 else "1 load"
        if len(loads) > len(kept):
            title += f", the {len(kept)} longest of them"
        several = len({load.pid for load in loads}) > 1
        drawn = [timeline.waterfall(load, running=recording.running(load, now, here=True), show_pid=several) for load in kept]
        return [self._paint(title, BOLD), *terminal.summary(drawn, self._look), ""]

    def _paint(self, text: str, style: str) -> str:
        return join([(text, style)], color=self._look.color)


def _why_nothing(recording: Recording) -> str:
    if recording.processes:
        return "The program was watched, and loaded no model in a way loadspan knows. Mark it with @loadspan.stage(...)."
    return f"Either it loads no model, or it does not run {sys.executable}, or it runs it with -I, -E, -S or without our environment."
