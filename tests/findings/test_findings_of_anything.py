"""Whatever the attributes of a load are: no exception, no number that is not theirs, and of what is stored the same words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from advised import load
from hypothesis import assume, example, given
from hypothesis import strategies as st
from test_findings_of_devices import EVERYTHING

from loadspan import findings, names, units
from loadspan.instrument import telemetry
from loadspan.report import terminal, timeline
from loadspan.report.text import cells

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = sorted({name for rule in findings.RULES for name in (*rule.needs, *rule.uses)})
WORDS = st.text(st.characters(exclude_categories=["Cs", "N"]), max_size=20)
VALUES = st.one_of(
    st.floats(),
    st.floats(0, 20),
    st.integers(),
    st.integers(0, 100),
    st.integers(10**9, 10**11),
    st.booleans(),
    WORDS,
    st.sampled_from(["remote", "cgroup", "host"]),
    st.lists(WORDS, max_size=4).map(tuple),
    st.lists(st.floats(), max_size=3).map(tuple),
    st.none(),
    st.just(10**400),
)
# Mostly what makes rules speak, with something else in the place of some of it.
ATTRIBUTES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=len(NAMES)).flatmap(
    lambda changed: st.sampled_from([changed, EVERYTHING | {names.OTHER_FRAMES: ()} | changed])
)
SECONDS = st.one_of(st.floats(0, 100), st.sampled_from([1.0, 10.0]))
NUMBER = re.compile(r"\d+(?:\.\d+)?(?: \d{3}(?!\d))*")


def written(value: object) -> Iterator[str]:
    """Every way in which a value of an attribute may be written."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from written(item)
    elif isinstance(value, int | float) and 0 <= value < 1 << 63:
        number = round(value, 9)
        yield from (units.size(number), units.seconds(number), units.throughput(number), units.share(number), units.count(number))
        yield f"{number:.0f}"


@given(ATTRIBUTES, SECONDS)
@example(EVERYTHING, 10.0)
def test_every_number_in_a_sentence_is_that_of_an_attribute_or_the_duration(attributes: dict[str, Any], seconds: float) -> None:
    shown = load(attributes, seconds)
    known = {number for value in [*attributes.values(), shown.duration] for text in written(value) for number in NUMBER.findall(text)}
    for finding in findings.find(shown):
        assert set(NUMBER.findall(finding.sentence)) <= known
        assert all(attributes[name] is value for name, value in finding.evidence)
        assert len(finding.sentence) <= 1024


@given(ATTRIBUTES, SECONDS)
def test_what_is_stored_of_a_load_says_the_same(attributes: dict[str, Any], seconds: float) -> None:
    assume(10**400 not in attributes.values())  # which cannot be stored
    stored = {name: telemetry.valid(value) for name, value in attributes.items() if value is not None}
    told = [
        [(each.sentence, each.severity, each.seconds) for each in findings.find(load(found, seconds))] for found in (attributes, stored)
    ]
    assert told[0] == told[1]


@given(ATTRIBUTES, SECONDS)
def test_the_most_seconds_come_first_and_a_severity_says_how_many(attributes: dict[str, Any], seconds: float) -> None:
    found = findings.find(load(attributes, seconds))
    at_stake = [finding.seconds for finding in found if finding.seconds is not None]
    assert [finding.seconds for finding in found] == sorted(at_stake, reverse=True) + [None] * (len(found) - len(at_stake))
    assert [finding.severity == "notice" for finding in found] == [finding.seconds is None for finding in found]


@given(st.lists(st.text(max_size=10), max_size=30), st.text(max_size=3000), st.integers(60, 200))
@example(["swap"], "\x1b[31mred \x9b " * 200, 60)
def test_what_a_hostile_trace_gives_as_advice_stays_in_its_lines(ids: list[str], text: str, width: int) -> None:
    shown = load({names.FINDINGS: tuple(ids), **{names.finding(known): text for known in ids}})
    drawn = terminal.lines(timeline.waterfall(shown), terminal.Look(width=width))
    assert all(line.isprintable() and cells(line) <= width for line in drawn)
    assert sum(line.startswith("  ! ") for line in drawn) <= 20
