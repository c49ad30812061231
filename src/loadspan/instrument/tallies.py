"""Tallies of fine calls: made, collected and shown under their frames. Between `times` and `loads` of the recorder's layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument import attributes
from loadspan.instrument.frames import OpenLoad, OpenStage
from loadspan.instrument.tally import Tally
from loadspan.instrument.times import Times

if TYPE_CHECKING:
    from loadspan.instrument import telemetry
    from loadspan.instrument.failure import Failure
    from loadspan.settings import Settings

SPAN_LIMIT = 480
"""Spans reserved by coarse calls and tallies of one load; what comes later is tallied under the root. At most 500 in all."""

Found = dict[str, Any] | Callable[[], dict[str, Any]]
"""Attributes, or what makes them."""


class Tallies(Times):
    """The tallies of the open frames."""

    settings: Settings

    def show(self, load: OpenLoad, handle: telemetry.SpanHandle, end: int, found: Found, error: Failure | None) -> None:
        """Have a span made; the layer above knows when. The load's lock is held."""
        raise NotImplementedError

    def moved(self, load: OpenLoad, name: str, size: int, parent: OpenLoad | OpenStage | None, *, lazy: bool) -> None:
        """Count bytes of stage *name*, called in *parent*, for the stages and loads around it."""
        while name == names.DESERIALIZE and isinstance(parent, OpenStage):
            parent.brought += size
            parent = parent.parent
        inner: OpenLoad | None = load
        while inner is not None:
            inner.totals[name] = inner.totals.get(name, 0) + size
            inner.lazy[name] = inner.lazy.get(name, 0) + size * lazy
            inner = inner.parent.load if inner.parent is not None else None

    def tally(self, frame: OpenLoad | OpenStage, name: str, apart: str = "") -> Tally:
        """The tally of *name* under *frame*, or the one *apart* from it, made if need be. The load's lock is held."""
        load = frame.load
        tally = frame.tallies.get(apart or name)
        if tally is None:
            if frame is not load and load.spans >= SPAN_LIMIT:
                return self.tally(load, name, apart)
            tally = frame.tallies[apart or name] = Tally(name, load, frame.stage, apart)
            tally.nodes = self.nodes(name, frame)
            load.spans += 1
        return tally

    def collect(self, frame: OpenLoad | OpenStage) -> None:
        """Count what the tallies of *frame* were not yet told of. The load's lock is held."""
        for tally in frame.tallies.values():
            self.collect_one(tally)

    def collect_one(self, tally: Tally) -> None:
        """Count what *tally* was not yet told of. The load's lock is held."""
        tally.collect()
        if tally.quick:
            quick, tally.quick = tally.quick, 0
            self.claim(tally.load, tally.nodes, quick, tally.last)

    def flush_tallies(self, load: OpenLoad, frame: OpenLoad | OpenStage) -> None:
        """Show the tallies of a frame that closes, in the order in which they began. The load's lock is held."""
        self.collect(frame)
        for tally in sorted(frame.tallies.values(), key=lambda tally: tally.first):
            self.emit(load, tally)

    def outlived(self, tally: Tally) -> None:
        """
        A call of *tally* has ended: if its stage is closed, and what it had tallied is shown, it counts in what is around that.

        The load's lock is held.
        """
        stage = tally.parent
        if stage is None or not stage.closed:
            return
        around: OpenLoad | OpenStage | None = stage
        while isinstance(around, OpenStage) and around.closed:
            around = around.parent
        if around is not None:
            self.tally(around, tally.name, tally.apart).take(tally)
            tally.reset()

    def emit(self, load: OpenLoad, tally: Tally) -> None:
        """Show what a tally has counted since the last time. The load's lock is held."""
        self.collect_one(tally)
        if not tally.count:
            return
        if tally.size:
            self.moved(load, tally.name, tally.size, tally.parent, lazy=tally.deferred)
        parent = load.handle if tally.parent is None else tally.parent.handle
        parent = parent or load.handle
        start, end = parent.place(load.epoch(tally.first), load.epoch(tally.last), tally.own_time())
        told = tally.segment()
        found = partial(attributes.of_tally, told, full_paths=self.settings.full_paths)
        # A device's link is looked at for as long as bytes go there, and no longer.
        self.show(load, parent.child(tally.name, start), end, found() if told.destinations else found, told.error)
