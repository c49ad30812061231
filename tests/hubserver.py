"""
A hub on this machine, in a process of its own: the few endpoints that huggingface_hub asks, over a folder `ORGANIZATION/MODEL/FILE`.

`python -I -S hubserver.py FOLDER` prints its address. It keeps what is asked of it, and can be told to be slow (bytes per second of each
transfer), to break the connection of the next transfer after so many bytes, to send no parts of files, to send so many bytes less than
there are, or to refuse to send any.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_RESOLVE = re.compile(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)")
_API = re.compile(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/[^/?]+)?")
_LARGE = 1 << 20
_CHUNK = 1 << 20


class Hub:
    """A hub that runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    def asked(self, method: str = "") -> list[str]:
        """What was asked of it: `GET /...`."""
        with urllib.request.urlopen(f"{self.url}/asked") as answer:  # noqa: S310 - its own address
            return [line for line in json.load(answer) if line.startswith(method)]

    def set(self, **options: float) -> None:
        """Change `slow`, `broken`, `ranges`, `short` or `refused`."""
        text = "&".join(f"{name}={value}" for name, value in options.items())
        urllib.request.urlopen(f"{self.url}/set?{text}").close()  # noqa: S310 - as above


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub in a process, for as long as the block runs: its reads are not its user's, and nothing of ours is in it."""
    process = subprocess.Popen([sys.executable, "-I", "-S", __file__, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Hub(process.stdout.readline().strip())
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.options = {"slow": 0.0, "broken": 0.0, "ranges": 1.0, "short": 0.0, "refused": 0.0}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to tell of."""


@functools.cache
def _etag(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        url = urlsplit(self.path)
        if url.path == "/asked":
            self._json(self.server.asked)
            return
        if url.path == "/set":
            self.server.options.update({name: float(values[0]) for name, values in parse_qs(url.query).items()})
            self._json({})
            return
        self.server.asked.append(f"{self.command} {self.path}")
        if found := _RESOLVE.match(self.path):
            self._file(self.server.folder / found[1] / found[2], body=body)
        elif found := _API.match(self.path):
            self._api(found[1], found[2])
        else:
            self._missing("RepoNotFound")

    def _api(self, model: str, what: str | None) -> None:
        folder = self.server.folder / model
        if not folder.is_dir():
            self._missing("RepoNotFound")
            return
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if what == "tree":
            known: Any = [self._entry(path, folder) for path in files]
        else:
            siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
            known = {"id": model, "modelId": model, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            known |= {"downloads": 0, "likes": 0}
        self._json(known)

    def _json(self, known: Any) -> None:
        text = json.dumps(known).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _entry(self, path: Path, folder: Path) -> dict[str, Any]:
        size = path.stat().st_size
        entry: dict[str, Any] = {"type": "file", "path": str(path.relative_to(folder)), "size": size, "oid": "0" * 40}
        if size >= _LARGE:
            entry["lfs"] = {"oid": _etag(path), "size": size, "pointerSize": 100}
        return entry

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, path: Path, *, body: bool) -> None:
        if not path.is_file():
            self._missing("EntryNotFound")
            return
        options = self.server.options
        size, begin = path.stat().st_size - (int(options["short"]) if body else 0), 0
        part = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") if options["ranges"] else None
        if body and options["refused"]:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if part is not None:
            begin = int(part[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(size - begin))
        self.end_headers()
        if body:
            self._send(path, begin, size)

    def _send(self, path: Path, begin: int, end: int) -> None:
        options = self.server.options
        broken, options["broken"] = int(options["broken"]), 0
        with path.open("rb") as file:
            file.seek(begin)
            sent = 0
            while chunk := file.read(min(_CHUNK, (broken or end - begin) - sent)):
                self.wfile.write(chunk)
                sent += len(chunk)
                if options["slow"]:
                    time.sleep(len(chunk) / options["slow"])
        if broken:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)


if __name__ == "__main__":
    _server = _Server(Path(sys.argv[1]))
    print(f"http://127.0.0.1:{_server.server_port}", flush=True)  # noqa: T201 - tells its address
    _server.serve_forever()
