"""
The shipped configurations as they are, run by the real programs: an agent, a gateway, Jaeger and Prometheus on one machine.

All that is told to them is what the files leave to the environment, and the ports of this test.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from backends.process import free_ports, get, until
from backends.programs import Collector, Jaeger, spans_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backends.process import Process

Found = dict[tuple[str, str], dict[str, Any]]
Started = TypeVar("Started", bound="Process")
ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "collector"
DEMO = next((ROOT / "docs" / "demo").glob("trace-*.jsonl"))
PATIENCE = 60.0


class Machine:
    """What runs on it, in the order in which it was started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self.span_metrics = free_ports(1)[0]

    def started(self, process: Started) -> Started:
        """Start it, and end it after the test."""
        self.processes.append(process)
        process.start()
        return process

    def jaeger(self, name: str = "jaeger", **environment: str) -> Jaeger:
        """Jaeger as one process, on disk."""
        settings = {"JAEGER_DIRECTORY": str(self.folder / name / "data")} | environment
        settings.setdefault("JAEGER_UI_CONFIG", str(CONFIGURATIONS / "jaeger" / "ui-config.json"))
        config = CONFIGURATIONS / "jaeger" / "all-in-one.yaml"
        return self.started(Jaeger(self.folder / name, config=config, environment=settings))

    def gateway(self, jaeger: Jaeger, *more: Path | Mapping[str, Any], **environment: str) -> Collector:
        """A gateway that sends to *jaeger*."""
        folder = self.folder / environment.get("INSTANCE", "gateway")
        settings = {"QUEUE_DIRECTORY": str(folder / "queue"), "JAEGER_ENDPOINT": f"127.0.0.1:{jaeger.grpc}"}
        settings |= {"SPAN_METRICS_PORT": str(self.span_metrics), "DECISION_WAIT": "1s"} | environment
        return self.started(Collector(CONFIGURATIONS / "gateway.yaml", folder, *more, environment=settings))

    def agent(self, gateway_port: int, *more: Path | Mapping[str, Any]) -> Collector:
        """An agent that sends to the gateway at a port."""
        settings = {"QUEUE_DIRECTORY": str(self.folder / "agent" / "queue"), "GATEWAY_PORT": str(gateway_port)}
        return self.started(Collector(CONFIGURATIONS / "agent.yaml", self.folder / "agent", *more, environment=settings))

    def series(self) -> list[tuple[str, dict[str, str], float]]:
        """What the gateway makes of spans, as Prometheus would scrape it."""
        return series_of(get(f"http://127.0.0.1:{self.span_metrics}/metrics").decode())


def send(port: int, request: str) -> None:
    """Send OTLP JSON over HTTP; what is not accepted is an error."""
    url = f"http://127.0.0.1:{port}/v1/traces"
    post = urllib.request.Request(url, data=request.encode(), headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(post, timeout=20) as answer:  # noqa: S310 -- loopback
        assert answer.status == 200


def demo(number: int = 0) -> list[str]:
    """The recorded demo as it was sent, one request a line; each *number* has traces of its own."""
    lines = DEMO.read_text().splitlines()
    if not number:
        return lines
    prefix = f'"traceId":"{number:06x}'
    return [prefix.join(part[6:] if at else part for at, part in enumerate(line.split('"traceId":"'))) for line in lines]


def just_now(lines: list[str]) -> list[str]:
    """The same spans, the last of them ended now."""
    later = time.time_ns() - max(span["end"] for span in sent(lines).values())
    return [re.sub(r'(TimeUnixNano":")(\d+)', lambda found: f"{found[1]}{int(found[2]) + later}", line) for line in lines]


def value_of(value: Mapping[str, Any]) -> Any:
    """An attribute's value with its type: integers of 64 bits are text in JSON, and Jaeger keeps a list on disk as its JSON."""
    ((kind, given),) = value.items()
    if kind == "stringValue" and given.startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(given)
    if kind == "arrayValue":
        return [value_of(item) for item in given.get("values", [])]
    convert = {"intValue": int, "doubleValue": float}.get(kind)
    return given if convert is None else convert(given)


def attributes_of(given: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Attributes as a dictionary."""
    return {pair["key"]: value_of(pair["value"]) for pair in given}


def plain(messages: Iterable[Mapping[str, Any]]) -> Found:
    """Every span of OTLP JSON messages by the ids of its trace and its own: all that it says."""
    return {
        (span["traceId"], span["spanId"]): {
            "parent": span.get("parentSpanId", ""),
            "name": span["name"],
            "start": int(span["startTimeUnixNano"]),
            "end": int(span["endTimeUnixNano"]),
            "status": span.get("status", {}).get("code", 0),
            "attributes": attributes_of(span.get("attributes", ())),
        }
        for message in messages
        for span in spans_of(message)
    }


def sent(requests: Iterable[str]) -> Found:
    """The spans of requests."""
    return plain(json.loads(request) for request in requests)


def traces_of(spans: Iterable[tuple[str, str]]) -> list[str]:
    """The ids of their traces."""
    return sorted({trace for trace, _ in spans})


def arrived(jaeger: Jaeger, wanted: Found, more: int = 0) -> Found:
    """The spans that Jaeger has of the traces of *wanted*, once they are as many, and *more*; one that came twice counts once."""

    def found() -> Found | None:
        messages = [message for message in map(jaeger.trace, traces_of(wanted)) if message is not None]
        have = plain(messages)
        return have if len(have) >= len(wanted) + more else None

    return dict(until(found, f"{len(wanted) + more} spans of {len(traces_of(wanted))} traces in Jaeger", PATIENCE, 0.3))


def series_of(page: str) -> list[tuple[str, dict[str, str], float]]:
    """Series of a page of metrics: name, labels, value."""
    found = []
    for line in page.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        name, _, rest = line.partition("{") if "{" in line else (*line.split(" ")[:1], "", "} " + line.split(" ")[1])
        labels, _, value = rest.partition("} ")
        pairs = dict(part.split("=", 1) for part in labels.split('",') if "=" in part)
        found.append((name, {key: text.strip('"') for key, text in pairs.items()}, float(value.split(" ")[0])))
    return found
