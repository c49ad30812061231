"""`run.json`: what was run, when, and how it ended."""

from __future__ import annotations

import contextlib
import json
import platform
import socket
import time
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.errors import UserError
from loadspan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loadspan.commands.child import Ending


class RunFile:
    """
    The file, written at the start and again at the end.

    Raises:
        UserError: it cannot be written, so nothing else could be either.
    """

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self._path = folder / names.RUN_FILE
        self._content: dict[str, Any] = {
            "version": 1,
            "command": list(command),
            "started": time.time_ns(),
            "ended": None,
            "exit_code": None,
            "signal": None,
            "loadspan": __version__,
            "python": platform.python_version(),
            "host": socket.gethostname(),
        }
        try:
            self._write()
        except OSError as error:
            raise UserError(f"{folder}: {(error.strerror or str(error)).lower()}. Name a folder you can write to with -o.") from None

    def close(self, ending: Ending) -> None:
        """Add how the command ended. A disk that is full by now must not cost the command its exit code."""
        self._content |= {"ended": time.time_ns(), "exit_code": ending.exit_code, "signal": ending.signal_name}
        with contextlib.suppress(OSError):
            self._write()

    def discard(self) -> None:
        """Leave nothing behind of a command that never started; a folder with something else in it stays."""
        with contextlib.suppress(OSError):
            self._path.unlink()
            self._path.parent.rmdir()

    def _write(self) -> None:
        # Replaced in one go: a reader never sees half of it, and a full disk leaves the first version.
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps(self._content, indent=2) + "\n", encoding="utf-8", errors="surrogateescape")
        draft.replace(self._path)
