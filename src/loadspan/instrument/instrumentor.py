"""The entry point of `opentelemetry-instrument`: puts settings, rows and recorder together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined] # untyped

from loadspan import settings
from loadspan.guard import guard
from loadspan.instrument import children, importing, late, leaving, metrics, plugins, propagation, quiet, targets, telemetry
from loadspan.instrument.calls import wrap
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Patches

try:  # what the API itself has looked through already
    from opentelemetry.util._importlib_metadata import entry_points as _entry_points
except ImportError:
    from importlib.metadata import entry_points as _entry_points  # type: ignore[assignment] # called in one way, which both have

if TYPE_CHECKING:
    from collections.abc import Collection


class LoadspanInstrumentor(BaseInstrumentor):  # type: ignore[misc] # the base class is untyped in some releases
    """
    Records model loads.

    `instrument(tracer_provider=..., meter_provider=...)` installs; by default with the global providers,
    also those that are set later.
    `uninstrument()` puts back every object that was taken.
    """

    _patches: Patches | None = None
    _beginnings: importing.Beginnings | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing: a row whose library is missing waits for it."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        # Under the launcher an exception here would stop the instrumentors that come after.
        with guard:
            recorder.settings = settings.read_or_default()
            recorder.telemetry = telemetry.Telemetry(kwargs.get("tracer_provider"))
            recorder.metrics = metrics.Metrics(kwargs.get("meter_provider"), recorder.telemetry.resource)
            recorder.metrics.prepare()
            self._patches = Patches(wrap, late.prepare)
            if recorder.settings.run_dir is not None:
                quiet.begin()
            recorder.active = True
            again = importing.row(self._patches)
            self._patches.install([again, *propagation.ROWS, *children.ROWS, *leaving.ROWS, *targets.at_once(recorder.settings)])
            self._patches.expect(targets.LIBRARIES, targets.of)
            self._beginnings = importing.Beginnings(self._patches)
            self._beginnings.begin()
            plugins.install(_entry_points(group=plugins.GROUP), self._patches)

    def _uninstrument(self, **kwargs: Any) -> None:  # noqa: ARG002 - the interface
        with guard:
            recorder.active = False
            quiet.end()
            if self._beginnings is not None:
                self._beginnings.end()
                self._beginnings = None
            if self._patches is not None:
                self._patches.restore()
                self._patches = None
            recorder.close_all()
            recorder.telemetry = telemetry.Telemetry()
            recorder.metrics = metrics.Metrics()
