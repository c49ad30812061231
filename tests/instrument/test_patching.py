"""The engine that installs rows and puts back what was there, on a library of all kinds of attributes."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

import loadspan
from loadspan.instrument.calls import wrap
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Kind, Patches, Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from recorded import Spans


@pytest.fixture
def patches() -> Iterator[Patches]:
    """Patches that are taken back whatever happens."""
    made = Patches(wrap)
    yield made
    made.restore()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("a_library")
    exec(  # noqa: S102 - a module that nothing else knows
        """
class Base:
    def method(self, x, *, y=2):
        "Adds."
        return type(self).__name__, x, y
    @classmethod
    def made(cls, x=0):
        return cls.__name__, x
    @staticmethod
    def alone(x=0):
        return "alone", x
    def inherited(self):
        return "inherited", type(self).__name__
    @property
    def value(self):
        return 7

class Derived(Base):
    def method(self, x, *, y=3):
        return ("derived", *super().method(x, y=y))

class Slotted:
    __slots__ = ("x",)
    def method(self, x, *, y=2):
        return "slotted", x, y

def function(a, /, b, *args, c=1, **rest):
    return a, b, args, c, rest

async def coroutine(x):
    return x

def generator(n):
    yield from range(n)
    return "done"

constant = 5
alias = function
""",
        module.__dict__,
    )
    for kind in (module.Base, module.Derived, module.Slotted):
        kind.__module__ = "a_library"
    monkeypatch.setitem(sys.modules, "a_library", module)
    return module


def rows_for(*attributes: str, aliases: tuple[str, ...] = ()) -> list[Target]:
    return [
        Target(module="a_library", attribute=attribute, stage="read", why="a test", aliases=aliases if attribute == "function" else ())
        for attribute in attributes
    ]


def behavior(library: types.ModuleType) -> list[Any]:
    """What a program can see of the library."""
    import asyncio

    one, two = library.Base(), library.Derived()
    generator = library.generator(3)
    seen = [next(generator), next(generator), next(generator), next(generator, "end")]
    return [
        one.method(1),
        one.method(x=1, y=5),
        two.method(1),
        library.Base.method(two, 4),
        library.Base.made(3),
        library.Derived.made(3),
        two.made(),
        library.Base.alone(1),
        library.Derived.alone(2),
        two.alone(),
        one.inherited(),
        two.inherited(),
        library.Slotted().method(1),
        library.function(1, 2, 3, c=4, d=5),
        library.function(1, b=2),
        library.alias(1, 2),
        asyncio.run(library.coroutine(9)),
        seen,
        one.value,
        inspect.signature(library.function),
        inspect.signature(one.method),
        inspect.signature(library.Derived.made),
        inspect.iscoroutinefunction(library.coroutine),
        inspect.isgeneratorfunction(library.generator),
        library.Base.__subclasses__(),
        {name: type(value).__name__ for name, value in vars(library.Base).items()},
    ]


ATTRIBUTES = (
    "Base.method",
    "Base.made",
    "Base.alone",
    "Derived.method",
    "Derived.inherited",
    "Slotted.method",
    "function",
    "coroutine",
    "generator",
)


def contents(library: types.ModuleType) -> dict[str, Any]:
    return {
        f"{owner}:{name}": value
        for owner, holder in {"": library, **{kind: getattr(library, kind) for kind in ("Base", "Derived", "Slotted")}}.items()
        for name, value in vars(holder).items()
        if not name.startswith("__")
    }


@pytest.mark.parametrize("active", [True, False])
def test_a_library_behaves_the_same_patched_and_not(
    library: types.ModuleType, patches: Patches, spans: Spans, monkeypatch: pytest.MonkeyPatch, *, active: bool
) -> None:
    before, held = behavior(library), contents(library)
    monkeypatch.setattr(recorder, "active", active)
    patches.install(rows_for(*ATTRIBUTES))
    changed = {key for key, value in contents(library).items() if held.get(key) is not value}
    assert {key.replace(":", ".").lstrip(".") for key in changed} >= set(ATTRIBUTES)
    with loadspan.load():
        assert behavior(library) == before
    patches.restore()
    after = contents(library)
    assert list(after) == list(held)
    assert all(after[key] is held[key] for key in held)
    assert {child["name"] for child in spans.load()["children"]} == ({"read"} if active else set())


def test_a_missing_module_attribute_or_type_skips_the_row(
    library: types.ModuleType, patches: Patches, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "loadspan")
    held = contents(library)
    nowhere = Target(module="no_such_library", attribute="f", stage="read", why="a test")
    patches.install([nowhere, *rows_for("Base.nothing", "Nothing.method", "nothing", "function")])
    changed = {key for key, value in contents(library).items() if held.get(key) is not value}
    assert changed == {":function", ":alias"}
    assert [record.levelname for record in caplog.records] == ["DEBUG"] * 3
    assert "a_library has no Base.nothing, row skipped" in caplog.text


def test_an_attribute_that_cannot_be_set_skips_the_row(patches: Patches, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "loadspan")
    patches.install([Target(module="builtins", attribute="bytes.join", stage="read", why="a test")])
    assert "cannot be set" in caplog.text
    assert b",".join([b"a", b"b"]) == b"a,b"


def test_copies_that_modules_made_before_and_after_are_bound_to_ours_and_back(
    library: types.ModuleType, patches: Patches, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = types.ModuleType("a_user")
    user.early = library.function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_user", user)
    original = library.function
    patches.install(rows_for("function"))
    assert user.early is library.function is library.alias
    assert user.early is not original
    user.late = library.function  # type: ignore[attr-defined]
    patches.restore()
    assert user.early is user.late is library.function is library.alias is original


def test_a_module_that_comes_later_is_patched_when_it_comes(patches: Patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_late_library.py").write_text("def function():\n    return 3\n")
    (tmp_path / "a_later_library.py").write_text("def function():\n    return 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    rows = [Target(module=name, attribute="function", stage="read", why="a test") for name in ("a_late_library", "a_later_library")]
    patches.install(rows)
    late = importlib.import_module("a_late_library")
    assert hasattr(late.function, "__wrapped__")
    assert late.function() == 3
    patches.restore()
    assert not hasattr(late.function, "__wrapped__")
    assert not hasattr(importlib.import_module("a_later_library").function, "__wrapped__")  # nobody asks for it any more
    for name in ("a_late_library", "a_later_library"):
        del sys.modules[name]


def test_a_row_that_fails_while_it_is_installed_harms_neither_import_nor_other_rows(
    library: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loadspan.guard, "raising", False)

    def replace(original: Any) -> Any:
        raise LookupError(original)

    broken = Target(module="a_library", attribute="Base.method", kind=Kind.REPLACE, replace=replace, why="a test")
    held = contents(library)
    made = Patches(wrap)
    made.install([broken, *rows_for("function")])
    changed = {key for key, value in contents(library).items() if held.get(key) is not value}
    assert changed == {":function", ":alias"}
    made.restore()
