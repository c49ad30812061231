"""
A back end that refuses, that accepts and never answers, or whose certificate is wrong: the load does not wait for it.

Two launchers, both protocols, real child processes. Nothing has to be installed for these.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import certificates
from loadspan import names
from loadspan.report.tracefile import read

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 3
"""Seconds that the exporters wait for an answer: a load that waited for one would last that long."""

PROGRAM = """
import sys, torch
from safetensors.torch import load_file, save_file

save_file({f"p{number}": torch.ones(500, 500) for number in range(5)}, sys.argv[1])
module = torch.nn.Module()
for number in range(5):
    module.register_parameter(f"p{number}", torch.nn.Parameter(torch.empty(500, 500), requires_grad=False))
module.load_state_dict(load_file(sys.argv[1]))
module.half()
"""


@contextmanager
def refusing(_: Path) -> Iterator[str]:
    """Nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def silent(_: Path) -> Iterator[str]:
    """Accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)  # the kernel accepts; nobody reads
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def untrusted(folder: Path) -> Iterator[str]:
    """Has a certificate that nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.write(folder))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()  # the client did not like the certificate

        threading.Thread(target=answer, daemon=True).start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


BACK_ENDS = {"refuses": refusing, "never answers": silent, "is not trusted": untrusted}


def run(back_end: str, protocol: str, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LOADSPAN_"))}
    (folder / "load.py").write_text(PROGRAM)
    with BACK_ENDS[back_end](folder) as endpoint:
        environment = base | {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_TIMEOUT": str(PATIENCE),
        }
        return subprocess.run(
            [*command, sys.executable, folder / "load.py", folder / "weights.safetensors"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_run_is_written_down_whole_with_one_warning(back_end: str, protocol: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    launcher = (sys.executable, "-m", "loadspan", "run", "-o", str(runs), "--")
    done = run(back_end, protocol, tmp_path, *launcher)
    assert done.returncode == 0, done.stderr
    (load,) = read(runs).loads
    assert [stage.name for stage in load.stages] == [names.DESERIALIZE, names.LOAD_STATE_DICT, names.CONVERT]
    assert load.duration is not None
    assert load.duration < PATIENCE / 2
    warnings = [line for line in done.stderr.splitlines() if "Transient error" in line or "Failed to export" in line]
    assert len(warnings) == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_under_the_plain_launcher_only_the_exporters_themselves_warn(back_end: str, protocol: str, tmp_path: Path) -> None:
    done = run(back_end, protocol, tmp_path, str(Path(sys.executable).with_name("opentelemetry-instrument")))
    assert done.returncode == 0, done.stderr
    assert "loadspan" not in done.stderr
    assert "export" in done.stderr  # the loss is told of
