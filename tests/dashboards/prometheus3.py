"""
The Prometheus that compose.yaml runs, which takes OTLP; Debian's is too old for that: `python tests/dashboards/prometheus3.py` builds it.

Some eight minutes on two cores, then it is kept. Without its pages, and without the service discoveries, of which the tests need none.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from backends import build
from backends.programs import LOOPBACK, binary
from backends.stores import Prometheus

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent / "prometheus3"
SHIPPED = Path(__file__).parents[2] / "collector" / "prometheus" / "prometheus.yaml"


def make(folder: Path) -> None:
    """Build it from the registry of Go modules."""
    tags = ["-tags", "remove_all_sd"]
    build.go(["build", *tags, *build.STRIPPED, folder / "prometheus", "github.com/prometheus/prometheus/cmd/prometheus"], HERE)


PROGRAM = build.Program("prometheus3", ("../dashboards/prometheus3/go.mod", "../dashboards/prometheus3/go.sum"), "prometheus", make)


class Prometheus3(Prometheus):
    """A real Prometheus 3 with the configuration that we ship; it takes OTLP at `otlp`. What that one scrapes is not there."""

    def __init__(self, folder: Path, flags: Iterable[str] = ()) -> None:
        super().__init__(folder, (), (), "--web.enable-otlp-receiver", *flags)
        self.command = [str(binary(PROGRAM)), f"--config.file={SHIPPED}", *self.command[2:]]
        self.otlp = f"http://{LOOPBACK}:{self.port}/api/v1/otlp/v1/metrics"


if __name__ == "__main__":
    build.CACHE.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if build.build(PROGRAM) else 1)
