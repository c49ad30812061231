"""Loads of a fleet: one real load, recorded by loadspan, sent again as every rank of every load, with times, sizes and ids of its own."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from backends.sending import hexadecimal, in_microseconds, provider, sent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import TracerProvider

    from backends.sending import Facts

    Tree = dict[str, Any]

SECOND = 1_000_000_000


@dataclass
class Load:
    """What was sent of one load: everything by the id of its span, as OpenSearch keeps it."""

    id: str
    model: str
    trace_id: str = ""
    spans: dict[str, Facts] = field(default_factory=dict)

    def add(self, span: Any) -> None:
        """Notes a span that has ended."""
        self.trace_id, span_id = hexadecimal(span)
        self.spans[span_id] = in_microseconds(sent(span))


class Fleet:
    """Programs on many nodes that load; each rank has its own provider, as it is a process of its own."""

    def __init__(self, launcher: TracerProvider, ranks: list[TracerProvider], template: Tree) -> None:
        self.launcher = launcher
        self.ranks = ranks
        self.template = template
        self.begin = time.time_ns() - 3600 * SECOND

    def load(self, number: int) -> Load:
        """One load in which all ranks take part, in one trace: the launcher hands its context on as a traceparent does."""
        load = Load(id=f"load-{number:03d}", model=f"model-{number % 8}")
        start = self.begin + number * 10 * SECOND
        launch: Any = self.launcher.get_tracer("launcher").start_span("launch", start_time=start)
        for rank, of in enumerate(self.ranks):
            context = launch.context
            remote = SpanContext(context.trace_id, context.span_id, is_remote=True, trace_flags=context.trace_flags)
            inside = trace.set_span_in_context(NonRecordingSpan(remote))
            facts = {"loadspan.load.id": load.id, "loadspan.rank": rank, "loadspan.model.name": load.model}
            shift = start + (rank + 1) * SECOND // 100 - self.template["start"]
            self._send(of, self.template, inside, load, facts, shift)
        launch.end(start + 5 * SECOND)
        load.add(launch)
        return load

    def _send(self, of: TracerProvider, node: Tree, above: Any, load: Load, facts: dict[str, Any], shift: int) -> None:
        attributes = node["attributes"] | facts
        if "loadspan.size" in attributes:
            attributes["loadspan.size"] += 2**53 + 1000 * int(load.id[-3:]) + facts["loadspan.rank"]
        span: Any = of.get_tracer("loadspan").start_span(node["name"], above, attributes=attributes, start_time=node["start"] + shift)
        for child in node["children"]:
            self._send(of, child, trace.set_span_in_context(span), load, facts, shift)
        span.end(node["end"] + shift)
        load.add(span)

    def flush(self) -> None:
        """Waits until all that has ended is sent."""
        assert all(each.force_flush(60_000) for each in (self.launcher, *self.ranks)), "not all was sent"


@contextmanager
def fleet(port: int, ranks: int, template: Tree) -> Iterator[Fleet]:
    """A fleet that sends to a port of loopback over gRPC."""
    with ExitStack() as stack:
        launcher = stack.enter_context(provider("grpc", port, service_name="launcher"))
        each = [
            stack.enter_context(provider("grpc", port, service_name="server", service_instance_id=f"node-{rank // 8}.{rank % 8}"))
            for rank in range(ranks)
        ]
        yield Fleet(launcher, each, template)
