"""Who had each instant: the streaming partition against one that looks at every instant by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from loadspan.instrument.partition import Node, Partition

NAMES = ("read", "decrypt", "to_device")
WHOLE = 60
"""Instants are multiples of this, so that up to six sharers get whole nanoseconds and the comparison is exact."""


@dataclass(eq=False)
class Call:
    """One stage of the reference: from its opening to its last closing, inside what was open around it at that time."""

    name: str
    node: Node
    inside: Call | None
    calls: int = 1
    had: Fraction = Fraction(0)


@dataclass
class Reference:
    """Every instant by itself, from the definition: equal shares for each call that is open and has nothing open in it."""

    calls: list[Call] = field(default_factory=list)
    other: Fraction = Fraction(0)
    totals: dict[str, Fraction] = field(default_factory=dict)

    def pass_time(self, passed: int) -> None:
        """Give an instant to those who have it."""
        around = {id(call.inside) for call in self.calls}
        leaves = [call for call in self.calls if id(call) not in around]
        shares = sum(call.calls for call in leaves)
        for call in leaves:
            call.had += Fraction(passed * call.calls, shares)
        if not leaves:
            self.other += passed

    def close(self, call: Call, name: str | None) -> None:
        """End a stage that was *name*, or none."""
        self.calls.remove(call)
        for other in self.calls:
            if other.inside is call:
                other.inside = None  # it goes on by itself
        if name is not None:
            self.totals[name] = self.totals.get(name, Fraction(0)) + call.had
        elif call.inside is not None:
            call.inside.had += call.had
        else:
            self.other += call.had


class Twins:
    """The partition and the reference, told the same."""

    def __init__(self) -> None:
        self.start = self.now = 1_000
        self.partition = Partition(self.start)
        self.reference = Reference()
        self.threads: list[list[Call]] = [[], [], []]

    def wait(self, passed: int) -> None:
        """Let time pass."""
        self.now += passed
        self.reference.pass_time(passed)

    def open(self, thread: int, name: str) -> None:
        """Open a stage in what is open in its thread."""
        stack = self.threads[thread]
        inside = stack[-1] if stack else None
        node = self.partition.node(name, inside.node if inside is not None else None)
        call = Call(name, node, inside)
        self.partition.enter(node, self.now)
        self.reference.calls.append(call)
        stack.append(call)

    def open_again(self, thread: int, other: int) -> None:
        """A second call of what runs innermost in another thread: a tally with two calls at once."""
        if self.threads[thread] or not self.threads[other]:
            return
        call = self.threads[other][-1]
        self.partition.enter(call.node, self.now)
        call.calls += 1
        self.threads[thread].append(call)

    def hand_over(self, thread: int, other: int) -> None:
        """Work begun in one thread goes on in another, and may outlive what it was begun in."""
        if self.threads[thread] and not self.threads[other]:
            self.threads[other].append(self.threads[thread].pop())

    def close(self, thread: int, *, cancelled: bool) -> None:
        """Close the innermost stage of a thread."""
        if not self.threads[thread]:
            return
        call = self.threads[thread].pop()
        self.partition.leave(call.node, self.now)
        call.calls -= 1
        if call.calls == 0:
            name = None if cancelled else call.name
            self.partition.settle(call.node, name)
            self.reference.close(call, name)


ACTIONS = st.one_of(
    st.tuples(st.just("open"), st.integers(0, 2), st.sampled_from(NAMES)),
    st.tuples(st.just("close"), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("again"), st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.just("hand over"), st.integers(0, 2), st.integers(0, 2)),
)
STEPS = st.lists(st.tuples(st.integers(0, 50), ACTIONS), max_size=60)


def parts(twins: Twins) -> dict[str, int]:
    """Exclusive nanoseconds; a stage that had none is as good as absent."""
    return {name: had for name, had in twins.partition.totals.items() if had}


def play(steps: list[tuple[int, tuple[str, int, object]]], unit: int) -> Twins:
    twins = Twins()
    for passed, (action, thread, what) in steps:
        twins.wait(passed * unit)
        if action == "open":
            twins.open(thread, str(what))
        elif action == "close":
            twins.close(thread, cancelled=bool(what))
        elif action == "again":
            twins.open_again(thread, int(str(what)))
        else:
            twins.hand_over(thread, int(str(what)))
    return twins


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_every_instant_goes_to_the_innermost_open_stages_in_equal_shares(steps: list[tuple[int, tuple[str, int, object]]]) -> None:
    twins = play(steps, WHOLE)
    for thread in range(3):
        while twins.threads[thread]:
            twins.wait(WHOLE)
            twins.close(thread, cancelled=False)
    twins.partition.finish(twins.now)
    assert {name: had for name, had in twins.reference.totals.items() if had} == parts(twins)
    assert twins.reference.other == twins.partition.other


@settings(max_examples=400, deadline=None)
@given(STEPS, st.integers(0, 1_000))
def test_the_parts_add_up_to_the_observed_time_exactly_whatever_is_open_at_the_end(
    steps: list[tuple[int, tuple[str, int, object]]], more: int
) -> None:
    twins = play(steps, unit=1)  # shares that are no whole nanoseconds
    twins.wait(more)
    twins.partition.finish(twins.now)
    had = twins.partition.totals
    assert sum(had.values()) + twins.partition.other == twins.now - twins.start
    assert all(nanoseconds >= 0 for nanoseconds in had.values())
    assert twins.partition.other >= 0


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_what_is_open_at_the_end_gets_the_time_it_had_so_far(steps: list[tuple[int, tuple[str, int, object]]]) -> None:
    twins = play(steps, WHOLE)
    for call in list(twins.reference.calls):
        twins.reference.totals[call.name] = twins.reference.totals.get(call.name, Fraction(0)) + call.had
    twins.partition.finish(twins.now)
    assert {name: had for name, had in twins.reference.totals.items() if had} == parts(twins)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_the_parts_so_far_add_up_at_any_time(steps: list[tuple[int, tuple[str, int, object]]]) -> None:
    twins = play(steps, unit=1)
    twins.partition.advance(twins.now)
    assert sum(twins.partition.totals.values()) + twins.partition.other == twins.now - twins.start


def test_a_load_without_stages_is_all_other() -> None:
    partition = Partition(100)
    partition.finish(350)
    assert (partition.totals, partition.other) == ({}, 250)


def test_a_stage_in_a_stage_takes_its_time_from_it() -> None:
    partition = Partition(0)
    outer = partition.node("deserialize", None)
    inner = partition.node("read", outer)
    partition.enter(outer, 10)
    partition.enter(inner, 20)
    partition.leave(inner, 50)
    partition.settle(inner, "read")
    partition.leave(outer, 60)
    partition.settle(outer, "deserialize")
    partition.finish(100)
    assert (partition.totals, partition.other) == ({"deserialize": 20, "read": 30}, 50)


def test_two_threads_share_and_a_tally_with_two_calls_has_two_shares() -> None:
    partition = Partition(0)
    read, decrypt = partition.node("read", None), partition.node("decrypt", None)
    partition.enter(read, 0)
    partition.enter(read, 0)
    partition.enter(decrypt, 0)
    partition.finish(90)
    assert partition.totals == {"read": 60, "decrypt": 30}


def test_the_time_of_a_stage_that_was_none_goes_to_its_parent() -> None:
    partition = Partition(0)
    outer = partition.node("merge_lora", None)
    inner = partition.node("to_device", outer)
    partition.enter(outer, 0)
    partition.enter(inner, 10)
    partition.leave(inner, 40)
    partition.settle(inner, None)
    partition.leave(outer, 50)
    partition.settle(outer, "merge_lora")
    partition.finish(60)
    assert (partition.totals, partition.other) == ({"merge_lora": 50}, 10)


def test_a_stage_may_outlive_the_one_it_began_in() -> None:
    """The outer one begins again meanwhile, as a tally does with its next call."""
    partition = Partition(0)
    outer = partition.node("decrypt", None)
    inner = partition.node("read", outer)
    partition.enter(outer, 0)
    partition.enter(inner, 10)
    partition.leave(outer, 20)
    partition.enter(outer, 40)
    partition.leave(inner, 60)
    partition.leave(outer, 100)
    partition.finish(100)
    # 10..20 and 20..40 are the inner one's, 40..60 is shared, 60..100 the outer one's.
    assert partition.totals == {"decrypt": 10 + 10 + 40, "read": 10 + 20 + 10}


def test_times_that_arrive_out_of_order_move_nothing_back() -> None:
    partition = Partition(0)
    node = partition.node("read", None)
    partition.enter(node, 100)
    partition.leave(node, 90)
    partition.finish(120)
    assert (partition.totals, partition.other) == ({"read": 0}, 120)


def test_a_gap_is_given_a_name_afterwards() -> None:
    partition = Partition(0)
    partition.advance(100)
    partition.move("initialize", 60)
    partition.move("initialize", 1_000)
    assert (partition.totals, partition.other) == ({"initialize": 100}, 0)


def test_what_the_recorder_needed_is_told_by_itself_in_a_stage_and_in_none() -> None:
    partition = Partition(0)
    outer = partition.node("initialize", None)
    partition.recorded(10, 14, None)
    partition.enter(outer, 14)
    partition.recorded(30, 35, outer)
    inner = partition.node("read", outer)
    partition.enter(inner, 35)
    partition.leave(inner, 50)
    partition.recorded(50, 53, outer)
    partition.leave(outer, 60)
    partition.recorded(60, 66, None)
    partition.finish(100)
    assert partition.totals == {"initialize": 16 + 7, "read": 15}
    assert (partition.own, partition.other) == (4 + 5 + 3 + 6, 10 + 34)


def test_the_recorder_keeps_one_thread_from_its_work_and_not_a_load_in_which_others_work() -> None:
    partition = Partition(0)
    here, there = partition.node("read", None), partition.node("decrypt", None)
    partition.enter(here, 0)
    partition.enter(there, 0)
    partition.recorded(10, 20, here)
    partition.leave(here, 30)
    partition.recorded(30, 40, None)
    partition.leave(there, 50)
    partition.recorded(50, 55, None)
    partition.enter(here, 52)  # another thread was quicker
    partition.finish(60)
    assert partition.totals == {"read": 15 + 8, "decrypt": 15 + 20}
    assert (partition.own, partition.other) == (2, 0)


def test_what_the_recorder_needed_after_the_end_is_not_the_loads() -> None:
    partition = Partition(0)
    node = partition.node("read", None)
    partition.enter(node, 0)
    partition.leave(node, 40)
    partition.recorded(40, 50, None)
    partition.finish(40)
    assert (partition.totals, partition.own, partition.other) == ({"read": 40}, 0, 0)
