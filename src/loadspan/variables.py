"""Every `LOADSPAN_*` environment variable: default, accepted values and meaning; the documentation is made of these rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable: default as text, accepted values, meaning."""

    name: str
    default: str
    values: str
    meaning: str


RUN_DIR: Final = "LOADSPAN_DIR"
FILE_READS: Final = "LOADSPAN_FILE_READS"
MIN_SIZE: Final = "LOADSPAN_MIN_SIZE"
IDLE_TIMEOUT: Final = "LOADSPAN_IDLE_TIMEOUT"
PENDING_TIMEOUT: Final = "LOADSPAN_PENDING_TIMEOUT"
PATHS: Final = "LOADSPAN_PATHS"

VARIABLES: Final = (
    Variable(RUN_DIR, "", "a folder", "where the `loadspan` exporter writes its trace and state files; `loadspan run` sets it"),
    Variable(FILE_READS, "on", "on, off", "record binary reads of files of 16 MiB and more through `open`, numpy and `mmap`"),
    Variable(MIN_SIZE, "1048576", "bytes", "an implicit load that moved less and lasted under 10 ms is dropped"),
    Variable(IDLE_TIMEOUT, "1", "seconds", "silence after which an implicit load without pending bytes ends"),
    Variable(PENDING_TIMEOUT, "30", "seconds", "silence after which an implicit load ends although nothing consumed its bytes"),
    Variable(PATHS, "full", "full, basename", "how files are named in `file.path`"),
)
