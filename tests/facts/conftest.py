"""The fixture `machine`: a recorded machine by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import machines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadspan.facts.tree import Tree


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], Tree]:
    """`machine("desktop")` unpacks `tests/machines/desktop.txt`."""
    return lambda name: machines.unpack(name, tmp_path / "machines" / name)
