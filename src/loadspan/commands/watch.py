"""What `loadspan run` shows while its command runs: progress of open loads, and each load's waterfall when it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadspan import units
from loadspan.report import terminal, timeline
from loadspan.report.follow import Follower
from loadspan.report.text import BOLD, DIM, GREEN, cells, clean, join, left, wrap

if TYPE_CHECKING:
    from pathlib import Path

    from loadspan.commands.screen import Screen
    from loadspan.model import Load
    from loadspan.report.statefile import Process, RunningLoad, RunningStage
    from loadspan.report.terminal import Look
    from loadspan.report.text import Piece

MOST_WATERFALLS = 20
"""Waterfalls drawn in one run; later loads get a line each, for a server may switch models ten thousand times."""

_PATIENCE = 400_000_000  # a load that is over sooner needs no progress
_BAR = 24
_LONGEST = 30  # columns of a name
_SMOOTHING = 0.3  # weight of the newest throughput: the kernel reads in bursts


@dataclass(slots=True)
class _Speed:
    """Bytes per second of one stage, from successive states."""

    size: int
    updated: int
    value: float | None = None

    def take(self, size: int, updated: int) -> float | None:
        if updated > self.updated:
            now = max(size - self.size, 0) * 1e9 / (updated - self.updated)
            self.value = now if self.value is None else self.value + _SMOOTHING * (now - self.value)
            self.size, self.updated = size, updated
        return self.value


class Watch:
    """The live view of one run folder on one screen."""

    def __init__(self, folder: Path, screen: Screen, look: Look, *, quiet: bool) -> None:
        self._follower = Follower(folder)
        self._screen = screen
        self._look = look
        self._quiet = quiet
        self._speeds: dict[tuple[str, str, int], _Speed] = {}
        self.shown = 0
        """Loads told of so far."""
        self.last_shown = 0.0
        """When, on the monotonic clock."""
        self._pids: set[int | None] = set()

    def tick(self) -> None:
        """Look at the folder once and show what changed. A folder that cannot be read shows nothing new."""
        if self._quiet:
            return
        try:
            ended = self._follower.look()
        except OSError:
            ended = []
        self._pids.update(process.pid for process in self._follower.processes if process.loads or process.closed)
        for load in ended:
            self._tell(load)
        self._screen.draw(self._progress())

    def pause(self) -> None:
        """Leave the terminal to somebody else."""
        self._screen.clear()

    def _tell(self, load: Load) -> None:
        waterfall = timeline.waterfall(load, show_pid=len(self._pids) > 1)
        self.shown += 1
        self.last_shown = time.monotonic()
        if self.shown <= MOST_WATERFALLS:
            # The empty line in front also ends a line that the command may have left half written.
            self._screen.say("", *terminal.lines(waterfall, self._look), "")
        else:
            self._screen.say(terminal.headline(waterfall, self._look))
        if self.shown == MOST_WATERFALLS:
            self._screen.say(f"loadspan: {MOST_WATERFALLS} waterfalls are enough. One line for each further load.")

    def _progress(self) -> list[str]:
        now = time.time_ns()
        lines: list[list[Piece]] = []
        speeds = {}
        for process in self._follower.processes:
            if process.ended or not process.alive(now):
                continue
            inner = {load.parent_id for load in process.loads} - {None}
            for load in process.loads:
                if now - load.start < _PATIENCE or not inner.isdisjoint((load.span_id, *(stage.span_id for stage in load.outer))):
                    continue
                stage = load.stages[-1] if load.stages else None
                speed = None
                if stage is not None and stage.size is not None:
                    key = (load.span_id, stage.name, stage.start)
                    speeds[key] = self._speeds.get(key) or _Speed(stage.size, process.updated)
                    speed = speeds[key].take(stage.size, process.updated)
                lines.append(self._pieces(process, load, stage, speed, now))
        self._speeds = speeds
        for column in (0, 1):  # name and stage, so that bars stand below each other
            widest = max((cells(line[column][0]) for line in lines if len(line) > column), default=0)
            for line in lines:
                line[column] = (left(line[column][0], min(widest, _LONGEST)), line[column][1])
        width = max(self._screen.columns, terminal.NARROWEST // 2)
        return [join(wrap(line, width)[0], color=self._look.color) for line in lines]

    def _pieces(self, process: Process, load: RunningLoad, stage: RunningStage | None, speed: float | None, now: int) -> list[Piece]:
        pieces: list[Piece] = [(clean(load.model or "load"), BOLD), (clean(stage.name) if stage else "", "")]
        if len(self._pids) > 1:
            pieces.append((f"process {process.pid}", DIM))
        if stage is not None:
            if stage.size is not None and stage.file_size:
                pieces.append((self._bar(stage.size / stage.file_size), GREEN))
            if moved := timeline.progress(stage.size, stage.file_size):
                pieces.append((moved, ""))
            if speed:
                pieces.append((units.throughput(speed), ""))
        elif load.size:
            pieces.append((units.size(load.size), ""))
        pieces.append((units.seconds((now - load.start) / 1e9), BOLD))
        if stage is not None and stage.file:
            pieces.append((clean(stage.file.rpartition("/")[2]), DIM))
        return pieces

    def _bar(self, share: float) -> str:
        full, empty = ("█", "·") if self._look.blocks else ("#", "-")
        done = min(int(share * _BAR), _BAR)
        return full * done + empty * (_BAR - done)
