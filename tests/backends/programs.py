"""
The real Jaeger and the real Collector as child processes on free ports of loopback (Prometheus and OpenSearch: `stores.py`).

    with Jaeger(tmp_path / "jaeger") as jaeger, Collector(config, tmp_path / "collector") as collector: ...

`stop()`, `kill()`, `start()`, `restart()`, `pause()` and `log` are those of `Process`. Configurations are dictionaries or files that
we ship; in the latter only the ports are laid over.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backends import build
from backends.process import Process, answers, free_ports, get, until, written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Config = Path | Mapping[str, Any]

LOOPBACK = "127.0.0.1"
BEGUN = "Everything is ready"


def binary(program: build.Program) -> Path:
    """Where a program lies; the test is skipped where it was not built."""
    path = build.found(program)
    if path is None:
        pytest.skip(f"{program.name} is not there: python tests/backends/build.py {program.name}")
    return path


def metrics_at(port: int) -> dict[str, Any]:
    """The part of a configuration that puts the program's own metrics on a port."""
    return {"level": "normal", "readers": [{"pull": {"exporter": {"prometheus": {"host": LOOPBACK, "port": port}}}}]}


def otlp_at(grpc: int, http: int) -> dict[str, Any]:
    """The part of a configuration that takes OTLP on two ports."""
    endpoints = {"grpc": {"endpoint": f"{LOOPBACK}:{grpc}"}, "http": {"endpoint": f"{LOOPBACK}:{http}"}}
    return {"otlp": {"protocols": endpoints}}


def validated(program: build.Program, *configs: Path, environment: Mapping[str, str] | None = None) -> str:
    """What `validate` of the real program says about configurations, merged from left to right; "" when they are good."""
    flags = [flag for config in configs for flag in ("--config", str(config))]
    done = subprocess.run([binary(program), "validate", *flags], env=environment, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr or f"exit code {done.returncode}"


class OtlpReceiver(Process):
    """What both Jaeger and the Collector are: started with configurations, told where to listen by the last of them."""

    program: build.Program

    def __init__(
        self,
        configs: Sequence[Config],
        ports_laid_over: Mapping[str, Any],
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        named = [*configs, ports_laid_over]
        files = [each if isinstance(each, Path) else written(folder, f"config-{i}.yaml", each) for i, each in enumerate(named)]
        flags = [flag for file in files for flag in ("--config", file)]
        super().__init__([binary(self.program), *flags], folder, environment)

    def ready(self) -> bool:
        """It says so when all its parts have begun."""
        return BEGUN in self.log_since_start


class Collector(OtlpReceiver):
    """A real Collector. `grpc` and `http` are where its `otlp` receiver listens, `metrics` where its own metrics are."""

    program = build.COLLECTOR

    def __init__(self, config: Config, folder: Path, *more: Config, environment: Mapping[str, str] | None = None) -> None:
        self.grpc, self.http, self.metrics, self.health = free_ports(4)
        ports = {
            "receivers": otlp_at(self.grpc, self.http),
            "extensions": {"health_check": {"endpoint": f"{LOOPBACK}:{self.health}"}},
            "service": {"telemetry": {"metrics": metrics_at(self.metrics)}},
        }
        super().__init__([config, *more], ports, folder, environment)

    def own(self, name: str) -> float:
        """The sum over all series of one of its own metrics, as `otelcol_receiver_accepted_spans`; suffixes may be left out."""
        lines = get(f"http://{LOOPBACK}:{self.metrics}/metrics").decode().splitlines()
        ours = (line for line in lines if line.partition("{")[0] in {name, f"{name}_total", f"{name}__spans__total"})
        return sum(float(line.rpartition(" ")[2]) for line in ours)


MEMORY: dict[str, Any] = {"memory": {"max_traces": 100_000}}


def badger(folder: Path) -> dict[str, Any]:
    """A backend on disk, which survives restarts."""
    directories = {"keys": str(folder / "keys"), "values": str(folder / "values")}
    return {"badger": {"directories": directories, "ephemeral": False, "ttl": {"spans": "48h"}}}


def opensearch(url: str, prefix: str) -> dict[str, Any]:
    """A backend on a server of its own, whose indices begin with a prefix; one shard for each, as it is one node."""
    one = {"shards": 1, "replicas": 0}
    return {"opensearch": {"server_urls": [url], "indices": {"index_prefix": prefix, "spans": one, "services": one}}}


def jaeger_config(backend: Mapping[str, Any]) -> dict[str, Any]:
    """All in one with a backend."""
    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query", "healthcheckv2"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
        },
        "extensions": {
            "healthcheckv2": {"use_v2": True},
            "jaeger_storage": {"backends": {"main": backend}},
            "jaeger_query": {"storage": {"traces": "main"}, "max_clock_skew_adjust": "0s"},
        },
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "main"}},
    }


class Jaeger(OtlpReceiver):
    """A real Jaeger, its user interface at `url`: in memory, with another backend, or with a configuration of ours as it is."""

    program = build.JAEGER

    def __init__(
        self,
        folder: Path,
        *more: Config,
        backend: Mapping[str, Any] | None = None,
        config: Config | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.grpc, self.http, self.query, self.query_grpc, self.health, self.metrics = free_ports(6)
        self.url = f"http://{LOOPBACK}:{self.query}"
        pages = {"assets_path": str(binary(build.JAEGER).parent / "ui")}
        query = {"http": {"endpoint": f"{LOOPBACK}:{self.query}"}, "grpc": {"endpoint": f"{LOOPBACK}:{self.query_grpc}"}, "ui": pages}
        untraced = {"enable_tracing": False}  # itself: else it sends to port 4317, whoever listens there, and takes 10 s to stop
        ports = {
            "receivers": otlp_at(self.grpc, self.http),
            "extensions": {"healthcheckv2": {"http": {"endpoint": f"{LOOPBACK}:{self.health}"}}, "jaeger_query": query | untraced},
            "service": {"telemetry": {"metrics": metrics_at(self.metrics)}},
        }
        super().__init__([config or jaeger_config(backend or MEMORY), *more], ports, folder, environment)

    def ready(self) -> bool:
        """It has begun, and answers questions."""
        return super().ready() and answers(f"{self.url}/api/v3/services")

    def ask(self, path: str, **parameters: str | int) -> Any:
        """What the query API answers; None where it has found nothing."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        try:
            return json.loads(get(f"{self.url}{path}{query}"))
        except urllib.error.HTTPError as error:
            with error:
                if error.code == HTTPStatus.NOT_FOUND:
                    return None
                raise

    def services(self) -> list[str]:
        """Who has sent spans."""
        return list(self.ask("/api/v3/services")["services"] or [])

    def trace(self, trace_id: str) -> dict[str, Any] | None:
        """A trace as OTLP JSON (`{"resourceSpans": [...]}`) as it was stored, by its id in hex; None where it is not there (yet)."""
        found = self.ask(f"/api/v3/traces/{trace_id}", raw_traces="true")
        return found and dict(found["result"])

    def await_trace(self, trace_id: str, spans: int = 1, patience: float = 30) -> dict[str, Any]:
        """A trace as soon as that many of its spans are there."""

        def whole() -> dict[str, Any] | None:
            trace = self.trace(trace_id)
            return trace if trace and len(spans_of(trace)) >= spans else None

        return dict(until(whole, f"{spans} spans of {trace_id} in Jaeger", patience, 0.2))

    def as_drawn(self, trace_id: str) -> dict[str, Any]:
        """A trace as Jaeger's user interface gets it, times in microseconds."""
        return dict(self.ask(f"/api/traces/{trace_id}")["data"][0])

    def search(
        self,
        service: str,
        attributes: Mapping[str, str] | None = None,
        *,
        operation: str = "",
        limit: int = 20,
        start: float | None = None,
        end: float | None = None,
    ) -> list[str]:
        """
        Ids of the traces that have a span of a service with all these attributes, of the last two days or from start to end (seconds).

        Through `/api/v3`; that of this version takes no attributes, so these go the way of the user interface's own search.
        Short spans of time only: to OpenSearch Jaeger sends the name of the index of every day between.
        """
        first, last = time.time() - 2 * 86400 if start is None else start, time.time() + 3600 if end is None else end
        asked: dict[str, str | int]
        if attributes:
            asked = {"service": service, "limit": limit, "tags": json.dumps(dict(attributes)), "lookback": "custom"}
            asked |= {"start": int(first * 1e6), "end": int(last * 1e6)} | ({"operation": operation} if operation else {})
            return [str(each["traceID"]) for each in self.ask("/api/traces", **asked)["data"]]
        asked = {"query.service_name": service, "query.num_traces": limit, "query.operation_name": operation}
        asked |= {"query.start_time_min": _rfc3339(first), "query.start_time_max": _rfc3339(last)}
        found = self.ask("/api/v3/traces", **asked)
        return sorted({str(span["traceId"]) for span in spans_of(found["result"])}) if found else []


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def spans_of(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All spans of an OTLP JSON object, whatever resource and scope they are of."""
    return [span for resource in trace["resourceSpans"] for scope in resource["scopeSpans"] for span in scope.get("spans", ())]
