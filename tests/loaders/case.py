"""What is promised of one way of loading: how to write its files, the lines a user types, and what has to be seen of them."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cases

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Truth = dict[str, int]
"""Bytes by stage name, as the files and tensors themselves have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    One way in which one library loads weights.

    `write` and `load` run in child processes of their own; they import the library themselves. Cases with the same `write` share its files.
    """

    name: str
    """Unique, as it stands in the table: `from_pretrained, sharded`."""
    library: str
    """Distribution whose version is printed: `transformers`."""
    write: Callable[[Path], Truth]
    """Write the files into an empty folder; returns the true bytes of each stage."""
    load: Callable[[Path], Any]
    """The user's lines. What they return (modules, tensors, arrays, any nesting) or raise must be the same with loadspan, bit for bit."""
    loader: str
    """`loadspan.loader` of the outermost loads."""
    stages: tuple[str, ...]
    """Stages that have to be seen; others may be."""
    sizes: Callable[[Truth], Truth] = lambda truth: truth
    """From what `write` returned to what this case has to show, where they differ."""
    loads: int = 1
    """Outermost loads that have to be seen."""
    spans: int = 500
    """Most spans in a load."""
    needs: tuple[str, ...] = ()
    """Modules without which it cannot run here, the library's own among them."""
    environment: dict[str, str] | None = None
    """Variables of the loading process."""

    @property
    def files(self) -> str:
        """Name of the folder with its files: one for all cases that write the same."""
        return f"{self.write.__module__.rpartition('.')[2]}-{self.write.__qualname__}"


def all_cases() -> list[Case]:
    """Every case of every module in `cases`, by module."""
    found: list[Case] = []
    for module in sorted(info.name for info in pkgutil.iter_modules(cases.__path__)):
        found.extend(importlib.import_module(f"cases.{module}").CASES)
    return found


def find(library: str, name: str) -> Case:
    """The case of that library and name."""
    return next(case for case in all_cases() if (case.library, case.name) == (library, name))
