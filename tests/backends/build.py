"""
Builds the real programs that the tests start: `python tests/backends/build.py [NAME...]`.

What is there already is kept: a program lies in `~/.cache/loadspan-backends/<hash of what pins it>/` (another folder: LOADSPAN_BACKENDS).
One line is printed for each program. Where Go, Java or the registry behind it is missing, that line says so, and the exit code stays 0:
the tests that need the program skip themselves then.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HERE = Path(__file__).resolve().parent
DASHBOARDS = HERE.parent / "dashboards"
CACHE = Path(os.environ.get("LOADSPAN_BACKENDS", "~/.cache/loadspan-backends")).expanduser()
USER_INTERFACE = "github.com/tonistiigi/jaeger-ui-rest"
COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
STRIPPED = ("-trimpath", "-ldflags=-s -w", "-o")
OFFLINE = (
    *("dial tcp", "no such host", "i/o timeout", "TLS handshake timeout", "proxyconnect", "connection refused", "403 Forbidden"),
    *("404 Not Found", "Could not transfer artifact", "Could not resolve", "Unable to locate package", "module lookup disabled"),
)


class MissingError(Exception):
    """Something is not on this machine or out of its reach."""


@dataclass(frozen=True)
class Program:
    """A program: the files that pin it, the file that is there once it is built, and how it is made in an empty folder."""

    name: str
    pinned_by: tuple[str, ...]
    result: str
    make: Callable[[Path], None]

    @property
    def folder(self) -> Path:
        """Where it lies: another one for every change of what pins it."""
        digest = hashlib.sha256(b"\0".join((HERE / name).read_bytes() for name in self.pinned_by))
        return CACHE / digest.hexdigest()[:16]

    @property
    def path(self) -> Path:
        """The file that is there once it is built."""
        return self.folder / self.result

    def build(self) -> None:
        """Makes it in a folder beside its own, which it becomes at once."""
        with tempfile.TemporaryDirectory(prefix="building-", dir=CACHE) as beside:
            folder = Path(beside) / "made"
            folder.mkdir()
            self.make(folder)
            shutil.rmtree(self.folder, ignore_errors=True)
            folder.rename(self.folder)


def call(arguments: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints; of one that fails the last lines, and whether it only lacked a registry."""
    if shutil.which(arguments[0]) is None:
        raise MissingError(f"{arguments[0]} is not installed")
    done = subprocess.run(arguments, cwd=folder, env=os.environ | (environment or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stdout + done.stderr).strip()
        reason = next((line.strip() for line in told.splitlines() if any(sign in line for sign in OFFLINE)), None)
        if reason and "checksum mismatch" not in told:
            raise MissingError(reason)
        raise RuntimeError(f"{' '.join(map(str, arguments))}:\n{told[-3000:]}")
    return done.stdout


def go(arguments: Sequence[str | Path], folder: Path) -> str:
    """Calls Go with a build cache of ours, so that what it fills can be removed afterwards; what is fetched is pinned by `go.sum`."""
    environment = {"CGO_ENABLED": "0", "GOCACHE": str(CACHE / "go-build"), "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    return call(["go", *arguments], folder, environment)


def make_jaeger(folder: Path) -> None:
    """Jaeger, and beside it the pages of its user interface: builds from the Go module have none of their own."""
    go(["build", *STRIPPED, folder / "jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger"], HERE / "jaeger")
    pages = Path(json.loads(go(["mod", "download", "-json", USER_INTERFACE], HERE / "jaeger"))["Dir"], "public")
    for source in (path for path in pages.rglob("*") if path.is_file()):
        target = folder / "ui" / source.relative_to(pages)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.decompress(source.read_bytes()))


def make_collector(folder: Path) -> None:
    """The Collector's own builder writes the program's source from the manifest; `distribution/` pins all that it is linked with."""
    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(HERE / "collector", work, dirs_exist_ok=True)
        flags = ["--config", "manifest.yaml", "--skip-compilation", "--skip-get-modules"]
        go(["tool", "builder", *flags], Path(work))
        for name in ("go.mod", "go.sum"):
            shutil.copy(HERE / "collector" / "distribution" / name, Path(work, "distribution"))
        go(["build", *STRIPPED, folder / "otelcol", "."], Path(work, "distribution"))


def make_opensearch(folder: Path) -> None:
    """OpenSearch's libraries, and ten lines of Java that start a node of them."""
    jars = folder / "lib"
    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(HERE / "opensearch", work, dirs_exist_ok=True)
        call(["mvn", "-q", "-B", COPY_DEPENDENCIES, f"-DoutputDirectory={jars}"], Path(work))
        call(["javac", "-cp", f"{jars}/*", "-d", folder, "Main.java"], Path(work))


def make_prometheus(folder: Path) -> None:
    """Debian's package, unpacked and not installed: its service is not started, and nobody needs to be root."""
    call(["apt-get", "download", "prometheus"], folder)
    for package in folder.glob("*.deb"):
        call(["dpkg-deb", "-x", package, folder], folder)
        package.unlink()


def make_prometheus3(folder: Path) -> None:
    """The Prometheus of compose.yaml, which takes OTLP; without its pages, and without service discoveries, of which tests need none."""
    tags = ["-tags", "remove_all_sd"]
    go(["build", *tags, *STRIPPED, folder / "prometheus", "github.com/prometheus/prometheus/cmd/prometheus"], DASHBOARDS / "prometheus3")


def make_grafana(folder: Path) -> None:
    """Grafana's own library for frames, transformations and units, as pinned; scripts of packages are not run."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(DASHBOARDS / "grafana" / name, folder)
    # React 19 is what one of its dependencies asks for; nothing here draws.
    call(["npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"], folder)


JAEGER = Program("jaeger", ("jaeger/go.mod", "jaeger/go.sum"), "jaeger", make_jaeger)
_COLLECTOR = ("go.mod", "go.sum", "manifest.yaml", "distribution/go.mod", "distribution/go.sum")
COLLECTOR = Program("otelcol", tuple(f"collector/{name}" for name in _COLLECTOR), "otelcol", make_collector)
OPENSEARCH = Program("opensearch", ("opensearch/pom.xml", "opensearch/Main.java"), "Main.class", make_opensearch)
PROMETHEUS = Program("prometheus", (), "usr/bin/prometheus", make_prometheus)
_IN_DASHBOARDS = "../dashboards"
PROMETHEUS3 = Program(
    "prometheus3", (f"{_IN_DASHBOARDS}/prometheus3/go.mod", f"{_IN_DASHBOARDS}/prometheus3/go.sum"), "prometheus", make_prometheus3
)
GRAFANA = Program(
    "grafana-data",
    (f"{_IN_DASHBOARDS}/grafana/package.json", f"{_IN_DASHBOARDS}/grafana/package-lock.json"),
    "node_modules/@grafana/data/package.json",
    make_grafana,
)
PROGRAMS = (PROMETHEUS, JAEGER, COLLECTOR, OPENSEARCH, PROMETHEUS3, GRAFANA)


def found(program: Program) -> Path | None:
    """Where a program is: for Prometheus that of the machine first, then what was built here."""
    installed = shutil.which("prometheus") if program is PROMETHEUS else None
    path = Path(installed) if installed else program.path
    return path if path.exists() else None


def build(program: Program) -> bool:
    """Builds it where it is missing, prints one line; False where it could not be built though all that it needs was there."""
    if path := found(program):
        print(f"{program.name}={path}")  # noqa: T201 -- a command prints
        return True
    started = time.monotonic()
    try:
        program.build()
    except MissingError as reason:
        print(f"{program.name}: skipped, {reason}")  # noqa: T201 -- a command prints
        return True
    except RuntimeError as failure:
        print(f"{program.name}: FAILED: {failure}")  # noqa: T201 -- a command prints
        return False
    print(f"{program.name}={found(program)} built in {time.monotonic() - started:.0f} s")  # noqa: T201 -- a command prints
    return True


def main(names: Sequence[str]) -> int:
    """One builds at a time; who comes meanwhile waits and finds it built."""
    wanted = [program for program in PROGRAMS if not names or program.name in names]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = [build(program) for program in wanted]
        shutil.rmtree(CACHE / "go-build", ignore_errors=True)  # gigabytes, and of no use once the programs are there
    return 0 if all(built) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
