"""
A server that a user named: one request, one reply, and one line for everything that goes wrong on the way.

The standard library alone. Certificates are verified, redirects are not followed (a login page is no answer to a POST), and a proxy of the
environment is never asked for this machine's own addresses.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import socket
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from loadspan.errors import UserError
from loadspan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT = 10.0
_LARGEST_REPLY = 256 << 20
_UNTOLD = 200  # characters of a server's own words


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        """The body, None where it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def words(self) -> str:
        """What it said about its status, in short."""
        found = self.json()
        error = found.get("error") if isinstance(found, dict) else None
        for holder in (error, found):
            text = holder.get("message") if isinstance(holder, dict) else None
            if isinstance(text, str) and text:
                return " ".join(text.split())[:_UNTOLD]
        # A page is for a browser.
        is_text = self.headers.get("content-type", "").startswith("text/plain")
        return " ".join(self.body[:_UNTOLD].decode(errors="replace").split()) if is_text else ""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None makes the redirect an answer like any other."""
        return


class Endpoint:
    """
    A server by its URL.

    Raises:
        UserError: it is no URL of a server.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not host:
            raise UserError(f"{url}: not the URL of a server. Write it as http://HOST:PORT")
        self.scheme, self.host, self.port = parts.scheme, host, port
        name = f"[{host}]" if ":" in host else host
        place = name if port is None else f"{name}:{port}"
        # Credentials are not part of it: it is printed.
        self.url = urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", ""))
        self._timeout = timeout
        self._headers = {"User-Agent": f"loadspan/{__version__}", "Accept": "application/json"}
        if parts.username is not None:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(secret).decode()}"
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({} if _is_here(host) else None),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
            _NoRedirects(),
        )

    def get(self, path: str) -> Reply:
        """GET *path* below the URL."""
        return self._ask(urllib.request.Request(self.url + path, headers=self._headers))  # noqa: S310 - the scheme was looked at

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """POST *body* to *path* below the URL."""
        request = urllib.request.Request(self.url + path, data=body, headers={**self._headers, **headers}, method="POST")  # noqa: S310 - as above
        return self._ask(request)

    def _ask(self, request: urllib.request.Request) -> Reply:
        try:
            try:
                with self._opener.open(request, timeout=self._timeout) as answer:
                    return self._reply(answer.status, answer.headers, answer)
            except urllib.error.HTTPError as error:
                with error:
                    return self._reply(error.code, error.headers, error)
        except urllib.error.URLError as error:
            raise UserError(self._problem(error.reason)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UserError(self._problem(error)) from None

    def _reply(self, status: int, headers: Any, body: IO[bytes]) -> Reply:
        content = body.read(_LARGEST_REPLY + 1)
        if len(content) > _LARGEST_REPLY:
            raise UserError(f"{self.url}: the answer is larger than {_LARGEST_REPLY >> 20} MiB.")
        return Reply(status, {name.lower(): text for name, text in headers.items()}, content)

    def _problem(self, error: BaseException | str) -> str:
        """What went wrong below HTTP, and what to do."""
        if isinstance(error, ssl.SSLCertVerificationError):
            why = error.verify_message.rstrip(".")
            what = f"its certificate is not trusted: {why}. Check the host name; SSL_CERT_FILE=FILE adds an authority of your own"
        elif isinstance(error, ssl.SSLError):
            what = f"no TLS there ({error.reason or 'handshake failed'}). Is it an http:// address?"
        elif isinstance(error, TimeoutError):
            what = f"no answer within {self._timeout:g} s. Check that the server is well, and the address"
        elif isinstance(error, ConnectionRefusedError):
            what = "connection refused. Check that the server runs, and the address"
        elif isinstance(error, socket.gaierror):
            what = "no such host. Check the address"
        elif isinstance(error, http.client.HTTPException | ConnectionError):
            what = "that is no HTTP server, or it hung up. Check the address and whether it is https://"
        else:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            what = f"{' '.join(words.split()).rstrip('.').lower()[:_UNTOLD]}. Check the address"
        return f"{self.url}: {what}"


def _is_here(host: str) -> bool:
    """Whether an address is this machine's own, which no proxy can reach."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
