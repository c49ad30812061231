"""
Whose time it is, in a load and in the loads around it.

The lowest of the recorder's layers: `tallies` on top of it, then `loads`, `stages`, `quick`, and the `recorder` itself.
Locks are taken in one order: a load's, its outer loads', the recorder's.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from loadspan.instrument.frames import OpenLoad, OpenStage
    from loadspan.instrument.partition import Node
    from loadspan.instrument.tally import Tally

_Place = TypeVar("_Place")  # a node, or None for a load itself


class Times:
    """Enters and leaves stages in the partitions of all loads that they are in."""

    def nodes(self, name: str, frame: OpenLoad | OpenStage, inside: Tally | None = None) -> list[Node]:
        """Nodes for a stage or tally in *frame*, or in a running tally: one in its load, one in each load around that."""
        found: list[Node] = []
        outer: OpenLoad | OpenStage | None = frame
        for above in inside.nodes if inside is not None else frame.above:
            if outer is None:
                break
            found.append(outer.load.partition.node(name, above))
            outer = outer.load.parent
        return found

    def enter(self, load: OpenLoad, nodes: list[Node], now: int, since: int = 0) -> None:
        """Time belongs to *nodes* from *now* on; to enter them took the recorder from *since* to now. The load's lock is held."""
        for outer, node in self.levels(load, nodes):
            with outer.lock:
                if outer.solo and (outer.inside is not None or outer.solo != threading.get_ident()):
                    self.contend(outer)
                if outer.gap:
                    self.settle_gap(outer, since or now)
                if since:
                    outer.partition.recorded(since, now, node.parent)
                outer.partition.enter(node, now)

    def leave(self, load: OpenLoad, nodes: list[Node], now: int) -> None:
        """Time no longer belongs to *nodes*. The load's lock is held."""
        for outer, node in self.levels(load, nodes):
            with outer.lock:
                outer.partition.leave(node, now)
                outer.last_end = max(outer.last_end, now)

    def spent(self, load: OpenLoad, inside: Iterable[Node | None], since: int) -> None:
        """The recorder has worked from *since* to now, *inside* a node or none of *load* and of each load around it. No lock is held."""
        now = time.perf_counter_ns()
        for outer, node in self.levels(load, inside):
            with outer.lock:
                outer.partition.recorded(since, now, node)

    def settle(self, load: OpenLoad, nodes: list[Node], name: str | None) -> None:
        """The stage of *nodes* is over and was *name*, or none. The load's lock is held."""
        for outer, node in self.levels(load, nodes):
            with outer.lock:
                outer.partition.settle(node, name)

    def contend(self, load: OpenLoad) -> None:
        """A second thread calls something, or something is called inside a quick call: from now on every call enters. The lock is held."""
        # In this order, as the quick call that ends looks at them in the other: one of the two sides sees the other.
        load.solo = 0
        inside = load.inside
        if inside is not None and not inside.entered:
            inside.entered = True
            for outer, node in self.levels(load, inside.nodes):
                with outer.lock:
                    outer.partition.enter(node, inside.begun)

    def claim(self, load: OpenLoad, nodes: list[Node], nanoseconds: int, now: int) -> None:
        """Time before *now* that was given to what is around *nodes* was theirs. The load's lock is held."""
        for outer, node in self.levels(load, nodes):
            with outer.lock:
                outer.partition.claim(node, nanoseconds, now)
                outer.last_end = max(outer.last_end, now)

    @staticmethod
    def levels(load: OpenLoad, nodes: Iterable[_Place]) -> Iterator[tuple[OpenLoad, _Place]]:
        """A load and the loads around it, each with its node."""
        outer: OpenLoad | None = load
        for node in nodes:
            if outer is None:
                return
            yield outer, node
            outer = outer.parent.load if outer.parent is not None else None

    def settle_gap(self, load: OpenLoad, now: int) -> None:
        """A gap between stages ends at *now*; the layer above knows what it was. The load's lock is held."""
        raise NotImplementedError
