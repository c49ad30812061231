"""A small real server for `view`: OTLP in, Jaeger's query API out, and whatever goes wrong between them on request."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator


@dataclass
class Answer:
    """A scripted answer to one POST, in place of taking the spans."""

    status: int
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    takes: bool = False


@dataclass
class Server:
    """What it got and what it is to say."""

    url: str = ""
    script: list[Answer] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the POSTs whose spans it took."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of these bodies, unpacked."""
    posts: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers of every POST."""
    loses: bool = False
    """Whether it takes spans and never shows them."""

    def entries(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Resource and span of every span, in the order in which they came."""
        for request in self.requests:
            for resource in request["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    for span in scope["spans"]:
                        yield resource["resource"], span

    def spans(self) -> list[dict[str, Any]]:
        """All spans it took."""
        return [span for _, span in self.entries()]

    def trace(self, trace_id: str) -> dict[str, Any] | None:
        """What Jaeger answers."""
        spans = [span for span in self.spans() if span["traceId"].lower() == trace_id]
        if not spans or self.loses:
            return None
        return {"result": {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}}


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/api/v3/services":
                self._say(200, "{}")
            elif path.startswith("/api/v3/traces/"):
                found = server.trace(path.rpartition("/")[2])
                absent = '{"error":{"httpCode":404,"message":"No traces found"}}'
                self._say(404, absent) if found is None else self._say(200, json.dumps(found))
            else:
                self._say(404, "404 page not found")

        def do_POST(self) -> None:
            body = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
            server.posts.append((self.path, dict(self.headers.items())))
            answer = server.script.pop(0) if server.script else Answer(200, '{"partialSuccess":{}}', takes=True)
            if answer.takes:
                server.requests.append(json.loads(body))
                server.sizes.append(len(body))
            self._say(answer.status, answer.body, answer.headers)

        def _say(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            """Tests have no log."""

    return Handler


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that refuses our certificate hangs up, as it should."""


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server on a free port of this machine, with TLS where there is a context for it."""
    server = Server()
    http = _Quiet(("127.0.0.1", 0), _handler(server))
    if tls is not None:
        http.socket = tls.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    server.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
