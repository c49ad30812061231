"""
Who had each instant of a load: exclusive time per stage, the recorder's own, and `other`.

An instant belongs to the innermost open stages, in equal shares where several run at once; to `other` where none is open. What the recorder
itself needs to open and to close a stage is neither a stage's nor `other`: it is told by itself.
Pure and streaming: it is told what is entered and left and when, keeps no intervals, and so costs the same for ten calls and a million.
The exclusive times, the recorder's and `other` add up to the observed time exactly (integers; the last sharer of an instant gets the
remainder).
"""

from __future__ import annotations


class Node:
    """What stands for one stage, or for all calls of one tally, in one partition."""

    __slots__ = ("children", "exclusive", "name", "open", "parent")

    def __init__(self, name: str, parent: Node | None) -> None:
        self.name = name
        self.parent = parent
        self.open = 0
        """Calls that are open now."""
        self.children = 0
        """Nodes open inside it: while there are any, it has no time of its own."""
        self.exclusive = 0


class Partition:
    """
    The partition of one load.

    Times are nanoseconds of one clock that never goes back. Not thread-safe: the load's lock is held around it.
    """

    __slots__ = ("_leaves", "_nodes", "_recording", "_totals", "last", "other", "own", "shares")

    def __init__(self, start: int) -> None:
        self.last = start
        self.other = 0
        self.own = 0
        """Nanoseconds in which the recorder worked, and nothing else that it knows of."""
        self.shares = 0
        """Calls that share the present instant; 0 means nothing is open."""
        self._leaves: list[Node] = []
        self._nodes: list[Node] = []
        self._totals: dict[str, int] = {}
        self._recording: tuple[int, int, Node | None] | None = None
        """When the recorder worked last, and in what, if that was not counted yet."""

    def node(self, name: str, parent: Node | None) -> Node:
        """A node for stage *name*, inside *parent* or, if that is None, in the load itself."""
        node = Node(name, parent)
        self._nodes.append(node)
        return node

    def recorded(self, since: int, until: int, inside: Node | None) -> None:
        """The recorder worked from *since* to *until*, in the stage *inside* or in none. Counted with what comes next, if anything does."""
        self.advance(since)
        self._recording = since, until, inside

    def advance(self, now: int) -> None:
        """Give the time since the last event to whoever had it."""
        if self._recording is not None:
            since, until, inside = self._recording
            self._recording = None
            begun, ended = max(since, self.last), min(until, now)
            # While others work in the load, the time is theirs: the recorder kept one thread from its work, not the load.
            if begun < ended and (not self.shares or (self.shares == 1 and self._leaves == [inside])):
                self._pass(begun)
                self.own += ended - begun
                self.last = ended
        self._pass(now)

    def _pass(self, now: int) -> None:
        passed = now - self.last
        if passed <= 0:
            return
        self.last = now
        leaves = self._leaves
        if not leaves:
            self.other += passed
        elif len(leaves) == 1:
            leaves[0].exclusive += passed
        else:
            rest = passed
            for leaf in leaves:
                part = passed * leaf.open // self.shares
                leaf.exclusive += part
                rest -= part
            leaf.exclusive += rest

    def enter(self, node: Node, now: int) -> None:
        """Open *node* at *now*, once more if it is open: a tally with two calls at once has two shares."""
        self.advance(now)
        node.open += 1
        if node.open == 1:
            parent = node.parent
            if parent is not None and parent.open:
                parent.children += 1
                if parent.children == 1:
                    self._leaves.remove(parent)
                    self.shares -= parent.open
            if not node.children:
                self._leaves.append(node)
        if not node.children:
            self.shares += 1

    def leave(self, node: Node, now: int) -> None:
        """Close *node*, or one of its calls, at *now*."""
        self.advance(now)
        if not node.open:
            return
        node.open -= 1
        if not node.children:
            self.shares -= 1
        if node.open:
            return
        if not node.children:
            self._leaves.remove(node)
        node.children = 0
        parent = node.parent
        if parent is not None and parent.open and parent.children:
            parent.children -= 1
            if not parent.children:
                self._leaves.append(parent)
                self.shares += parent.open

    def settle(self, node: Node, name: str | None) -> None:
        """*node* is closed for good: its time counts as stage *name*, or as its parent's where *name* is None."""
        if node in self._nodes:
            self._nodes.remove(node)
        if name is not None:
            self._totals[name] = self._totals.get(name, 0) + node.exclusive
        elif node.parent is not None and node.parent.open:
            node.parent.exclusive += node.exclusive
        else:
            self.other += node.exclusive
        node.exclusive = 0

    def finish(self, now: int) -> None:
        """The load ends at *now*; what is still open gets the time it had so far."""
        if self._recording is not None and self._recording[0] >= now:
            self._recording = None  # it was after the end
        self.advance(now)
        for node in list(self._nodes):
            self.settle(node, node.name)
            node.open = node.children = 0
        self.shares = 0
        self._leaves.clear()

    def claim(self, node: Node, nanoseconds: int, now: int) -> None:
        """Give *nanoseconds* before *now* to *node* that what is around it was given: its calls were told of afterwards."""
        self.advance(now)
        around = node.parent
        if around is None:
            nanoseconds = min(nanoseconds, self.other)
            self.other -= nanoseconds
        else:
            nanoseconds = min(nanoseconds, around.exclusive)
            around.exclusive -= nanoseconds
        node.exclusive += nanoseconds

    def move(self, name: str, nanoseconds: int) -> None:
        """Give *nanoseconds* of `other` to stage *name*: what a gap turned out to be."""
        moved = min(nanoseconds, self.other)
        self.other -= moved
        self._totals[name] = self._totals.get(name, 0) + moved

    def add(self, name: str, nanoseconds: int) -> None:
        """Give *nanoseconds* that were not observed here to stage *name*."""
        self._totals[name] = self._totals.get(name, 0) + nanoseconds

    @property
    def totals(self) -> dict[str, int]:
        """Exclusive nanoseconds per stage name so far."""
        found = dict(self._totals)
        for node in self._nodes:
            if node.exclusive:
                found[node.name] = found.get(node.name, 0) + node.exclusive
        return found
