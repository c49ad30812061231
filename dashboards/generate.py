# ruff: noqa: INP001, PLC0415, T201 - a script beside the boards: it finds its package when it runs, and says what it wrote
"""
Write `boards/` and `rules/`: `python dashboards/generate.py [DIR]`. Needs Python 3.11 and grafana-foundation-sdk==0.0.21.

The same code writes the same bytes; commit what it writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    """Write every board and the rules into *folder*."""
    sys.path.insert(0, str(HERE))
    from src import compare, fleet, frame, load, machines, rules

    for made in (load.build(), fleet.build(), compare.build(), machines.build()):
        write(folder / "boards" / f"{made.build().uid}.json", frame.text(made))
    write(folder / "rules" / "loadspan.yaml", rules.text())


def write(path: Path, text: str) -> None:
    """Write one file and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE)
