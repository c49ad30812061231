"""What was recorded, as plain dictionaries: a span is a tree of names, times, attributes and children."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

Tree = dict[str, Any]


def tree_of(spans: list[Any]) -> list[Tree]:
    """Roots of *spans* as plain dictionaries, children in the order of their start. A span whose parent is not among them is a root."""
    nodes = {
        span.context.span_id: {
            "name": span.name,
            "parent": span.parent.span_id if span.parent is not None else None,
            "span_id": span.context.span_id,
            "trace_id": span.context.trace_id,
            "scope": span.instrumentation_scope.name,
            "start": span.start_time,
            "end": span.end_time,
            "duration": (span.end_time - span.start_time) / 1e9,
            "attributes": dict(span.attributes),
            "error": span.status.description if span.status.status_code.name == "ERROR" else None,
            "events": [(event.name, dict(event.attributes)) for event in span.events],
            "links": [link.context.span_id for link in span.links],
            "children": [],
        }
        for span in spans
    }
    roots = []
    for node in sorted(nodes.values(), key=lambda node: node["start"]):
        above = nodes.get(node["parent"])
        (above["children"] if above is not None else roots).append(node)
    return roots


class Spans:
    """What was recorded since the test began."""

    def __init__(self, exporter: Any, provider: Any, recorder: Any) -> None:
        self._exporter = exporter
        self.provider = provider
        self.recorder = recorder

    def set(self, **settings: Any) -> None:
        """Change settings, for example `idle_timeout=0.05`."""
        self.recorder.settings = dataclasses.replace(self.recorder.settings, **settings)

    def finish(self) -> None:
        """End implicit loads at once."""
        self.recorder.close_all()

    def all(self) -> list[Tree]:
        """Every span without a recorded parent, those of other instrumentations included."""
        self.recorder.waiting.deliver()
        return tree_of(self._exporter.get_finished_spans())

    def loads(self) -> list[Tree]:
        """The outermost loads in the order of their start, the implicit ones ended."""
        self.finish()
        found: list[Tree] = []
        todo = self.all()
        while todo:
            span = todo.pop(0)
            if span["scope"] == "loadspan" and span["name"] == "load model":
                found.append(span)
            else:
                todo.extend(span["children"])
        return sorted(found, key=lambda span: span["start"])

    def load(self) -> Tree:
        """The only load."""
        loads = self.loads()
        assert [load["name"] for load in loads] == ["load model"], outline(loads)
        return loads[0]


def outline(spans: list[Tree] | Tree) -> list[Any]:
    """Names alone: `["load model", ["read", ["decrypt", []]]]` reads as a tree."""
    if isinstance(spans, dict):
        spans = [spans]
    return [span["name"] if not span["children"] else {span["name"]: outline(span["children"])} for span in spans]


def walk(span: Tree) -> Iterator[Tree]:
    """A span and everything below it, parents first."""
    yield span
    for child in span["children"]:
        yield from walk(child)


def provider_of(exporter: Any, **options: Any) -> Any:
    """A provider that hands each span to *exporter* as it ends."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = TracerProvider(shutdown_on_exit=False, **options)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def parts(load: Tree) -> dict[str, float]:
    """The partition of a load by stage."""
    prefix = "loadspan.partition."
    return {key.removeprefix(prefix): value for key, value in load["attributes"].items() if key.startswith(prefix)}


def check(load: Tree) -> None:
    """What holds for every load."""
    __tracebackhide__ = True
    attributes = load["attributes"]
    assert sum(parts(load).values()) == pytest.approx(load["duration"], abs=0.001), "the parts add up"
    assert attributes["loadspan.coverage"] == pytest.approx(1 - parts(load)["other"] / load["duration"], abs=0.01)
    for span in walk(load):
        assert span["trace_id"] == load["trace_id"]
        assert span["start"] <= span["end"]
        siblings = [child for child in span["children"] if child["scope"] == "loadspan"]
        for child in siblings:
            assert span["start"] <= child["start"], (span["name"], child["name"])
            assert child["end"] <= span["end"], (span["name"], child["name"])
        edges = [(child["start"] // 1000, child["end"] // 1000) for child in siblings]
        for index, (begin, _) in enumerate(edges):
            assert all(abs(begin - end) >= 2 for other, (_, end) in enumerate(edges) if other != index), "siblings touch"
    assert len([span for span in walk(load) if span["scope"] == "loadspan"]) <= 500
