"""
The services of `collector/compose.yaml` in containers: the images that it names where this machine has them, else some of our own.

The latter carry the same programs, built from source, and run as the same users; only Grafana's answers for its health and is nothing else.
Nothing is pulled, and nothing is tagged with a name that is somebody's.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backends import build
from backends.programs import binary

if TYPE_CHECKING:
    from collections.abc import Mapping

_CLIENT = shutil.which("docker") or ""
BUSYBOX = Path("/bin/busybox")
TOOLS = ("sh", "wget", "sleep", "chown", "kill", "date", "httpd")
USERS = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
GRAFANA = "trap exit TERM; date > /var/lib/grafana/began; httpd -f -p 3000 -h /www & wait"


@dataclass(frozen=True)
class Image:
    """What is in an image of ours, as Dockerfile would say it."""

    user: str
    entrypoint: tuple[str, ...]
    program: build.Program | None = None
    owned: str = ""
    """A folder of the user's; a new volume that is mounted there is the user's as well."""
    volume: str = ""
    tools: bool = True


IMAGES: Mapping[str, Image] = {
    "jaegertracing/jaeger": Image("10001", ("/bin/jaeger",), build.JAEGER, volume="/tmp"),  # noqa: S108 - of the image
    "otel/opentelemetry-collector-contrib": Image("10001", ("/bin/otelcol-contrib",), build.COLLECTOR, tools=False),
    "prom/prometheus": Image("65534", ("/bin/prometheus",), build.PROMETHEUS3, owned="prometheus", volume="/prometheus"),
    "grafana/grafana": Image("472", ("/bin/sh", "-c", GRAFANA), owned="var/lib/grafana"),
}
"""By the name that compose.yaml gives to the real one."""


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the client."""
    return subprocess.run([_CLIENT, *arguments], capture_output=True, text=True, check=False)


def needed() -> None:
    """Skip the test where there is no engine, or none with compose."""
    if not _CLIENT or docker("version").returncode or docker("compose", "version").returncode:
        pytest.skip("no Docker engine with compose runs here")


def image(named: str) -> str:
    """The image that is called so, where it is on this machine, else the one of ours in its place."""
    if docker("image", "inspect", named).returncode == 0:
        return named
    made = IMAGES[named.rpartition(":")[0]]
    if made.tools and not BUSYBOX.exists():
        pytest.skip("no static busybox, which the images have their tools from")
    ours = f"loadspan-test/{named.partition('/')[2]}"
    changes = [f"USER {made.user}", f"ENTRYPOINT {json.dumps(made.entrypoint)}", *([f"VOLUME {made.volume}"] if made.volume else ())]
    flags = [flag for change in changes for flag in ("--change", change)]
    done = subprocess.run([_CLIENT, "import", *flags, "-", ours], input=_files(made), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return ours


def _files(made: Image) -> bytes:
    """The files of an image as a tar archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:

        def add(name: str, data: bytes | None = None, link: str = "", mode: int = 0o755, user: int = 0) -> None:
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.SYMTYPE if link else tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            entry.linkname, entry.mode, entry.uid, entry.size = link, mode, user, len(data or b"")
            tar.addfile(entry, io.BytesIO(data or b""))

        add("bin")
        add("tmp", mode=0o1777)
        if made.program is not None:
            add(made.entrypoint[0][1:], binary(made.program).read_bytes())
        if made.tools:
            add("bin/busybox", BUSYBOX.read_bytes())
            for tool in TOOLS:
                add(f"bin/{tool}", link="busybox")
            add("etc")
            add("etc/passwd", USERS.encode(), mode=0o644)
        if made.program is None:
            add("www")
            add("www/api")
            add("www/api/health", b"ok", mode=0o644)
        for depth in range(1, made.owned.count("/") + 1):
            add("/".join(made.owned.split("/")[:depth]))
        if made.owned:
            add(made.owned, user=int(made.user))
    return content.getvalue()
