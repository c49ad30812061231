"""The committed boards as tests read them: their panels and queries, and variables replaced as Grafana replaces them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2] / "dashboards"
BOARDS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "boards").glob("*.json"))}
VARIABLE = re.compile(r"\$\{([a-zA-Z_]\w*)(?::(\w+))?\}|\$([a-zA-Z_]\w*)")
TIMES = {"__range": "600s", "__interval": "1m", "__interval_ms": "60000", "window": "1h"}


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    board: str
    panel: Mapping[str, Any]
    target: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.board.removeprefix('loadspan-')}: {self.panel['title']} {self.target['refId']}"

    @property
    def kind(self) -> str:
        """The kind of data source it asks."""
        return str(self.target["datasource"]["type"])


def panels(board: str) -> list[dict[str, Any]]:
    """All panels of a board but its rows, those of closed rows too."""
    found: list[dict[str, Any]] = []
    for item in BOARDS[board]["panels"]:
        found += item.get("panels") or [] if item["type"] == "row" else [item]
    return found


QUERIES = [Query(board, panel, target) for board in BOARDS for panel in panels(board) for target in panel["targets"]]


def asked(kind: str) -> list[Query]:
    """The queries of one kind of data source."""
    return [query for query in QUERIES if query.kind == kind]


def variables(text: str) -> set[str]:
    """Names of the variables in a text."""
    return {braced or bare for braced, _, bare in VARIABLE.findall(text)}


def filled(text: str, values: Mapping[str, str]) -> str:
    """*text* with its variables replaced; an unknown one is an error."""
    return VARIABLE.sub(lambda found: values[found[1] or found[3]], text)
