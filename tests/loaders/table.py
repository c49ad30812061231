"""
What was seen of every case as a table, on the terminal and in docs/loaders.md.

The page is made of what each environment's last run saw, which is kept in `results/`. Never edited by hand.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent.parent / "docs" / "loaders.md"
Row = dict[str, Any]
_HEAD = """# Loaders

What loadspan records of each way of loading, checked on the real library. Written by
`python tests/loaders/conform.py --environment all --write`; do not edit.

Each case is loaded twice on the same files, bare and under `loadspan run`, in processes of their own.

- *loader* is the `loadspan.loader` of the load; *stages* are those that were seen.
- *bytes* is what the files and tensors hold, *off* the stage that is furthest from that. Both are empty where a case declares no bytes.
- *coverage* is 1 - `other` / the load's duration, 99 % at least where nothing is raised; *spans* is the most in one load.
- *identical*: what was returned or raised, warned of and printed is the same with loadspan, bit for bit.
"""
_COLUMNS = ("library", "way of loading", "loader", "stages", "bytes", "off", "coverage", "spans", "identical", "verdict")
_RIGHT = {"bytes", "off", "coverage", "spans"}


def verdict(row: Row) -> str:
    """What became of a case."""
    if "why" in row:
        return f"not run: {row['why']}"
    return "; ".join(row["wrong"]) or "ok"


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    if "why" in row:
        return (row["library"], row["name"], *[""] * (len(_COLUMNS) - 3), verdict(row))
    off = row["off"]
    return (
        f"{row['library']} {row['version']}".strip(),
        row["name"] + (f" (raises {row['raises']})" if row["raises"] else ""),
        row["loader"],
        ", ".join(row["stages"]),
        f"{row['size'] / 1e6:.1f} MB" if row["size"] else "",
        "" if off is None else f"{100 * off:.2f} %" if off else "0",
        "" if row["coverage"] is None else f"{100 * row['coverage']:.1f} %",
        str(row["spans"] or ""),
        "yes" if row["identical"] else "no",
        verdict(row),
    )


def terminal(rows: list[Row]) -> str:
    """The table in columns; what is wrong or did not run stands below it in full."""
    body = [(*cells(row)[:-1], "not run" if "why" in row else "WRONG" if row["wrong"] else "ok") for row in rows]
    widths = [max(len(line[column]) for line in (_COLUMNS, *body)) for column in range(len(_COLUMNS))]
    lines = [_aligned(line, widths) for line in (_COLUMNS, tuple("-" * width for width in widths), *body)]
    notes = [(row, verdict(row)) for row in rows if verdict(row) != "ok"]
    lines += ["", *(textwrap.fill(f"{_named(row)}: {what}", 140, subsequent_indent="    ") for row, what in notes)]
    return "\n".join([*lines, *([""] if notes else []), counted(rows)])


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    padded = zip(_COLUMNS, line, widths, strict=True)
    return "  ".join(cell.rjust(width) if column in _RIGHT else cell.ljust(width) for column, cell, width in padded).rstrip()


def counted(rows: list[Row]) -> str:
    """How many cases came to which end."""
    kept_out = sum(1 for row in rows if "why" in row)
    wrong = sum(1 for row in rows if row.get("wrong"))
    return f"{len(rows)} cases: {len(rows) - kept_out - wrong} ok, {wrong} wrong, {kept_out} not run"


def write(environment: str, versions: str, rows: list[Row], *, whole: bool) -> None:
    """Keep the rows of an environment and write the page anew. Rows that are not of a *whole* run replace those of the same cases."""
    if not whole and (RESULTS / f"{environment}.json").exists():
        new = {(row["library"], row["name"]): row for row in rows}
        old = [new.pop((row["library"], row["name"]), row) for row in kept(environment)]
        rows = [*old, *new.values()]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{environment}.json").write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    PAGE.write_text(page())


def kept(environment: str) -> list[Row]:
    """The rows of an environment's last run."""
    rows: list[Row] = json.loads((RESULTS / f"{environment}.json").read_text())["rows"]
    return rows


def page() -> str:
    """The page as what is kept makes it."""
    parts = [_HEAD]
    for file in sorted(RESULTS.glob("*.json"), key=lambda file: (file.stem != "core", file.stem)):
        rows = kept(file.stem)
        parts += [f"## {file.stem}\n", f"{json.loads(file.read_text())['versions']}. {counted(rows)}.\n", _markdown(rows)]
    return "\n".join(parts)


def _markdown(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "|".join("---:" if column in _RIGHT else "---" for column in _COLUMNS) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |" for row in rows if "why" not in row]
    absent = sorted({row["why"] for row in rows if "why" in row})
    lines += ["", "Not run here:", ""] if absent else []
    lines += [f"- {why}: {'; '.join(_named(row) for row in rows if row.get('why') == why)}." for why in absent]
    return "\n".join(lines) + "\n"


def _named(row: Row) -> str:
    return f"{row['library']}, {row['name']}"
