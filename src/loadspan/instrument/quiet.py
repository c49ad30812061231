"""
One warning of a back end that cannot be reached, while the embedded exporter writes everything down anyway.

The SDK's exporters warn at every try, of spans and of metrics each. Only in a run of ours: elsewhere these lines are all that tells
of a loss.
"""

from __future__ import annotations

import logging
import time

_EXPORTERS = "opentelemetry.exporter.otlp."
_AGAIN = 300.0  # seconds after which a back end that is still away is told of anew


class _Once(logging.Filter):
    """Lets one warning through."""

    def __init__(self) -> None:
        super().__init__()
        self._told = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        now = time.monotonic()
        if now - self._told < _AGAIN:
            return False
        self._told = now
        return True


_once = _Once()


def _loggers() -> list[logging.Logger]:
    known = list(logging.Logger.manager.loggerDict.items())
    return [logger for name, logger in known if name.startswith(_EXPORTERS) and isinstance(logger, logging.Logger)]


def begin() -> None:
    """From now on one warning, of all exporters that are imported."""
    for logger in _loggers():
        logger.addFilter(_once)


def end() -> None:
    """As it was."""
    for logger in _loggers():
        logger.removeFilter(_once)
