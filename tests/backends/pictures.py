"""
Draws the pictures in docs/: `python tests/backends/pictures.py`.

docs/demo, sent by `loadspan view` to a real Jaeger with the user interface's configuration that we ship, seen in a real browser.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from backends.browser import picture
from backends.programs import Jaeger
from loadspan.commands import main
from loadspan.report.tracefile import read

ROOT = Path(__file__).parents[2]
DEMO, DOCS = ROOT / "docs" / "demo", ROOT / "docs"
UI = ROOT / "collector" / "jaeger" / "ui-config.json"


def draw() -> None:
    """Both pictures: the waterfall, and what a stage says of itself."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        configured = {"extensions": {"jaeger_query": {"ui": {"config_file": str(UI)}}}}
        with Jaeger(folder / "jaeger", configured) as jaeger:
            if main(["view", str(DEMO), "--jaeger", jaeger.url, "--otlp", f"http://127.0.0.1:{jaeger.http}"]):
                sys.exit("the demo did not arrive")
            load = max(read(DEMO).loads, key=lambda load: load.duration or 0)
            page = f"{jaeger.url}/trace/{load.trace_id}"
            picture(page, folder / "profile", DOCS / "jaeger.png", width=1400, height=660)
            stage = next(iter(load.stages))
            picture(f"{page}?uiFind={stage.span_id}", folder / "profile", DOCS / "jaeger-stage.png", width=1400, height=900)


if __name__ == "__main__":
    draw()
