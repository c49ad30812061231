"""`loadspan view` where the network, the server or the address is wrong: one line that says so, and nothing sent twice."""

from __future__ import annotations

import email.utils
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import traces
from otlpserver import Answer, Server, serving

import certificates
from loadspan.commands import main
from loadspan.errors import UserError
from loadspan.report import delivery, upload
from loadspan.report.endpoint import Endpoint
from loadspan.report.parcel import MOST_SPANS
from loadspan.report.upload import Upload

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(delivery, "_PAUSE", 0.01)
    monkeypatch.setattr(upload, "_FIRST_PAUSE", 0.01)
    with serving() as found:
        yield found


def record(spans: int = 1) -> str:
    Path("trace-1.jsonl").write_text(
        "".join(traces.line(traces.span("load model", f"{number + 1:016x}", None, 0, 1)) for number in range(spans))
    )
    return "trace-1.jsonl"


def look(server: Server, otlp: str | None = None, *, spans: int = 1) -> int:
    return main(["view", record(spans), "--jaeger", server.url, "--otlp", otlp or server.url])


@pytest.mark.parametrize(
    "answers",
    [
        [Answer(503, headers={"Retry-After": "0"}), Answer(429)],
        [Answer(502), Answer(504, headers={"Retry-After": email.utils.formatdate(0)})],
        [Answer(503, headers={"Retry-After": "soon"})],
    ],
)
def test_a_server_that_says_later_is_asked_again(server: Server, answers: list[Answer]) -> None:
    server.script = answers
    assert look(server) == 0
    assert len(server.spans()) == 1


def test_a_server_that_asks_for_too_long_a_wait_is_left_alone(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = [Answer(429, '{"message":"quota of the day"}', {"Retry-After": "3600"})]
    assert look(server) == 2
    assert (
        capsys.readouterr().err == f"loadspan view: {server.url}: answers 429 and asks to wait 3600 s: quota of the day. Try again later\n"
    )


def test_patience_ends(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PATIENCE", 0.2)
    server.script = [Answer(503)] * 50
    assert look(server) == 2
    assert "answers 503, 0 s long. Try again later" in capsys.readouterr().err
    assert len(server.posts) < 10


HTML = "<!doctype html><html><body>Welcome</body></html>"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            Answer(200, HTML, {"Content-Type": "text/html"}),
            "/v1/traces: not an OTLP endpoint, answers with a page for a browser. OTLP over HTTP",
        ),
        (Answer(200, "[]"), "/v1/traces: not an OTLP endpoint, does not answer in JSON. OTLP over HTTP is usually port 4318: --otlp"),
        (Answer(404, HTML), "/v1/traces: not an OTLP endpoint, answers 404 to a POST. OTLP over HTTP is usually port 4318: --otlp"),
        (Answer(405), "/v1/traces: not an OTLP endpoint, answers 405 to a POST. "),
        (
            Answer(302, headers={"Location": "https://login.example/"}),
            ": redirects to https://login.example/. Name the final address with --otlp",
        ),
        (Answer(401, HTML), ": wants credentials (401). Write them into the address: --otlp https://USER:PASSWORD@HOST"),
        (
            Answer(400, '{"code":3,"message":"bad\\n span."}'),
            ": refuses the spans with 400: bad span. Check the address, and what the server logs",
        ),
        (Answer(413, "too large\n", {"Content-Type": "text/plain; charset=utf-8"}), ": refuses the spans with 413: too large. Check"),
        (Answer(500, HTML, {"Content-Type": "text/html"}), ": refuses the spans with 500. Check"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else "",
)
def test_an_answer_that_is_none_is_told_in_one_line(
    server: Server, capsys: pytest.CaptureFixture[str], answer: Answer, message: str
) -> None:
    server.script = [answer]
    assert look(server) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"loadspan view: {server.url}{message}")
    assert (err.count("\n"), out) == (1, "")


def test_an_empty_answer_is_one(server: Server) -> None:
    server.script = [Answer(202, "", takes=True)]
    assert look(server) == 0


def test_what_was_sent_before_an_error_is_said_and_not_sent_again(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = [Answer(200, "{}", takes=True), Answer(500)]
    assert look(server, spans=2 * MOST_SPANS) == 2
    sent = "512 spans had been sent before; nothing is sent twice when you run it again"
    assert sent in capsys.readouterr().err
    assert look(server, spans=2 * MOST_SPANS) == 0
    assert len(server.spans()) == 2 * MOST_SPANS


def test_a_server_that_accepts_and_never_answers_is_not_waited_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UserError, match=r"no answer within 0\.2 s"):
            Upload(Endpoint(url, timeout=0.2)).send(b"{}", 1)
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:PORT", "http://127.0.0.1:PORT: connection refused. Check that the server runs, and the address"),
        ("http://nowhere.invalid:4318", "http://nowhere.invalid:4318: no such host. Check the address"),
        ("ftp://x", "ftp://x: not the URL of a server. Write it as http://HOST:PORT"),
        ("http://", "http://: not the URL of a server. Write it as http://HOST:PORT"),
        ("http://[::1", "http://[::1: not the URL of a server. Write it as http://HOST:PORT"),
        ("http://x:y", "http://x:y: not the URL of a server. Write it as http://HOST:PORT"),
    ],
)
def test_an_address_with_nothing_behind_it_is_told(server: Server, capsys: pytest.CaptureFixture[str], address: str, message: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        assert look(server, address.replace("PORT", port)) == 2
    assert capsys.readouterr().err == f"loadspan view: {message.replace('PORT', port) if 'refused' in message else message}\n"


def test_something_else_that_listens_is_told(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", record(), "--jaeger", f"{server.url}/other"]) == 2
    assert capsys.readouterr().err.startswith(f"loadspan view: {server.url}/other: not a Jaeger 2, /api/v3/services answers 404. Give")
    assert look(server, server.url.replace("http:", "https:")) == 2
    assert ": no TLS there (" in capsys.readouterr().err


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert look(server) == 0
    with pytest.raises(UserError, match="connection refused"):
        Endpoint("http://jaeger.invalid").get("/")


def test_credentials_of_the_address_are_sent_and_not_printed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert look(server, server.url.replace("http://", "http://me:pass%20word@")) == 0
    assert server.posts[0][1]["Authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    out, err = capsys.readouterr()
    assert "pass" not in out + err


def test_a_certificate_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = certificates.write(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serving(context) as server:
        assert look(server) == 2
        wrong = f"loadspan view: {server.url}: its certificate is not trusted: self-signed certificate. Check the host name; SSL_CERT_FILE"
        assert capsys.readouterr().err.replace("self signed", "self-signed").startswith(wrong)
        assert server.posts == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert look(server) == 0
        assert [span["name"] for span in server.spans()] == ["load model"]
        capsys.readouterr()
        with pytest.raises(UserError, match=r"its certificate is not trusted: .*localhost"):
            Endpoint(server.url.replace("127.0.0.1", "localhost")).get("/")
