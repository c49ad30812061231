"""A real load while the gateway and Jaeger are killed and come back: it does not notice, and nothing that the agent accepted is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from backends.process import until
from backends.programs import spans_of
from loadspan import names
from loadspan.report.tracefile import read

if TYPE_CHECKING:
    from shipped import Machine

STAGES = 60
PROGRAM = f"""
import time
import loadspan

with loadspan.load("through"):
    for number in range({STAGES}):
        with loadspan.stage("read", size=1000 + number):
            time.sleep(0.05)
"""


def test_a_load_is_as_long_and_as_whole_as_without_an_outage(here: Machine, tmp_path: Path) -> None:
    jaeger = here.jaeger()
    gateway = here.gateway(jaeger)
    agent = here.agent(gateway.grpc)
    program, run = tmp_path / "program.py", tmp_path / "run"
    program.write_text(PROGRAM)
    base = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LOADSPAN_"))}
    environment = base | {
        "OTEL_TRACES_EXPORTER": "otlp,loadspan",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{agent.grpc}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "LOADSPAN_DIR": str(run),
    }
    instrument = Path(sys.executable).with_name("opentelemetry-instrument")
    with subprocess.Popen([instrument, sys.executable, program], env=environment) as child:
        until(lambda: agent.own("otelcol_receiver_accepted_spans") > 0, "a span in the agent", 60, 0.05)
        gateway.kill()
        jaeger.kill()
        assert child.poll() is None, "the load was over before anything was killed"
        assert child.wait(60) == 0
    jaeger.start()
    gateway.start()
    (load,) = read(run).loads
    assert load.duration is not None
    stages = [stage.duration or 0.0 for stage in load.stages]
    assert len(stages) == STAGES
    assert load.duration - sum(stages) < 0.1 * load.duration  # nothing waited between them
    assert sum(stages) < 2 * STAGES * 0.05
    found = spans_of(jaeger.await_trace(load.trace_id, STAGES + 1, patience=90))
    assert sorted(span["name"] for span in found) == sorted([names.LOAD_SPAN, *[names.READ] * STAGES])
    sizes = [int(item["value"]["intValue"]) for span in found for item in span["attributes"] if item["key"] == names.SIZE]
    assert sorted(sizes) == sorted([*range(1000, 1000 + STAGES), sum(range(1000, 1000 + STAGES))])
