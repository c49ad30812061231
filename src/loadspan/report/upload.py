"""OTLP/JSON over HTTP: requests to `/v1/traces`, with the patience that the protocol asks for, and no more."""

from __future__ import annotations

import email.utils
import gzip
import time
from typing import TYPE_CHECKING, Any

from loadspan.errors import UserError

if TYPE_CHECKING:
    from loadspan.report.endpoint import Endpoint, Reply

PATIENCE = 30.0
"""Seconds that a server which says "later" is waited for, all pauses of a request together."""

_PATH = "/v1/traces"
_LATER = (429, 502, 503, 504)  # the statuses that OTLP lets a client try again after
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
_GRPC_PORT = 4317


class Upload:
    """Sends spans to one OTLP endpoint and counts what became of them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._path = "" if endpoint.url.endswith(_PATH) else _PATH
        self.sent = 0
        """Spans that the server took."""
        self.rejected = 0
        self.reason = ""
        """The server's last words about the spans it rejected."""

    def send(self, body: bytes, count: int) -> None:
        """
        Send *count* spans.

        Raises:
            UserError: the server cannot be reached, is none for OTLP or does not want them.
        """
        reply = self._patiently(gzip.compress(body, compresslevel=4))
        answer = reply.json() if reply.body.strip() else {}
        if not isinstance(answer, dict):
            raise UserError(self._wrong("answers with a page for a browser" if b"<" in reply.body[:100] else "does not answer in JSON"))
        rejected = _rejected(answer)
        self.sent += count - min(rejected, count)
        self.rejected += rejected
        if rejected:
            message = answer["partialSuccess"].get("errorMessage")
            self.reason = " ".join(message.split()) if isinstance(message, str) else ""

    def _patiently(self, body: bytes) -> Reply:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        waited, pause = 0.0, _FIRST_PAUSE
        while True:
            try:
                reply = self._endpoint.post(self._path, body, headers)
            except UserError as error:
                if self._endpoint.port == _GRPC_PORT:
                    raise UserError(f"{error}. Port {_GRPC_PORT} is usually gRPC; OTLP over HTTP is usually 4318") from None
                raise
            if 200 <= reply.status < 300:  # noqa: PLR2004 - all of them mean that it was taken
                return reply
            if reply.status not in _LATER:
                raise UserError(self._refusal(reply))
            asked = _retry_after(reply)
            wait = pause if asked is None else asked
            if waited + wait > PATIENCE:
                longer = f" and asks to wait {asked:.0f} s" if asked is not None else f", {waited:.0f} s long"
                raise UserError(f"{self._endpoint.url}: answers {reply.status}{longer}{_words(reply)}. Try again later")
            time.sleep(wait)
            waited, pause = waited + wait, min(2 * pause, _LONGEST_PAUSE)

    def _refusal(self, reply: Reply) -> str:
        status, url = reply.status, self._endpoint.url
        if status in (404, 405):
            return self._wrong(f"answers {status} to a POST")
        if 300 <= status < 400:  # noqa: PLR2004 - redirects
            return f"{url}: redirects to {reply.headers.get('location', 'another address')[:200]}. Name the final address with --otlp"
        if status in (401, 403):
            return f"{url}: wants credentials ({status}{_words(reply)}). Write them into the address: --otlp https://USER:PASSWORD@HOST"
        return f"{url}: refuses the spans with {status}{_words(reply)}. Check the address, and what the server logs"

    def _wrong(self, what: str) -> str:
        url = self._endpoint.url
        return f"{url}{self._path}: not an OTLP endpoint, {what}. OTLP over HTTP is usually port 4318: --otlp http://HOST:4318"


def _words(reply: Reply) -> str:
    return f": {reply.words.rstrip('.')}" if reply.words else ""


def _rejected(answer: dict[str, Any]) -> int:
    """Spans that a server says it threw away; 64-bit integers are text in OTLP JSON."""
    partial = answer.get("partialSuccess")
    try:
        return max(int(partial.get("rejectedSpans", 0)), 0) if isinstance(partial, dict) else 0
    except (TypeError, ValueError):
        return 0


def _retry_after(reply: Reply) -> float | None:
    """Seconds, from a number or a date."""
    text = reply.headers.get("retry-after", "").strip()
    if text.isdecimal() and len(text) < 10:  # noqa: PLR2004 - more is no time to wait
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None
