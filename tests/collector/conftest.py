"""The shipped configurations on one machine, run by the real programs; what a test started is ended after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from shipped import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    """A machine on which nothing runs yet."""
    machine = Machine(tmp_path)
    yield machine
    for process in machine.processes:
        process.kill()
