"""A library that is imported once more is recorded as it was the first time."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import loadspan
from loadspan.instrument import importing
from loadspan.instrument.calls import wrap
from loadspan.instrument.patching import Patches, Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from recorded import Spans

ROWS = [
    Target(module="a_reloaded", attribute="function", stage="read", why="a test"),
    Target(module="a_reloaded", attribute="Kind.method", stage="decrypt", why="a test"),
]


@pytest.fixture
def patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Patches]:
    (tmp_path / "a_reloaded.py").write_text("def function():\n    return 3\n\nclass Kind:\n    def method(self):\n        return 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = Patches(wrap)
    again = importing.Beginnings(made)
    made.install([importing.row(made), *ROWS])
    again.begin()
    yield made
    again.end()
    made.restore()
    sys.modules.pop("a_reloaded", None)


def recorded(spans: Spans) -> list[str]:
    """Stages of a load in which the library is used as it is now."""
    library = importlib.import_module("a_reloaded")
    with loadspan.load():
        assert (library.function(), library.Kind().method()) == (3, 4)
    return [child["name"] for child in spans.loads()[-1]["children"]]


def test_reloaded_functions_and_classes_are_recorded_once(patches: Patches, spans: Spans) -> None:
    library = importlib.import_module("a_reloaded")
    early, kind = library.function, library.Kind
    for _ in range(3):
        assert importlib.reload(library) is library
        assert recorded(spans) == ["read", "decrypt"]
    patches.restore()
    assert recorded(spans) == []
    assert not hasattr(library.function, "__wrapped__")
    assert not hasattr(library.Kind.method, "__wrapped__")
    assert not hasattr(kind.method, "__wrapped__")
    assert early.__wrapped__() == 3  # what the program kept goes on to work


def test_what_was_imported_before_us_and_is_reloaded_is_recorded(patches: Patches, spans: Spans) -> None:
    patches.restore()
    library = importlib.import_module("a_reloaded")
    patches.install([importing.row(patches), *ROWS])
    importlib.reload(library)
    assert recorded(spans) == ["read", "decrypt"]


@pytest.mark.usefixtures("patches")
def test_a_module_that_was_thrown_out_and_comes_again_is_recorded(spans: Spans) -> None:
    for _ in range(3):
        assert recorded(spans) == ["read", "decrypt"]
        del sys.modules["a_reloaded"]
    assert recorded(spans) == ["read", "decrypt"]


@pytest.mark.usefixtures("patches")
def test_an_import_that_fails_the_second_time_and_succeeds_the_third_is_recorded(spans: Spans, tmp_path: Path) -> None:
    assert recorded(spans) == ["read", "decrypt"]
    del sys.modules["a_reloaded"]
    text = (tmp_path / "a_reloaded.py").read_text()
    (tmp_path / "a_reloaded.py").write_text("raise KeyError('not now')")
    importlib.invalidate_caches()
    with pytest.raises(KeyError, match="not now"):
        importlib.import_module("a_reloaded")
    (tmp_path / "a_reloaded.py").write_text(text)
    assert recorded(spans) == ["read", "decrypt"]


def test_a_reload_that_fails_fails_as_it_did(patches: Patches) -> None:
    with pytest.raises(TypeError, match=r"reload\(\) argument must be a module"):
        importlib.reload(3)  # type: ignore[arg-type] # what is tested
    assert patches.active


def test_after_uninstrument_nobody_asks_for_imports_any_more() -> None:
    code = """
import importlib, sys, loadspan
from importlib import reload
import json.decoder
before, mine = list(sys.meta_path), [importlib.reload]  # a bare name here would be bound anew
instrumentor = loadspan.LoadspanInstrumentor()
for _ in range(2):
    instrumentor.instrument()
    assert importlib.reload is not mine[0] and reload is importlib.reload
    assert len(sys.meta_path) <= len(before) + 2, sys.meta_path
    instrumentor.uninstrument()
    assert importlib.reload is mine[0] is reload
    assert not [finder for finder in sys.meta_path if "loadspan" in type(finder).__module__]
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
