r"""
Recorded machines: kernel files of a machine in one text file, unpacked below a folder.

A line is `path = content`, a file with that content and a newline; `path -> target`, a symbolic link; or `path/`, an empty folder.
Lines that begin with `#`, and empty ones, say nothing. In a content `\n` is a newline, `\xNN` a byte and `\\` a backslash; any other
backslash is itself, as in the `\040` of a mountinfo. What no line names is absent.
"""

from __future__ import annotations

import re
from pathlib import Path

from loadspan.facts.tree import Tree

FOLDER = Path(__file__).parent / "machines"
_ESCAPE = re.compile(rb"\\(n|\\|x[0-9a-fA-F]{2})")


def names() -> list[str]:
    """Every recorded machine."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def _byte(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return {b"n": b"\n", b"\\": b"\\"}.get(code) or bytes([int(code[1:], 16)])


def unpack_text(text: str, folder: Path) -> Tree:
    """The machine written in *text*, below *folder*, which may hold parts of it already. A line that says nothing known is an error."""
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        found = re.match(r"(\S.*?)\s+(=|->)(?:\s+(.*))?$", line)
        name, sign, rest = found.groups(default="") if found else (line, "/", "")
        if name.startswith("/") or ".." in name.split("/") or (sign == "/" and not name.endswith("/")) or (sign == "->" and not rest):
            raise ValueError(f"line {number}: {raw!r}")
        place = folder / name
        if sign == "/":
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if sign == "->":
            place.symlink_to(rest)
        else:
            place.write_bytes(_ESCAPE.sub(_byte, rest.encode()) + b"\n")
    return Tree(str(folder))


def unpack(name: str, folder: Path) -> Tree:
    """The machine `machines/NAME.txt`, below *folder*."""
    return unpack_text((FOLDER / f"{name}.txt").read_text(encoding="utf-8"), folder)
