"""
Files of a folder over HTTP, in a process of its own: enough of a web server and of S3 (`/BUCKET/KEY`, whole or in parts) to be read from.

`python -I -S objectserver.py FOLDER [BYTES_PER_SECOND]` prints its address.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 1 << 18


@contextlib.contextmanager
def serving(folder: Path, rate: float = 0) -> Iterator[str]:
    """A server in a process, for as long as the block runs; its address."""
    process = subprocess.Popen([sys.executable, "-I", "-S", __file__, str(folder), str(rate)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        with process.stdout:
            url = process.stdout.readline().strip()
        yield url
    finally:
        process.terminate()
        process.wait()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = Path()
    rate = 0.0

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            text = b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>"
            self.send_response(404)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if body:
                self.wfile.write(text)
            return
        size = path.stat().st_size
        begin, end = 0, size
        part = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part is not None:
            begin, end = int(part[1]), min(size, int(part[2]) + 1) if part[2] else size
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{size:032x}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if body:
            self._send(path, begin, end)

    def _send(self, path: Path, begin: int, end: int) -> None:
        with path.open("rb") as file:
            file.seek(begin)
            while chunk := file.read(min(_CHUNK, end - file.tell())):
                self.wfile.write(chunk)
                if self.rate:
                    time.sleep(len(chunk) / self.rate)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to tell of."""


if __name__ == "__main__":
    _Handler.folder, _Handler.rate = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    _server = _Server(("127.0.0.1", 0), _Handler)
    print(f"http://127.0.0.1:{_server.server_port}", flush=True)  # noqa: T201 - tells its address
    _server.serve_forever()
