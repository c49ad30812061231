"""
What to do about a load: rules over what was measured, each of which gives one piece of advice with its evidence.

The same functions run when a load ends and on a stored trace, so both say the same. A number that was not measured is in no sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.findings import device, memory, processor, storage, unexplained
from loadspan.findings.rule import Rule, number, usable
from loadspan.model import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadspan.model import Load

RULES: tuple[Rule, ...] = (*device.RULES, *storage.RULES, *memory.RULES, *processor.RULES, *unexplained.RULES)
"""Every rule. Findings without seconds are in this order."""

LONG = 1.0
"""Seconds from which a load is worth advice; of a shorter one only what is wrong with the machine is told."""

MAJOR = 0.25
"""Share of the load from which what is at stake decides how long it takes."""

_LONGEST = 1024


def find(load: Load, rules: Sequence[Rule] = RULES) -> list[Finding]:
    """Findings of an outermost load that has ended: the most seconds first, those without after them."""
    seconds = usable(load.duration)
    # A load that stands for many has the times between them in it; the findings of one inside another are those of the outer one.
    if not seconds or load.attributes.get(names.INNER) is True or names.FOLDED in load.attributes:
        return []
    found = [finding for rule in rules if (seconds >= LONG or rule.of_short) and (finding := _apply(rule, load, seconds)) is not None]
    return sorted(found, key=lambda finding: -1.0 if finding.seconds is None else finding.seconds, reverse=True)


def _apply(rule: Rule, load: Load, seconds: float) -> Finding | None:
    numbers = []
    for name in rule.needs:
        value = number(load, name)
        if value is None:
            return None
        numbers.append(value)
    told = rule.check(load, seconds, *numbers)
    if told is None:
        return None
    evidence = ((name, load.attributes[name]) for name in (*rule.needs, *rule.uses) if name in load.attributes)
    return Finding(
        id=rule.id,
        severity="notice" if told.seconds is None else "major" if told.seconds >= MAJOR * seconds else "minor",
        sentence=told.sentence if len(told.sentence) <= _LONGEST else told.sentence[: _LONGEST - 1] + "…",
        mechanism=rule.mechanism,
        evidence=tuple(evidence),
        seconds=told.seconds,
    )


def attributes(found: Iterable[Finding]) -> dict[str, Any]:
    """Attributes of the load that tell of *found*; none where nothing was."""
    sentences = {finding.id: finding.sentence for finding in found}
    if not sentences:
        return {}
    return {names.FINDINGS: tuple(sentences), **{names.finding(known): sentence for known, sentence in sentences.items()}}
