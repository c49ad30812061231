"""Makes the trace helpers of the report tests importable here too, in this process and in child programs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).resolve().parents[1] / "report"
sys.path.insert(0, str(HELPERS))


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of its own, and none of the variables that the machine of the day may set."""
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "NO_COLOR", "OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME", "PYTHONPATH", "LOADSPAN_DIR", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
