"""Processes that load models, as Prometheus sees them: loadspan's own metrics through the real SDK and its Prometheus exporter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, start_http_server

from loadspan import names
from loadspan.instrument.metrics import Measured, Metrics

if TYPE_CHECKING:
    from typing_extensions import Self

PROMOTED = frozenset({"service.name", "service.version", "service.instance.id", "host.name", "k8s.node.name"})
"""Resource attributes that become labels, as Prometheus and the Collector make them where they are told to."""

STAGES: dict[str, tuple[float, int]] = {names.READ: (0.5, 1000), names.DECRYPT: (0.3, 1000), names.TO_DEVICE: (0.15, 900)}
"""Share of the load's seconds and per mille of its bytes, by stage; the rest of the seconds is in none."""


class Loading:
    """One process: its metrics are on a port of loopback as long as it lives."""

    def __init__(self, port: int = 0, **resource: str) -> None:
        attributes = {name.replace("_", "."): value for name, value in resource.items()}
        registry = CollectorRegistry()
        reader = PrometheusMetricReader(registry=registry, resource_attribute_filter=lambda name: name in PROMOTED)
        self._provider = MeterProvider([reader], Resource(attributes))
        self._metrics = Metrics(self._provider, lambda: attributes)
        self._metrics.prepare()
        self._server, self._thread = start_http_server(port, "127.0.0.1", registry)
        self.target = f"127.0.0.1:{self._server.server_port}"

    def load(self, model: str, seconds: float, size: int, kind: str, error: str | None = None, **found: Any) -> None:
        """End a load; *found* are further attributes of its span, dots written as underscores where they are not in a name."""
        measured = Measured()
        self._metrics.opened(measured)
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
        self._metrics.closed(measured)
        self._metrics.ended(told, measured, seconds, Context())
        self._metrics.deliver()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._provider.shutdown()
