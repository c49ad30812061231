"""Jaeger's query API, as far as it says which spans are there, and the addresses of its pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from loadspan import names
from loadspan.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadspan.report.endpoint import Endpoint

UI_PORT = 16686
_SERVICES = "/api/v3/services"  # only what /api/v3 has is kept by all versions 2
_RAW = "raw_traces=true&rawTraces=true"
"""
As stored, in the spelling of either version. Not only because nothing has to be adjusted for us: the memory storage of Jaeger 2.13 keeps
the warnings that its adjusters write into spans whose parent has not arrived yet, and no longer knows a double of such a span for one.
"""
_OK, _ABSENT = 200, 404
_MOST_FOUND = 1500


class Jaeger:
    """A Jaeger by the address that a browser opens."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def check(self) -> None:
        """
        Make sure that it is one.

        Raises:
            UserError: nothing answers there, or something else does.
        """
        reply = self._endpoint.get(_SERVICES)
        url = self._endpoint.url
        if reply.status in (401, 403):
            raise UserError(f"{url}: wants credentials ({reply.status}). Write them into the address: --jaeger https://USER:PASSWORD@HOST")
        found = reply.json()
        if reply.status != _OK or not isinstance(found, dict) or not isinstance(found.get("services", []), list):
            what = f"answers {reply.status}" if reply.status != _OK else "does not answer in JSON"
            raise UserError(f"{url}: not a Jaeger 2, {_SERVICES} {what}. Give the address that a browser opens, http://HOST:{UI_PORT}")

    def spans_of(self, trace_id: str) -> dict[str, bool]:
        """
        Ids of the spans that it has of a trace, each with whether all it has under that id was rebuilt from what a process left.

        Raises:
            UserError: it cannot say.
        """
        reply = self._endpoint.get(f"/api/v3/traces/{trace_id}?{_RAW}")
        if reply.status == _ABSENT:
            return {}
        found = reply.json()
        result = found.get("result", found) if isinstance(found, dict) else None
        if reply.status != _OK or not isinstance(result, dict):
            words = f": {reply.words.rstrip('.')}" if reply.words else ""
            raise UserError(f"{self._endpoint.url}: answers {reply.status} when asked for a trace{words}. Check what Jaeger logs")
        ids: dict[str, bool] = {}
        for span_id, rebuilt in _spans(result):
            ids[span_id] = rebuilt and ids.get(span_id, True)
        return ids

    def page(self, trace_id: str) -> str:
        """Address of a trace's page."""
        return f"{self._endpoint.url}/trace/{trace_id}"

    def search(self, service: str, start: int, end: int) -> str:
        """Address of the page that lists the loads of *service* between two times (nanoseconds since the epoch)."""
        query = {"service": service, "operation": names.LOAD_SPAN, "lookback": "custom", "limit": _MOST_FOUND}
        # Microseconds, and the ends included.
        return f"{self._endpoint.url}/search?{urlencode({**query, 'start': start // 1000 - 1, 'end': end // 1000 + 1})}"

    @property
    def otlp(self) -> str:
        """Where it takes spans if nobody changed that: the usual port of the same host."""
        host = f"[{self._endpoint.host}]" if ":" in self._endpoint.host else self._endpoint.host
        return f"{self._endpoint.scheme}://{host}:4318"


def _spans(result: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    for resource in result.get("resourceSpans") or ():
        for scope in resource.get("scopeSpans") or ():
            for span in scope.get("spans") or ():
                yield str(span.get("spanId", "")).lower(), any(item.get("key") == names.REBUILT for item in span.get("attributes") or ())
