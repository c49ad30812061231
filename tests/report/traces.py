"""Small helpers that write what the recording side writes: OTLP JSON lines and state files. Times in seconds of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

EPOCH = 1_790_000_000_000_000_000
TRACE = "0af7651916cd43dd8448eb211c80319c"
GB = 10**9


def at(seconds: float) -> int:
    return EPOCH + round(seconds * 1e9)


def value(raw: Any) -> dict[str, Any]:
    if isinstance(raw, bool):
        return {"boolValue": raw}
    if isinstance(raw, int):
        return {"intValue": str(raw)}
    if isinstance(raw, float):
        return {"doubleValue": raw}
    if isinstance(raw, str):
        return {"stringValue": raw}
    return {"arrayValue": {"values": [value(item) for item in raw]}}


def span(
    name: str,
    span_id: str,
    parent: str | None,
    start: float,
    end: float,
    *,
    trace: str = TRACE,
    error: str | None = None,
    **attributes: Any,
) -> dict[str, Any]:
    """A span; attributes with `__` for `.`: `loadspan__size=1`."""
    found = {"traceId": trace, "spanId": span_id, "name": name, "kind": 1}
    if parent:
        found["parentSpanId"] = parent
    found |= {"startTimeUnixNano": str(at(start)), "endTimeUnixNano": str(at(end))}
    found["attributes"] = [{"key": key.replace("__", "."), "value": value(raw)} for key, raw in attributes.items()]
    if error is not None:
        found["status"] = {"code": 2, "message": error}
    return found


def line(*spans: Any, pid: int = 4242, scope: str = "loadspan") -> str:
    resource = {"attributes": [{"key": "process.pid", "value": value(pid)}]}
    scopes = [{"scope": {"name": scope, "version": "0.1.0"}, "spans": list(spans)}]
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": scopes}]}) + "\n"


def founding_load() -> list[dict[str, Any]]:
    """The base of the founding story: encrypted, on NFS, then to the device."""
    decrypt = {"loadspan__size": 20 * GB, "loadspan__throughput": 2.5e9, "loadspan__cipher": "AES-GCM", "loadspan__operation__count": 1200}
    read = {
        "loadspan__size": 20 * GB,
        "loadspan__throughput": 3.2e9,
        "file__path": "/models/sdxl/base.enc",
        "file__size": 20 * GB,
        "system__filesystem__type": "nfs4",
        "loadspan__read__method": "buffered",
        "loadspan__blocked_time": 5.1,
    }
    device = {"loadspan__size": 20 * GB, "loadspan__throughput": 5.13e9, "loadspan__device__type": "cuda", "loadspan__device__index": 0}
    root = {
        "loadspan__model__name": "sdxl-base",
        "loadspan__size": 20 * GB,
        "loadspan__implicit": True,
        "loadspan__loader": "diffusers",
        "loadspan__coverage": 0.9917,
        "loadspan__partition__read": 6.25,
        "loadspan__partition__decrypt": 1.75,
        "loadspan__partition__to_device": 3.9,
        "loadspan__partition__other": 0.1,
        "loadspan__other__frames": ["build_unet (unet.py:311) 80 %"],
    }
    return [
        span("read", "a1", "a2", 0.5, 6.75, **read),
        span("decrypt", "a2", "a0", 0, 8, **decrypt),
        span("to_device", "a3", "a0", 8.1, 12, loadspan__host_memory__pinned=False, **device),
        span("load model", "a0", None, 0, 12, **root),
    ]


def write_state(
    folder: Path, pid: int, loads: list[dict[str, Any]], *, updated: float, ended: bool = False, curves: dict[str, Any] | None = None
) -> None:
    state = {"version": 1, "pid": pid, "parent_pid": 1, "command": "python serve.py", "started": at(0)}
    state |= {"updated": at(updated), "ended": ended, "closed": 0, "loads": loads, "curves": curves or {}}
    (folder / f"state-{pid}.json").write_text(json.dumps(state))


def open_load(span_id: str, start: float, *stages: dict[str, Any], trace: str = TRACE, **more: Any) -> dict[str, Any]:
    found = {"trace_id": trace, "span_id": span_id, "parent_id": None, "model": None, "loader": None, "implicit": False}
    return {**found, "start": at(start), "size": 0, "stages": list(stages), **more}
