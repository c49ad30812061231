"""The `LOADSPAN_*` environment variables, read once and checked."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loadspan import variables
from loadspan.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOGGER = logging.getLogger("loadspan")
_DEFAULTS = {variable.name: variable.default for variable in variables.VARIABLES}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for. Timeouts in seconds, sizes in bytes."""

    run_dir: Path | None = None
    file_reads: bool = True
    min_size: int = 1 << 20
    idle_timeout: float = 1.0
    pending_timeout: float = 30.0
    full_paths: bool = True


def _choice(name: str, value: str, choices: tuple[str, str]) -> bool:
    """Whether *value* is the first of two choices."""
    if value.lower() not in choices:
        raise UserError(f"{name}={value}: unknown value. Set it to {choices[0]} or {choices[1]}.")
    return value.lower() == choices[0]


def _number(name: str, value: str, unit: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UserError(f"{name}={value}: not a number of {unit}. Set it to 0 or more, for example {_DEFAULTS[name]}.")
    return number


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """
    Settings from *environment* (default: this process's).

    Raises:
        UserError: a variable has a value it does not know.
    """
    environment = os.environ if environment is None else environment
    value = {name: environment.get(name) or default for name, default in _DEFAULTS.items()}
    return Settings(
        run_dir=Path(value[variables.RUN_DIR]) if value[variables.RUN_DIR] else None,
        file_reads=_choice(variables.FILE_READS, value[variables.FILE_READS], ("on", "off")),
        min_size=int(_number(variables.MIN_SIZE, value[variables.MIN_SIZE], "bytes")),
        idle_timeout=_number(variables.IDLE_TIMEOUT, value[variables.IDLE_TIMEOUT], "seconds"),
        pending_timeout=_number(variables.PENDING_TIMEOUT, value[variables.PENDING_TIMEOUT], "seconds"),
        full_paths=_choice(variables.PATHS, value[variables.PATHS], ("full", "basename")),
    )


def read_or_default() -> Settings:
    """Settings from the environment, or the defaults with one warning: a typo must not stop a host program."""
    try:
        return read()
    except UserError as error:
        _LOGGER.warning("loadspan: %s Using the defaults.", error)
        return Settings()
