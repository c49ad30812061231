"""The real Prometheus and the real OpenSearch as child processes on free ports of loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backends import build
from backends.process import Process, answers, free_ports, get, until, written
from backends.programs import LOOPBACK, binary

if TYPE_CHECKING:
    from collections.abc import Iterable


def promtool(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Calls promtool, which lies beside Prometheus."""
    program = binary(build.PROMETHEUS).with_name("promtool")
    return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)


class Prometheus(Process):
    """A real Prometheus that scrapes `targets` (`host:port`) twice a second, with rules where there are some."""

    def __init__(self, folder: Path, targets: Iterable[str] = (), rules: Iterable[Path] = (), *flags: str) -> None:
        [self.port] = free_ports(1)
        self.url = f"http://{LOOPBACK}:{self.port}"
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(Path(rule).resolve()) for rule in rules],
            "scrape_configs": [{"job_name": "loadspan", "honor_labels": True, "static_configs": [{"targets": list(targets)}]}],
        }
        folder.mkdir(parents=True, exist_ok=True)
        where = [f"--config.file={written(folder, 'prometheus.yaml', config)}", f"--storage.tsdb.path={folder / 'data'}"]
        listen = f"--web.listen-address={LOOPBACK}:{self.port}"
        super().__init__([binary(build.PROMETHEUS), *where, listen, "--enable-feature=exemplar-storage", *flags], folder)

    def ready(self) -> bool:
        """It says so itself."""
        return answers(f"{self.url}/-/ready")

    def ask(self, path: str, **parameters: str | float) -> Any:
        """What is under `data` in an answer of its API; an error of PromQL is a `urllib.error.HTTPError`."""
        return json.loads(get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))["data"]

    def query(self, expression: str, **parameters: str | float) -> list[dict[str, Any]]:
        """The series of an instant query: `[{"metric": {...}, "value": [time, "number"]}, ...]`."""
        return list(self.ask("query", query=expression, **parameters)["result"])

    def query_range(self, expression: str, start: float, end: float, step: float = 1) -> list[dict[str, Any]]:
        """The series of a range query, times in seconds since the epoch."""
        return list(self.ask("query_range", query=expression, start=start, end=end, step=step)["result"])

    def await_series(self, expression: str, series: int = 1, patience: float = 30) -> list[dict[str, Any]]:
        """An instant query's series as soon as there are that many."""

        def enough() -> list[dict[str, Any]] | None:
            found = self.query(expression)
            return found if len(found) >= series else None

        return list(until(enough, f"{series} series of {expression}", patience, 0.2))


class OpenSearch(Process):
    """A real OpenSearch of one node with a heap of 1 GB; `url` is where it answers."""

    patience = 120.0

    def __init__(self, folder: Path, heap: str = "1g") -> None:
        built = binary(build.OPENSEARCH).parent
        java = shutil.which("java")
        if java is None:
            pytest.skip("java is not installed")
        self.port, transport = free_ports(2)
        self.url = f"http://{LOOPBACK}:{self.port}"
        flags = [f"-Xms{heap}", f"-Xmx{heap}", "-cp", f"{built}:{built}/lib/*"]
        super().__init__([java, *flags, "Main", folder / "data", str(self.port), str(transport)], folder)

    def ready(self) -> bool:
        """It answers, and its shards are there."""
        return answers(f"{self.url}/_cluster/health?wait_for_status=yellow&timeout=1s")

    def refresh(self) -> None:
        """Makes all that was written until now found by searches."""
        get(f"{self.url}/_refresh")

    def count(self, index: str) -> int:
        """Documents in an index."""
        return int(json.loads(get(f"{self.url}/{index}/_count"))["count"])
