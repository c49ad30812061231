"""
Grafana's own library for frames, transformations, overrides and units, run by Node.

It is what Grafana does between the answer of a data source and what a table shows. Grafana itself is in no registry here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backends import build

HERE = Path(__file__).parent / "grafana"


def shown(asked: list[dict[str, Any]]) -> dict[str, Any]:
    """What Grafana shows of answers to panels: `tables` of columns and rows of text; also the `units` and `transformers` it knows."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not build.GRAFANA.path.exists():
        pytest.skip("Grafana's library is not there: python tests/backends/build.py grafana-data")
    environment = {"NODE_PATH": str(build.GRAFANA.folder / "node_modules"), "TZ": "UTC"}
    done = subprocess.run([node, HERE / "shown.cjs"], input=json.dumps(asked), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def field(name: str, values: list[Any], kind: str = "string", **config: str) -> dict[str, Any]:
    """One field of a frame."""
    return {"name": name, "type": kind, "values": values, "config": config}


def of_prometheus(series: list[dict[str, Any]], ref: str, several: bool) -> dict[str, Any]:  # noqa: FBT001 -- as Grafana decides it
    """The frame of an instant query in the format `table`: time, labels in order, value, named after its query if one of several."""
    labels = sorted({label for one in series for label in one["metric"]})
    columns = [field(label, [one["metric"].get(label, "") for one in series]) for label in labels]
    value = field(f"Value #{ref}" if several else "Value", [one["value"] for one in series], "number")
    return {"refId": ref, "fields": [field("Time", [0] * len(series), "time"), *columns, value]}


def of_search(traces: list[dict[str, Any]]) -> dict[str, Any]:
    """The frame of a search in Jaeger: a row a trace, its root's duration in microseconds."""
    roots = [min(trace["spans"], key=lambda span: float(span["startTime"])) for trace in traces]
    fields = [
        field("traceID", [trace["traceID"] for trace in traces], displayName="Trace ID"),
        field("traceName", [root["operationName"] for root in roots], displayName="Trace name"),
        field("startTime", [root["startTime"] / 1000 for root in roots], "time", displayName="Start time"),
        field("duration", [root["duration"] for root in roots], "number", displayName="Duration", unit="µs"),
    ]
    return {"refId": "A", "fields": fields}


def of_trace(trace: dict[str, Any]) -> dict[str, Any]:
    """The frame of a trace of Jaeger: a row a span, times in milliseconds."""
    spans = trace["spans"]
    fields = [
        field("traceID", [span["traceID"] for span in spans]),
        field("spanID", [span["spanID"] for span in spans]),
        field("operationName", [span["operationName"] for span in spans]),
        field("serviceName", [trace["processes"][span["processID"]]["serviceName"] for span in spans]),
        field("serviceTags", [trace["processes"][span["processID"]]["tags"] for span in spans], "other"),
        field("startTime", [span["startTime"] / 1000 for span in spans], "number"),
        field("duration", [span["duration"] / 1000 for span in spans], "number"),
        field("tags", [span["tags"] for span in spans], "other"),
    ]
    return {"refId": "A", "fields": fields}
