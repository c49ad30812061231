"""
Loads as OpenTelemetry metrics: the only file that speaks the metrics API.

A load is recorded when it ends, once for itself and once for each of its stages, by the sampler: its own thread does not pay for it.
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
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter, MeterProvider

    from loadspan.metric_names import Metric

_INSTANCE = "service.instance.id"
_PROXY = "_ProxyMeterProvider"
_LABELS = (names.FORMAT, names.STORAGE_KIND, names.DEVICE_TYPE)


class Measured:
    """What the spans of a load's stages said, by stage."""

    __slots__ = ("_lock", "counted", "stages")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # loads inside a load may end in several threads
        self.counted = False
        """Whether the load is among those that run now."""
        self.stages: dict[str, dict[str, Any]] = {}

    def add(self, found: Mapping[str, Any], seconds: float, error: str | None) -> None:
        """Add a span of a stage with the attributes *found*, of *seconds*."""
        with self._lock:
            self._add(found, seconds, error)

    def _add(self, found: Mapping[str, Any], seconds: float, error: str | None) -> None:
        stage = self.stages.setdefault(found[names.STAGE], {"size": None, "timed": 0, "busy": 0.0, "largest": -1})
        size = found.get(names.SIZE)
        if size is not None:
            stage["size"] = (stage["size"] or 0) + size
        if names.THROUGHPUT in found:
            stage["timed"] += size or 0
            stage["busy"] += found.get(names.BUSY_TIME, seconds)
        if (size or 0) > stage["largest"]:  # a stage is of the kind that most of its bytes are of
            stage |= {"largest": size or 0, **{name: found.get(name) for name in _LABELS}}
        if error is not None:
            stage[names.ERROR_TYPE] = error


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


class Metrics:
    """Records with the meter of one provider, by default the global one, which may be set later than we are installed."""

    def __init__(self, provider: MeterProvider | None = None, resource: Callable[[], Mapping[str, Any]] = dict) -> None:
        self._provider = provider
        self._resource = resource
        self._meter_of: Any = None
        self._instruments: dict[str, Any] = {}
        self._models: set[str] = set()
        self._made_in = os.getpid()
        self._ended: deque[tuple[dict[str, Any], Measured, float, Context]] = deque()

    def enabled(self) -> bool:
        """Whether there is a provider that does something."""
        provider = self._provider or metrics.get_meter_provider()
        # The class of the proxy is not public; what it is called has not changed since there are metrics.
        return not isinstance(provider, metrics.NoOpMeterProvider) and type(provider).__name__ != _PROXY

    def prepare(self) -> bool:
        """Make the instruments, if there is a provider, and begin the counters with 0: else the increase by a first load is not seen."""
        if not self.enabled():
            return False
        provider = self._provider or metrics.get_meter_provider()
        if self._meter_of is not provider:
            self._meter_of = provider
            meter = provider.get_meter(names.SCOPE, __version__)
            self._instruments = {metric.name: _make(meter, metric) for metric in metric_names.METRICS}
            for metric in (metric_names.LOAD_ACTIVE, metric_names.LOAD_COUNT, metric_names.LOAD_SIZE):
                self._instruments[metric.name].add(0, self._identity())
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

    def opened(self, measured: Measured) -> None:
        """A load began that is in no other."""
        if self.prepare():
            measured.counted = True
            self._instruments[metric_names.LOAD_ACTIVE.name].add(1, self._identity())

    def closed(self, measured: Measured) -> None:
        """It is no longer open."""
        if measured.counted:
            measured.counted = False
            self._instruments[metric_names.LOAD_ACTIVE.name].add(-1, self._identity())

    def ended(self, found: dict[str, Any], measured: Measured, seconds: float, context: Context) -> None:
        """Take a load that has ended, with the attributes of its span, for `deliver` to record."""
        if self._instruments:
            self._ended.append((found, measured, seconds, context))

    def flush(self) -> None:
        """Send what is waiting."""
        flush = getattr(self._provider or metrics.get_meter_provider(), "force_flush", None)
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

    def abandon(self) -> None:
        """Forget what was taken: this is a forked child, and the loads are its parent's."""
        self._ended.clear()

    def _record(self, found: dict[str, Any], measured: Measured, seconds: float, context: Context) -> None:
        identity = self._identity()

        def put(metric: Metric, value: float | None, **more: Any) -> None:
            if value is None:
                return
            instrument = self._instruments[metric.name]
            attributes = identity | _known({name: given[name] for name in metric.attributes if name in given} | more)
            if metric.instrument == "histogram":
                instrument.record(value, attributes, context=context)
            elif metric.instrument == "gauge":
                instrument.set(value, attributes)
            else:
                instrument.add(value, attributes)

        given = {**found, names.MODEL_NAME: self._model(found.get(names.MODEL_NAME))}
        largest = max(measured.stages.values(), key=lambda stage: (stage.get(names.STORAGE_KIND) is not None, stage["largest"]), default={})
        given.setdefault(names.STORAGE_KIND, largest.get(names.STORAGE_KIND))
        put(metric_names.LOAD_DURATION, seconds)
        put(metric_names.LOAD_COUNT, 1)
        put(metric_names.LOAD_SIZE, found.get(names.SIZE))
        if names.ERROR_TYPE not in found:
            put(metric_names.LOAD_LAST_DURATION, seconds)
        put(metric_names.CACHE_RESIDENCY, found.get(names.CACHE_RESIDENCY))
        put(metric_names.LINK_BANDWIDTH, found.get(names.LINK_BANDWIDTH))
        degraded = found.get(names.LINK_DEGRADED)
        put(metric_names.LINK_DEGRADED, None if degraded is None else int(degraded))
        for name in (*names.STAGES, names.OTHER):
            exclusive, stage = found.get(names.partition(name)), measured.stages.get(name, {})
            labels = {label: stage.get(label) for label in (*_LABELS, names.ERROR_TYPE)} | {names.STAGE: name}
            put(metric_names.STAGE_DURATION, exclusive, **labels)
            put(metric_names.STAGE_SIZE, stage.get("size"), **labels)
            if stage.get("busy"):
                put(metric_names.STAGE_THROUGHPUT, stage["timed"] / stage["busy"], **labels)

    def _model(self, name: str | None) -> str | None:
        """*name*, if it is one of the first ones: names without an end would be series without an end."""
        if name is not None and len(self._models) < metric_names.MODELS:
            self._models.add(name)
        return name if name in self._models else None


def _make(meter: Meter, metric: Metric) -> Any:
    if metric.instrument == "histogram":
        return meter.create_histogram(metric.name, metric.unit, metric.meaning, explicit_bucket_boundaries_advisory=metric.bounds)
    make = {"counter": meter.create_counter, "updowncounter": meter.create_up_down_counter, "gauge": meter.create_gauge}
    return make[metric.instrument](metric.name, metric.unit, metric.meaning)
