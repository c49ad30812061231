"""Processes that load models, as Prometheus sees them: loadspan's own metrics through the real SDK, scraped or sent by OTLP."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from prometheus_client import CollectorRegistry, start_http_server

from loadspan import names
from loadspan.instrument.metrics import Measured, Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.metrics.export import MetricReader

PROMOTED = frozenset({"service.name", "service.version", "service.instance.id", "host.name", "k8s.node.name"})
"""Resource attributes that become labels, as the Collector makes them of all where it is told to."""

STAGES: dict[str, tuple[float, int]] = {names.READ: (0.5, 1000), names.DECRYPT: (0.3, 1000), names.TO_DEVICE: (0.15, 900)}
"""Share of the load's seconds and per mille of its bytes, by stage; the rest of the seconds is in none."""

TRACE = 0x5B8AA5A2D2C872E8321CF37308D69DF2


def resource(instance: str, node: str, version: str) -> dict[str, str]:
    """The resource of one process."""
    where = {"host.name": node, "k8s.node.name": node}
    return {"service.name": "serve", "service.version": version, "service.instance.id": instance, **where}


class Loading:
    """One process and its metrics."""

    def __init__(self, reader: MetricReader, attributes: dict[str, str]) -> None:
        self.provider = MeterProvider([reader], Resource(attributes))
        self._metrics = Metrics(self.provider, lambda: attributes)
        self._metrics.prepare()
        self._read = 0

    def load(self, model: str, seconds: float, size: int, kind: str, error: str | None = None, **found: Any) -> None:
        """End a load whose span is sampled; *found* are further attributes of it."""
        measured = Measured()
        self._metrics.opened(measured, self._read)
        told: dict[str, Any] = {names.MODEL_NAME: model, names.LOADER: "safetensors", names.SIZE: size, names.DEVICE_TYPE: "cuda", **found}
        if error is not None:
            told[names.ERROR_TYPE] = error
        for stage, (share, part) in STAGES.items():
            busy, moved = seconds * share, size * part // 1000
            of_file = {names.STORAGE_KIND: kind, names.FORMAT: "safetensors"} if stage == names.READ else {names.DEVICE_TYPE: "cuda"}
            attributes = {names.STAGE: stage, names.SIZE: moved, names.THROUGHPUT: moved / busy, names.BUSY_TIME: busy, **of_file}
            measured.add(attributes, busy, None)
            told[names.partition(stage)] = busy
        told[names.partition(names.OTHER)] = seconds * 0.05
        # Half of it is seen while it runs, as the sampler tells of it.
        for part in (2, 1):
            self._metrics.grown(measured, {stage: moved // part for stage, moved in measured.moved.items()})
            self._read += size // 2
            self._metrics.delivered(measured, self._read)
        self._metrics.closed(measured)
        span = NonRecordingSpan(SpanContext(TRACE, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
        self._metrics.ended(told, measured, seconds, set_span_in_context(span))
        self._metrics.deliver()


@contextmanager
def scraped(attributes: dict[str, str]) -> Iterator[tuple[Loading, str]]:
    """A process whose metrics are on a port of loopback, and that port."""
    registry = CollectorRegistry()
    loading = Loading(PrometheusMetricReader(registry=registry, resource_attribute_filter=PROMOTED.__contains__), attributes)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield loading, f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
    loading.provider.shutdown()


@contextmanager
def sent(attributes: dict[str, str], endpoint: str) -> Iterator[Loading]:
    """A process that sends its metrics by OTLP."""
    exporter = OTLPMetricExporter(endpoint)
    loading = Loading(PeriodicExportingMetricReader(exporter, export_interval_millis=500), attributes)
    yield loading
    loading.provider.shutdown()
