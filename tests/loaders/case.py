"""What is promised of one way of loading: how to write its files, the lines a user types, and what has to be seen of them."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import pkgutil
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cases
from packaging.requirements import Requirement

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
    raises: str = ""
    """Name of the exception that the user's lines end with, where that is what the case is about. Any other is wrong."""
    use: Callable[[Any], Any] | None = None
    """What the user does with the loaded thing afterwards, a forward pass for example: its result is compared as well."""
    needs: tuple[str, ...] = ()
    """Modules without which it cannot run here, the library's own among them; or distributions of a version: `peft>=0.15`."""
    environment: dict[str, str] | None = None
    """Variables of the loading process."""

    @property
    def files(self) -> str:
        """Name of the folder with its files: one for all cases that write the same."""
        where, name = getattr(self.write, "__module__", ""), getattr(self.write, "__qualname__", "<")
        if "<" in name:  # made by a function, or a partial one: others of the same name write something else
            where, name = self.library, self.name
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{where.rpartition('.')[2]}-{name}")

    def lacking(self) -> list[str]:
        """What it needs and what is not installed here."""
        return [need for need in self.needs if not is_here(need)]


def is_here(need: str) -> bool:
    """Whether a module is installed, or a distribution of a version: `peft>=0.15`."""
    if re.fullmatch(r"[\w.]+", need):
        return importlib.util.find_spec(need.partition(".")[0]) is not None
    wanted = Requirement(need)
    try:
        return wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def held(folder: Path) -> int:
    """Bytes of the tensors in the safetensors files below *folder*, as their headers say."""
    found = 0
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        found += sum(about["data_offsets"][1] - about["data_offsets"][0] for name, about in header.items() if name != "__metadata__")
    return found


def modules() -> list[str]:
    """Modules with cases, as they are imported."""
    return sorted(f"cases.{info.name}" for info in pkgutil.iter_modules(cases.__path__))


def cases_of(module: str) -> list[Case]:
    """The cases of *module*, those that share files one after the other."""
    found: list[Case] = importlib.import_module(module).CASES
    order = {files: place for place, files in reversed(list(enumerate(case.files for case in found)))}
    return sorted(found, key=lambda case: order[case.files])


def all_cases() -> list[tuple[str, Case]]:
    """Every case, with the module it is in."""
    return [(module, case) for module in modules() for case in cases_of(module)]


def find(module: str, library: str, name: str) -> Case:
    """The case of that module, library and name."""
    return next(case for case in cases_of(module) if (case.library, case.name) == (library, name))
