"""The Prometheus that compose.yaml runs, which takes OTLP; Debian's is too old for that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backends import build
from backends.programs import LOOPBACK, binary
from backends.stores import Prometheus

if TYPE_CHECKING:
    from collections.abc import Iterable

SHIPPED = Path(__file__).parents[2] / "collector" / "prometheus" / "prometheus.yaml"


class Prometheus3(Prometheus):
    """A real Prometheus 3 with the configuration that we ship; it takes OTLP at `otlp`. What that one scrapes is not there."""

    def __init__(self, folder: Path, flags: Iterable[str] = ()) -> None:
        super().__init__(folder, (), (), "--web.enable-otlp-receiver", *flags)
        self.command = [str(binary(build.PROMETHEUS3)), f"--config.file={SHIPPED}", *self.command[2:]]
        self.otlp = f"http://{LOOPBACK}:{self.port}/api/v1/otlp/v1/metrics"
