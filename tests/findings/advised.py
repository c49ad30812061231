"""Loads as rules see them: seconds and attributes of a root."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan import findings, names
from loadspan.model import Load

if TYPE_CHECKING:
    from loadspan.model import Finding

GB = 10**9
EPOCH = 1_790_000_000_000_000_000


def load(attributes: dict[str, Any], seconds: float = 10.0) -> Load:
    """An outermost load of so many seconds."""
    end = EPOCH + round(seconds * 1e9)
    return Load(name=names.LOAD_SPAN, span_id="a0", parent_id=None, start=EPOCH, end=end, attributes=attributes, trace_id="t", pid=1)


def only(attributes: dict[str, Any], seconds: float = 10.0) -> Finding:
    """The one finding of a load."""
    [finding] = findings.find(load(attributes, seconds))
    return finding


def ids(attributes: dict[str, Any], seconds: float = 10.0) -> list[str]:
    """Ids of the findings of a load."""
    return [finding.id for finding in findings.find(load(attributes, seconds))]


def without(attributes: dict[str, Any], name: str) -> dict[str, Any]:
    """*attributes* without one of them."""
    return {key: value for key, value in attributes.items() if key != name}
