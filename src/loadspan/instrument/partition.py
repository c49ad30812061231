"""
Who had each instant of a load: exclusive time per stage, and `other`.

An instant belongs to the innermost open stages, in equal shares where several run at once; to `other` where none is open.
Pure and streaming: it is told what is entered and left and when, keeps no intervals, and so costs the same for ten calls and a million.
The exclusive times and `other` add up to the observed time exactly (integers; of a shared instant the remainder goes to the last sharer).
"""

from __future__ import annotations

from typing import Any


class Partition:
    """
    The partition of one load. Times are nanoseconds of one clock and never go back. Not thread-safe: the load's lock is held around it.

    A key is any hashable object that stands for one open stage; entering an open key again raises its share (a tally with two calls at once).
    """

    __slots__ = ("_children", "_exclusive", "_leaves", "_names", "_open", "_parents", "last", "other", "shares", "totals")

    def __init__(self, start: int) -> None:
        self.last = start
        self.other = 0
        self.totals: dict[str, int] = {}
        """Exclusive nanoseconds per stage name, of stages already left."""
        self.shares = 0
        """Calls that share the present instant; 0 means nothing is open."""
        self._leaves: dict[Any, int] = {}
        self._open: dict[Any, int] = {}
        self._parents: dict[Any, Any] = {}
        self._children: dict[Any, int] = {}
        self._exclusive: dict[Any, int] = {}
        self._names: dict[Any, str] = {}

    def advance(self, now: int) -> None:
        """Give the time since the last event to whoever had it."""
        passed = now - self.last
        if passed <= 0:
            return
        self.last = now
        shares = self.shares
        if not shares:
            self.other += passed
            return
        exclusive = self._exclusive
        if len(self._leaves) == 1:
            for key in self._leaves:
                exclusive[key] += passed
            return
        rest = passed
        for key, count in self._leaves.items():
            part = passed * count // shares
            exclusive[key] += part
            rest -= part
        exclusive[key] += rest

    def enter(self, key: Any, parent: Any, name: str, now: int) -> None:
        """Open *key*, of stage *name*, at *now*, inside *parent* (a key, or None for the load itself)."""
        self.advance(now)
        count = self._open.get(key, 0)
        self._open[key] = count + 1
        if not count:
            self._exclusive[key] = 0
            self._names[key] = name
            if parent is not None and parent in self._open:
                self._parents[key] = parent
                self._children[parent] = self._children.get(parent, 0) + 1
                self.shares -= self._leaves.pop(parent, 0)
        if not self._children.get(key):
            self._leaves[key] = count + 1
            self.shares += 1

    def leave(self, key: Any, name: str | None, now: int) -> None:
        """Close *key* at *now*; its time counts as stage *name*, or as its parent's where *name* is None."""
        self.advance(now)
        count = self._open.get(key, 0) - 1
        if count < 0:
            return
        leaf = key in self._leaves
        if count:
            self._open[key] = count
            if leaf:
                self._leaves[key] = count
                self.shares -= 1
            return
        del self._open[key]
        if leaf:
            self.shares -= self._leaves.pop(key)
        self._children.pop(key, None)
        self._settle(key, name)

    def _settle(self, key: Any, name: str | None) -> None:
        exclusive = self._exclusive.pop(key)
        del self._names[key]
        parent = self._parents.pop(key, None)
        present = parent is not None and parent in self._open
        if name is not None:
            self.totals[name] = self.totals.get(name, 0) + exclusive
        elif present:
            self._exclusive[parent] += exclusive
        else:
            self.other += exclusive
        if present:
            self._children[parent] -= 1
            if not self._children[parent]:
                self._leaves[parent] = self._open[parent]
                self.shares += self._open[parent]

    def finish(self, now: int) -> None:
        """The load ends at *now*; what is still open gets the time it had so far."""
        self.advance(now)
        for key in list(self._open):
            name = self._names[key]
            self.totals[name] = self.totals.get(name, 0) + self._exclusive[key]
        self.shares = 0
        for mapping in (self._leaves, self._open, self._parents, self._children, self._exclusive, self._names):
            mapping.clear()

    def move(self, name: str, nanoseconds: int) -> None:
        """Give *nanoseconds* of `other` to stage *name*: what a gap turned out to be."""
        moved = min(nanoseconds, self.other)
        self.other -= moved
        self.totals[name] = self.totals.get(name, 0) + moved
