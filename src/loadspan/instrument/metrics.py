"""
Loads as OpenTelemetry metrics: the only file that speaks the metrics API.

A load is recorded when it ends, once for itself and once for each of its stages, by the sampler: its own thread does not pay for it.
The bytes that it moves are counted while it runs as well.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics

from loadspan import metric_names, names
from loadspan.guard import safely
from loadspan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter, MeterProvider

    from loadspan.metric_names import Metric

_INT64 = 1 << 63
_INSTANCE = "service.instance.id"
_PROXY = "_ProxyMeterProvider"
_LABELS = (names.FORMAT, names.STORAGE_KIND, names.DEVICE_TYPE)


class Measured:
    """What the spans of a load's stages said, by stage."""

    __slots__ = ("_lock", "counted", "lock", "moved", "read", "stages", "told")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # loads inside a load may end in several threads
        self.counted: dict[str, Any] | None = None
        """Attributes with which the load is among those that run now."""
        self.stages: dict[str, dict[str, Any]] = {}
        self.moved: dict[str, int] = {}
        """Bytes by stage, without those of lazy calls."""
        self.told: dict[str, int] | None = {}
        """What the counter of these has been told so far; None when all was."""
        self.read: int | None = None
        """What the kernel had counted for the process when the load began."""
        self.lock = threading.Lock()
        """Of what has been told."""

    def add(self, found: Mapping[str, Any], seconds: float, error: str | None) -> None:
        """Add a span of a stage with the attributes *found*, of *seconds*."""
        with self._lock:
            self._add(found, seconds, error)

    def _add(self, found: Mapping[str, Any], seconds: float, error: str | None) -> None:
        stage = self.stages.setdefault(found[names.STAGE], {"size": None, "timed": 0, "busy": 0.0, "largest": -1})
        size = found.get(names.SIZE)
        if size is not None:
            stage["size"] = (stage["size"] or 0) + size
            if not found.get(names.DEFERRED):
                self.moved[found[names.STAGE]] = self.moved.get(found[names.STAGE], 0) + size
        if names.THROUGHPUT in found:
            stage["timed"] += size or 0
            stage["busy"] += found.get(names.BUSY_TIME, seconds)
        if (size or 0) > stage["largest"]:  # a stage is of the kind that most of its bytes are of
            stage |= {"largest": size or 0, **{name: found.get(name) for name in _LABELS}}
        if error is not None:
            stage[names.ERROR_TYPE] = error


class Metrics:
    """Records with the meter of one provider, by default the global one, which may be set later than we are installed."""

    def __init__(self, provider: MeterProvider | None = None, resource: Callable[[], Mapping[str, Any]] = dict) -> None:
        self._provider = provider
        self._resource = resource
        self._meter_of: Any = None
        self._instruments: dict[str, Any] = {}
        self._met: dict[str, set[str]] = {}
        """Values of each attribute so far."""
        self._left: list[dict[str, Any]] = []
        """Whose loads the parent of this process had open when it was forked."""
        self._made_in = os.getpid()
        self._read = 0
        """Up to where what the kernel has counted for this process was told of: loads at the same time share it."""
        self._reading = threading.Lock()
        self._ended: deque[tuple[dict[str, Any], Measured, float, Context]] = deque()

    def _in_force(self) -> MeterProvider:
        return self._provider or metrics.get_meter_provider()

    def enabled(self) -> bool:
        """Whether there is a provider that does something."""
        provider = self._in_force()
        # The class of the proxy is not public; what it is called has not changed since there are metrics.
        return not isinstance(provider, metrics.NoOpMeterProvider) and type(provider).__name__ != _PROXY

    def prepare(self) -> bool:
        """Make the instruments, if there is a provider, and begin the counters with 0: else the increase by a first load is not seen."""
        if not self.enabled():
            return False
        provider = self._in_force()
        if self._meter_of is not provider:
            self._meter_of = provider
            meter = provider.get_meter(names.SCOPE, __version__)
            self._instruments = {metric.name: _make(meter, metric) for metric in metric_names.METRICS}
            for metric in (metric_names.LOAD_ACTIVE, metric_names.LOAD_COUNT, metric_names.LOAD_SIZE, metric_names.STORAGE_READ):
                self._instruments[metric.name].add(0, self._identity())
            for stage in metric_names.MOVING:
                self._instruments[metric_names.STAGE_IO.name].add(0, self._identity() | {names.STAGE: stage})
        return True

    def _identity(self) -> dict[str, Any]:
        """
        What tells the series of this process from those of others: nothing where its resource does.

        The instance of a resource that came from the environment (Kubernetes' operator: one a container) or from a parent is that of many
        processes, and a series that two of them write is wrong for both.
        """
        given = f"{_INSTANCE}=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").replace(" ", "")
        own = self._resource().get(_INSTANCE) and not given and os.getpid() == self._made_in
        return {} if own else {names.PROCESS_PID: os.getpid()}

    def opened(self, measured: Measured, read: int | None = None) -> None:
        """A load began that is in no other, when block devices had given *read* bytes to the process."""
        measured.read = read
        if self.prepare():
            active = self._instruments[metric_names.LOAD_ACTIVE.name]
            while self._left:
                active.add(-1, self._left.pop())  # the SDK's copy of a count that is another process's
            measured.counted = self._identity()
            active.add(1, measured.counted)

    def closed(self, measured: Measured) -> None:
        """It is no longer open."""
        counted, measured.counted = measured.counted, None
        if counted is not None:
            self._instruments[metric_names.LOAD_ACTIVE.name].add(-1, counted)

    def grown(self, measured: Measured, moved: Mapping[str, int]) -> None:
        """Count what the stages of a load have *moved* since the last time."""
        with measured.lock:
            if measured.told is None:
                return  # it has ended meanwhile
            for stage, size in moved.items():
                more = size - measured.told.get(stage, 0)
                if 0 < more < _INT64:
                    measured.told[stage] = size
                    self._instruments[metric_names.STAGE_IO.name].add(more, self._identity() | {names.STAGE: stage})

    def delivered(self, measured: Measured, read: int) -> None:
        """Count what block devices have given to the process since a load began, up to *read*, and no byte of it twice."""
        if measured.read is None:
            return
        with self._reading:
            more = read - max(self._read, measured.read)
            if 0 < more < _INT64:
                self._read = read
                self._instruments[metric_names.STORAGE_READ.name].add(more, self._identity())

    def ended(self, found: dict[str, Any], measured: Measured, seconds: float, context: Context) -> None:
        """Take a load that has ended, with the attributes of its span, for `deliver` to record."""
        if self._instruments:
            self._ended.append((found, measured, seconds, context))

    def flush(self) -> None:
        """Send what is waiting."""
        flush = getattr(self._in_force(), "force_flush", None)
        if flush is not None:
            flush()

    def deliver(self) -> None:
        """Record what was taken."""
        while True:
            try:
                ended = self._ended.popleft()
            except IndexError:  # taken by another thread, or there is none
                return
            safely(self._record, *ended)

    def abandon(self, loads: Iterable[Measured]) -> None:
        """Forget what was taken, and *loads* that are open: this is a forked child, and they are its parent's."""
        self._ended.clear()
        self._met = {}
        self._read, self._reading = 0, threading.Lock()
        self._left = [measured.counted for measured in loads if measured.counted is not None]

    def _record(self, found: dict[str, Any], measured: Measured, seconds: float, context: Context) -> None:
        identity = self._identity()

        def put(metric: Metric, value: float | None, **more: Any) -> None:
            if value is None or not 0 <= value < _INT64:
                return  # a program may declare anything
            instrument = self._instruments[metric.name]
            told = {name: given[name] for name in metric.attributes if name in given} | more
            attributes = identity | {name: kept for name, value in told.items() if (kept := self._bounded(name, value)) is not None}
            if metric.instrument == "histogram":
                instrument.record(value, attributes, context=context)
            elif metric.instrument == "gauge":
                instrument.set(value, attributes)
            else:
                instrument.add(value, attributes)

        given = dict(found)
        largest = max(measured.stages.values(), key=lambda stage: (stage.get(names.STORAGE_KIND) is not None, stage["largest"]), default={})
        given.setdefault(names.STORAGE_KIND, largest.get(names.STORAGE_KIND))
        folded = found.get(names.FOLDED)  # it stands for that many, of which none lasted as long
        put(metric_names.LOAD_DURATION, seconds if folded is None else None)
        put(metric_names.LOAD_COUNT, folded or 1)
        put(metric_names.LOAD_SIZE, found.get(names.SIZE))
        self.grown(measured, measured.moved)
        measured.told = None
        if measured.read is not None and names.IO_STORAGE_READ in found:
            self.delivered(measured, measured.read + found[names.IO_STORAGE_READ])
        for known in found.get(names.FINDINGS, ()):
            put(metric_names.FINDING_COUNT, 1, **{names.FINDING_ID: known})
        if names.ERROR_TYPE not in found and folded is None:
            put(metric_names.LOAD_LAST_DURATION, seconds)
        put(metric_names.CACHE_RESIDENCY, found.get(names.CACHE_RESIDENCY))
        put(metric_names.LINK_BANDWIDTH, found.get(names.LINK_BANDWIDTH))
        degraded = found.get(names.LINK_DEGRADED)
        put(metric_names.LINK_DEGRADED, None if degraded is None else int(degraded))
        for name in names.PARTS:
            exclusive, stage = found.get(names.partition(name)), measured.stages.get(name, {})
            labels = {label: stage.get(label) for label in (*_LABELS, names.ERROR_TYPE)} | {names.STAGE: name}
            put(metric_names.STAGE_DURATION, exclusive, **labels)
            put(metric_names.STAGE_SIZE, stage.get("size"), **labels)
            if stage.get("busy"):
                put(metric_names.STAGE_THROUGHPUT, stage["timed"] / stage["busy"], **labels)

    def _bounded(self, name: str, value: Any) -> Any:
        """*value* of the attribute *name*, if it is one of the first ones: values without an end would be series without an end."""
        if not isinstance(value, str) or name == names.STAGE:
            return value
        met = self._met.setdefault(name, set())
        if len(met) < metric_names.VALUES:
            met.add(value)
        return value if value in met else None


def _make(meter: Meter, metric: Metric) -> Any:
    if metric.instrument == "histogram":
        return meter.create_histogram(metric.name, metric.unit, metric.meaning, explicit_bucket_boundaries_advisory=metric.bounds)
    make = {"counter": meter.create_counter, "updowncounter": meter.create_up_down_counter, "gauge": meter.create_gauge}
    return make[metric.instrument](metric.name, metric.unit, metric.meaning)
