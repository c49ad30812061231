"""What a load does between its stages: constructs and imports (`initialize`), or something that nobody knows of (`other`)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from work import rest

import loadspan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from recorded import Spans

_LONG = 0.7  # seconds: several ticks of the sampler


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that takes its time to import, and then has what its importer gave it run."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "slow_to_import.py").write_text(f"import builtins, work\nwork.rest({_LONG})\ngetattr(builtins, 'afterwards', int)()\n")
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("slow_to_import", None)


def _load_around(what: str) -> None:
    with loadspan.load("model"):
        with loadspan.stage("read"):
            rest()
        if what == "import":
            import slow_to_import  # type: ignore[import-not-found] # noqa: F401 - of the fixture
        else:
            rest(_LONG)
        with loadspan.stage("deserialize"):
            rest()


@pytest.mark.usefixtures("slow")
def test_an_import_between_two_stages_is_initialize(spans: Spans) -> None:
    _load_around("import")
    load = spans.load()
    assert [child["name"] for child in load["children"]] == ["read", "initialize", "deserialize"]
    assert load["attributes"]["loadspan.partition.initialize"] == pytest.approx(_LONG, abs=0.2)
    assert load["attributes"]["loadspan.coverage"] > 0.95


@pytest.mark.usefixtures("slow")
def test_what_a_load_does_in_a_program_that_is_being_imported_itself_is_other(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.afterwards", lambda: _load_around("rest"), raising=False)
    import slow_to_import  # noqa: F401 - as above

    load = spans.load()
    assert [child["name"] for child in load["children"]] == ["read", "deserialize"]
    assert load["attributes"]["loadspan.partition.other"] == pytest.approx(_LONG, abs=0.2)


def test_an_import_is_found_in_a_program_that_is_being_imported_itself(spans: Spans, slow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (slow / "slow_to_import.py").read_text()
    (slow / "a_program.py").write_text(text.replace("afterwards", "a_load"))
    monkeypatch.setattr("builtins.a_load", lambda: _load_around("import"), raising=False)
    __import__("a_program")
    sys.modules.pop("a_program")
    assert spans.load()["attributes"]["loadspan.partition.initialize"] == pytest.approx(_LONG, abs=0.2)
