"""
Text for a terminal: made harmless, measured, cut and wrapped.

Model names, paths and messages come from strangers. `clean` is the one place that takes away their power over the terminal.
"""

from __future__ import annotations

import re
import unicodedata

Piece = tuple[str, str]
"""Text and its style: SGR parameters such as "1;31", or "" for none."""

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"

_HARMLESS_SPACE = " "
_FIXED_SPACE = "\xa0"
_IN_NUMBER = re.compile(r"(?<=\d) (?=(?:%|[um]?s|min|h|[kMGT]?B(?:/s)?|\d{3})(?!\w))")
"""The space in `1 234` and `6.00 s`."""


def clean(text: str) -> str:
    r"""
    *text* on one line, without control over the terminal.

    Control characters, line separators, direction overrides, zero-width and other formatting characters and lone surrogates become
    visible escapes such as `\x1b`.
    """
    if text.isprintable():  # false for all of the categories below, and for all spaces but the plain one
        return text
    return "".join(character if character.isprintable() else _visible(character) for character in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) == "Zs":
        return _HARMLESS_SPACE
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def cells(text: str) -> int:
    """Terminal columns of *text*: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int, mark: str = "…") -> str:
    """*text* in at most *width* columns; what is too long loses its middle, for both ends of a file name tell something."""
    if cells(text) <= width:
        return text
    room = max(width - len(mark), 0)
    if room == 0:
        return mark[:width]
    head, tail = _start(text, room - room // 2), _start(text[::-1], room // 2)[::-1]
    return f"{head}{mark}{tail}"


def _start(text: str, width: int) -> str:
    """The longest start of *text* in *width* columns; not more than eight marks stack on one character."""
    used = kept = 0
    for character in text:
        used += _cells(character)
        if used > width or kept >= 8 * width:
            break
        kept += 1
    return text[:kept]


def left(text: str, width: int) -> str:
    """*text* padded or cut to exactly *width* columns."""
    text = cut(text, width)
    return text + " " * (width - cells(text))


def right(text: str, width: int) -> str:
    """As `left`, with the padding in front."""
    text = cut(text, width)
    return " " * (width - cells(text)) + text


def wrap(pieces: list[Piece], width: int) -> list[list[Piece]]:
    """*pieces*, two spaces apart, on as few lines of *width* columns as they need."""
    lines: list[list[Piece]] = []
    used = 0
    for text, style in pieces:
        fitted = cut(text, width)
        needed = cells(fitted) + 2
        if lines and used + needed <= width:
            lines[-1] += [("  ", ""), (fitted, style)]
            used += needed
        else:
            lines.append([(fitted, style)])
            used = needed - 2
    return lines


def paragraph(text: str, width: int) -> list[str]:
    """*text*, which is `clean`, broken between words, on as few lines of *width* columns as it needs; no line begins with a unit."""
    lines = [""]
    for part in _IN_NUMBER.sub(_FIXED_SPACE, text).split(" "):
        word = cut(part.replace(_FIXED_SPACE, " "), width)
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if cells(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def join(pieces: list[Piece], *, color: bool) -> str:
    """One line of output; spaces at its end are of no use to anyone."""
    line = "".join(f"\x1b[{style}m{text}\x1b[0m" if color and style and text.strip() else text for text, style in pieces)
    return line.rstrip()
