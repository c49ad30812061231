"""The real programs as fixtures, started once for a session; where one is missing, its tests are skipped with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.programs import Jaeger
from backends.stores import OpenSearch

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A Jaeger that holds its traces in memory; nobody stops it before the end."""
    with Jaeger(tmp_path_factory.mktemp("jaeger")) as running:
        yield running


@pytest.fixture(scope="module")
def opensearch_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSearch]:
    """An OpenSearch of one node."""
    with OpenSearch(tmp_path_factory.mktemp("opensearch")) as running:
        yield running
