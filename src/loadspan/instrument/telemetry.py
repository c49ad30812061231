"""
Loads and stages as OpenTelemetry spans: the only file that speaks the span API.

The span of a stage is started only when it is known to be worth one: a call that turns out shorter than a millisecond is tallied instead.
Until then `LazySpan` stands for it in the host's context and starts it at the first look (a child span, an attribute set by the host).
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status, StatusCode

from loadspan import names
from loadspan.guard import safely
from loadspan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, TracerProvider
    from opentelemetry.util import types

    from loadspan.instrument.failure import Failure

_GAP = 2
"""Microseconds between siblings: Jaeger drops a span from the critical path when it ends in the microsecond in which the next begins."""

_MICROSECOND = 1000

_APART = (_GAP + 1) * _MICROSECOND

_PROPAGATOR = TraceContextTextMapPropagator()
_CARRIED = ("traceparent", "tracestate")
"""What a launcher writes into the environment of a process; in small letters too, as some engines do."""

inherited: dict[str, str] = {}
"""The same, as told by the process that spawned this one."""


class Writer(Protocol):
    """The embedded exporter: gets each span of ours as it ends, since it cannot wait for a batch that may die with the process."""

    def receive(self, span: Any) -> None:
        """Take a span that has ended."""

    def write(self) -> None:
        """Put what was taken on disk."""


writers: list[Writer] = []


def valid(value: Any) -> Any:
    """
    An attribute's *value* as UTF-8 can carry it, seconds to the nanosecond.

    File names may be bytes that are no text. One such value, and the OTLP exporters fail on all the spans of a batch.
    """
    if isinstance(value, float):
        return round(value, 9)  # 0.000825471000000022 is what a difference of floats looks like to who reads it in a back end
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    return tuple(map(valid, value)) if isinstance(value, tuple) else value


def write() -> None:
    """Put the spans that have ended on disk: at the end of a load, and ten times a second before, off the loading thread."""
    for writer in writers:
        safely(writer.write)


class Telemetry:
    """Makes spans with the tracer of one provider, by default the global one, which may be set later than we are installed."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer: trace.Tracer | None = None
        self._tracer_of: Any = None

    def _in_force(self) -> TracerProvider:
        return self._provider or trace.get_tracer_provider()

    def enabled(self) -> bool:
        """Whether a provider is configured."""
        provider = self._in_force()
        return not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider)

    def tracer(self) -> trace.Tracer:
        """The tracer of the provider in force."""
        provider = self._in_force()
        if self._tracer is None or self._tracer_of is not provider:
            self._tracer = provider.get_tracer(names.SCOPE, __version__)
            self._tracer_of = provider
        return self._tracer

    def resource(self) -> Mapping[str, Any]:
        """Attributes of what the provider in force speaks for."""
        resource = getattr(self._in_force(), "resource", None)
        return getattr(resource, "attributes", {})

    def flush(self) -> None:
        """Send what is waiting."""
        flush = getattr(self._in_force(), "force_flush", None)
        if flush is not None:
            flush()

    def root(self, start: int, attributes: Mapping[str, Any], parent: Context, link: trace.SpanContext | None) -> SpanHandle:
        """A handle for the span of a load; *parent* is the host's context."""
        links = (trace.Link(link),) if link is not None else ()
        known = {key: valid(value) for key, value in attributes.items()}
        return SpanHandle(self, names.LOAD_SPAN, start, parent=None, context=parent, attributes=known, links=links)


def allowed() -> bool:
    """Whether instrumentation is not suppressed here."""
    return is_instrumentation_enabled()


def here() -> Context:
    """The host's present context; where it has no span, that of whoever started this process, if it said so in the environment."""
    context = otel_context.get_current()
    if trace.get_current_span(context).get_span_context().is_valid:
        return context
    told = inherited or {key: value for key in _CARRIED if (value := os.environ.get(key) or os.environ.get(key.upper()))}
    if not told:
        return context
    found = _PROPAGATOR.extract(told, context)
    # One that was sampled out says nothing of this program, whose own sampler decides.
    return found if trace.get_current_span(found).get_span_context().trace_flags.sampled else context


def carrier(handle: SpanHandle) -> dict[str, str]:
    """What another process has to be told for its loads to be below the span of *handle*."""
    told: dict[str, str] = {}
    _PROPAGATOR.inject(told, handle.context())
    return told


def enter(told: Mapping[str, str]) -> Any:
    """
    Make the span of which another process has *told* the current one; returns what `detach` takes.

    Where it told of none, a span of ours that was current when this process was forked is current no more.
    """
    context = otel_context.get_current()
    if told:
        return otel_context.attach(_PROPAGATOR.extract(told, context))
    if isinstance(trace.get_current_span(context), LazySpan):
        return otel_context.attach(trace.set_span_in_context(trace.INVALID_SPAN, context))
    return None


def no_parent() -> Context:
    """A context in which no span is current."""
    return otel_context.Context()


def current_span_id() -> int:
    """Identifier of the host's current span, 0 where there is none."""
    return trace.get_current_span().get_span_context().span_id


class SpanHandle:
    """A span to be: started at the first need, with the time at which its work began."""

    __slots__ = (
        "_attributes",
        "_context",
        "_ends",
        "_links",
        "_lock",
        "_name",
        "_parent",
        "_placed",
        "_span",
        "_start",
        "_starts",
        "_telemetry",
    )

    def __init__(
        self,
        telemetry: Telemetry,
        name: str,
        start: int,
        *,
        parent: SpanHandle | None,
        context: Context | None = None,
        attributes: Mapping[str, Any] | None = None,
        links: tuple[Link, ...] = (),
    ) -> None:
        self._telemetry = telemetry
        self._name = name
        self._start = start
        self._parent = parent
        self._context = context
        self._attributes = attributes
        self._links = links
        self._span: Span | None = None
        self._lock = threading.Lock()
        self._placed: list[tuple[int, int]] = []
        """Begin and end of children: what stands for many calls is placed beside them."""
        self._starts: set[int] = set()
        self._ends: set[int] = set()

    def place(self, first: int, last: int, length: int) -> tuple[int, int]:
        """
        Begin and end of a child that stands for many calls: as long as they had the load to themselves, beside what was placed before.

        Over the whole of *first* to *last* it would cover the calls of others in between, and whoever adds up spans would blame it for
        their time. It begins with its first call and ends before its last one does; where there is no room, over what is there.
        """
        length = max(1, min(length, last - first))
        with self._lock:
            begin = first
            for start, end in sorted(self._placed):
                if start < begin + length and begin < end:
                    begin = end + _APART
            if begin + length > last:
                begin = first
            self._placed.append((begin, begin + length))
        return begin, begin + length

    def occupy(self, end: int) -> None:
        """It lasts until *end*: what stands for many calls is placed beside it."""
        above = self._parent
        if above is not None:
            with above._lock:  # noqa: SLF001 - a handle of the same class
                above._placed.append((self._start, end))  # noqa: SLF001 - as above

    def child(self, name: str, start: int) -> SpanHandle:
        """A handle for a stage below this span."""
        return SpanHandle(self._telemetry, name, start, parent=self)

    @property
    def name(self) -> str:
        """Name of the span."""
        return self._name

    def rename(self, name: str) -> None:
        """Give the span another name."""
        self._name = name
        if self._span is not None:
            self._span.update_name(name)

    def restart(self, start: int) -> None:
        """Begin at *start*, if the span does not exist yet."""
        self._start = start

    @property
    def start(self) -> int:
        """When it begins, in nanoseconds since the epoch."""
        return self._start

    @property
    def started(self) -> bool:
        """Whether the span exists, because somebody looked at it."""
        return self._span is not None

    def span(self) -> Span:
        """The span, started if it was not."""
        if self._span is not None:
            return self._span  # without the lock, which in a forked child another thread of its parent may hold for ever
        with self._lock:
            if self._span is None:
                context = self._context if self._parent is None else trace.set_span_in_context(self._parent.span(), otel_context.Context())
                self._span = self._telemetry.tracer().start_span(
                    self._name,
                    context=context,
                    kind=trace.SpanKind.INTERNAL,
                    attributes=self._attributes,
                    links=self._links,
                    start_time=self._start,
                    record_exception=False,
                    set_status_on_exception=False,
                )
            return self._span

    def context(self) -> Context:
        """A context in which this is the current span."""
        return trace.set_span_in_context(self.span(), otel_context.Context())

    def span_context(self) -> trace.SpanContext:
        """Identity of the span."""
        return self.span().get_span_context()

    def parent_id(self) -> int:
        """Identifier of the span above it, 0 where there is none."""
        parent = getattr(self.span(), "parent", None)  # of the SDK's spans
        return parent.span_id if parent is not None else 0

    def recording(self) -> bool:
        """Whether the span was sampled."""
        return self.span().is_recording()

    def attach(self) -> Any:
        """Make this the host's current span; returns what `detach` takes."""
        return otel_context.attach(trace.set_span_in_context(LazySpan(self)))

    def end(self, end: int, attributes: Mapping[str, Any], error: Failure | None, *, record: bool = True) -> None:
        """End the span; *error* marks it failed and, with *record*, is written to it as an event."""
        if self._parent is not None:
            end = self._apart(max(end, self._start + 1))
        span = self.span()
        if span.is_recording():
            span.set_attributes({names.PROCESS_PID: os.getpid(), **{key: valid(value) for key, value in attributes.items()}})
            if error is not None:
                span.set_attribute(names.ERROR_TYPE, error.type)
                span.set_status(Status(StatusCode.ERROR, valid(error.message)))
                if record:
                    # As the SDK's record_exception writes it, which asks for the exception itself.
                    told = {"type": error.type, "message": error.message, "stacktrace": error.stacktrace}
                    span.add_event("exception", {f"exception.{key}": valid(text) for key, text in told.items()}, timestamp=end)
        recorded = span.is_recording()
        span.end(end_time=end)
        if recorded:
            for writer in writers:
                writer.receive(span)

    def _apart(self, end: int) -> int:
        """Keep this span from touching a sibling that ended before it; returns the end to use."""
        siblings = self._parent
        if siblings is None:
            return end
        with siblings._lock:  # noqa: SLF001 - a handle of the same class
            begin_at, end_at = self._start // _MICROSECOND, end // _MICROSECOND
            if self._span is None:
                while any(begin_at - step in siblings._ends for step in range(_GAP)) and begin_at < end_at:  # noqa: SLF001 - as above
                    begin_at += 1
                    self._start = begin_at * _MICROSECOND
            while any(end_at + step in siblings._starts for step in range(_GAP)) and end_at > begin_at:  # noqa: SLF001 - as above
                end_at -= 1
                end = end_at * _MICROSECOND
            siblings._starts.add(begin_at)  # noqa: SLF001 - as above
            siblings._ends.add(end_at)  # noqa: SLF001 - as above
            return max(end, self._start)


def detach(token: Any) -> None:
    """Undo an `attach`."""
    otel_context.detach(token)


class LazySpan(trace.Span):
    """Stands for a span that may never be needed; what the host does to it reaches the span."""

    def __init__(self, handle: SpanHandle) -> None:
        self._handle = handle

    def get_span_context(self) -> trace.SpanContext:
        return self._handle.span_context()

    def is_recording(self) -> bool:
        return self._handle.recording()

    def end(self, end_time: int | None = None) -> None:
        """Do nothing: the stage ends its span itself."""

    def set_attributes(self, attributes: Mapping[str, types.AttributeValue]) -> None:
        self._handle.span().set_attributes(attributes)

    def set_attribute(self, key: str, value: types.AttributeValue) -> None:
        self._handle.span().set_attribute(key, value)

    def add_event(self, name: str, attributes: types.Attributes = None, timestamp: int | None = None) -> None:
        self._handle.span().add_event(name, attributes, timestamp)

    def update_name(self, name: str) -> None:
        self._handle.span().update_name(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self._handle.span().set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: types.Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT001, FBT002 - the interface
    ) -> None:
        self._handle.span().record_exception(exception, attributes, timestamp, escaped)
