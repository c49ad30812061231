"""docs/loaders.md: made of what each environment's last whole run saw, which is kept in `results/`. Never edited by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent.parent / "docs" / "loaders.md"
_HEAD = """# Loaders

What loadspan records of each way of loading, checked on the real library. Written by
`python tests/loaders/conform.py --environment all --write`; do not edit.

Each case is loaded twice, bare and under `loadspan run`, in processes of their own. *Bytes* are those of the stages against what the files
and tensors hold, *coverage* is the share of the load that stages explain, *identical* says that results and exceptions are the same, bit
for bit.
"""
_COLUMNS = ("library", "way of loading", "`loadspan.loader`", "stages seen", "bytes", "off", "coverage", "spans", "identical", "")


def line(row: dict[str, Any]) -> str:
    """An outcome in a line, for a terminal."""
    name = f"{row['library']} {row.get('version', '')}, {row['name']}"
    if "why" in row:
        return f"not run  {row['library']}, {row['name']}: {row['why']}"
    verdict = "; ".join(row["wrong"]) or "ok"
    return f"{name}: {', '.join(row['stages'])}  coverage {row['coverage']:.3f}  {row['spans']} spans  {row['seconds']:.2f} s  {verdict}"


def write(environment: str, python: str, rows: list[dict[str, Any]]) -> None:
    """Keep the rows of an environment and its version of Python, and write the page anew."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{environment}.json").write_text(json.dumps({"python": python, "rows": rows}, indent=1) + "\n")
    PAGE.write_text(page())


def page() -> str:
    """The page as what is kept makes it."""
    parts = [_HEAD]
    for file in sorted(RESULTS.glob("*.json")):
        parts += [f"## {file.stem}, Python {json.loads(file.read_text())['python']}\n", _table(kept(file.stem))]
    return "\n".join(parts)


def kept(environment: str) -> list[dict[str, Any]]:
    """The rows of an environment's last whole run."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{environment}.json").read_text())["rows"]
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "why" in row:
        return (row["library"], row["name"], *[""] * (len(_COLUMNS) - 3), f"not run: {row['why']}")
    off = "" if row["off"] is None else "0" if not row["off"] else f"{row['off']:.1e}"
    return (
        f"{row['library']} {row['version']}",
        row["name"],
        row["loader"],
        ", ".join(row["stages"]),
        f"{row['size'] / 1e6:.1f} MB" if row["size"] else "",
        off,
        f"{100 * row['coverage']:.1f} %",
        str(row["spans"]),
        "yes" if row["identical"] else "no",
        "; ".join(row["wrong"]),
    )
