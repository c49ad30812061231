"""
loadspan: where does my model's load time go, and why?

    opentelemetry-instrument python serve.py      # spans to whatever OTLP backend is configured
    loadspan run -- python serve.py               # no server, no configuration

and for load functions of your own:

    with loadspan.load("sdxl-base"): ...
    @loadspan.stage("decrypt") ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan.api import current, load, stage
from loadspan.version import __version__

if TYPE_CHECKING:
    from loadspan.instrument.instrumentor import LoadspanInstrumentor

__all__ = ["LoadspanInstrumentor", "__version__", "current", "load", "stage"]


def __getattr__(name: str) -> Any:
    # Reading a trace needs no OpenTelemetry: the instrumentor is imported by who asks for it.
    if name == "LoadspanInstrumentor":
        from loadspan.instrument.instrumentor import LoadspanInstrumentor  # noqa: PLC0415 - as said above

        return LoadspanInstrumentor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
