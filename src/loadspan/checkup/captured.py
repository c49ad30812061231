"""
A captured machine, out of the archive that `capture` wrote of it or out of a folder, which may have come from anybody.

It is read into memory and never unpacked, so nothing in it can write anywhere; what is too large or leads outside is refused.
"""

from __future__ import annotations

import gzip
import io
import json
import posixpath
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadspan.checkup.capture import MANIFEST, VERSION
from loadspan.errors import UserError
from loadspan.facts.tree import Tree, resolved

if TYPE_CHECKING:
    from collections.abc import Mapping

_LARGEST_FILE, _LARGEST, _MOST = 16 << 20, 64 << 20, 50_000
_LONGEST_NAME, _DEEPEST = 4096, 64


@dataclass(frozen=True, slots=True)
class _Entry:
    content: bytes | None = None
    link: str | None = None
    names: set[str] = field(default_factory=set)


class Captured(Tree):
    """The machine in an archive."""

    def __init__(self, path: str, entries: Mapping[str, _Entry]) -> None:
        super().__init__(path)
        self.here = False
        self._entries = entries

    def bytes(self, path: str) -> bytes:
        """As of every tree."""
        found = self.real(path)
        return (self._entries[found].content or b"") if found is not None else b""

    def names(self, path: str) -> list[str]:
        """As of every tree."""
        found = self.real(path)
        return sorted(self._entries[found].names) if found is not None else []

    def real(self, path: str) -> str | None:
        """As of every tree."""
        try:
            return resolved(path, lambda place: self._entries[place].link)
        except KeyError:
            return None


def read(path: str) -> Captured:
    """
    The machine in the archive at *path*.

    Raises:
        UserError: it cannot be read, or is no capture.
    """
    entries: dict[str, _Entry] = {"": _Entry()}
    try:
        with (
            open(path, "rb") as raw,  # noqa: PTH123 - as above
            gzip.GzipFile(fileobj=raw) as packed,
            tarfile.open(fileobj=_Bounded(packed, path), mode="r|", errors="surrogateescape") as archive,
        ):
            for count, member in enumerate(archive):
                if count >= _MOST:
                    raise _refused(path, f"more than {_MOST} entries")
                _take(entries, member, archive, path)
    # What tarfile and zlib raise at hostile bytes is not only what they document.
    except (tarfile.TarError, zlib.error, EOFError, ValueError, LookupError, ArithmeticError, RecursionError, TypeError) as error:
        raise _refused(path, "not a complete .tar.gz") from error
    except gzip.BadGzipFile as error:
        raise _refused(path, "not a .tar.gz") from error
    if not any(entries.get(name, _Entry()).names for name in ("sys", "proc")):
        raise _refused(path, "neither sys nor proc in it")
    return Captured(path, entries)


def _refused(path: str, why: str) -> UserError:
    return UserError(f"{path}: {why}. Give a FILE.tar.gz written by loadspan check --save, or a folder that holds sys and proc.")


class _Bounded(io.RawIOBase):
    """A stream that ends with an error when more comes out of it than a capture can hold."""

    def __init__(self, stream: Any, path: str) -> None:
        self._stream = stream
        self._left = _LARGEST
        self._path = path

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left + 1 if size < 0 else min(size, self._left + 1)
        content: bytes = self._stream.read(wanted)
        self._left -= len(content)
        if self._left < 0:
            raise _refused(self._path, f"more than {_LARGEST >> 20} MiB in it")
        return content


def _take(entries: dict[str, _Entry], member: tarfile.TarInfo, archive: tarfile.TarFile, path: str) -> None:
    name = member.name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    shown = ascii(name[:80])[1:-1]
    if name.startswith("/") or ".." in parts or "\0" in name or len(name) > _LONGEST_NAME or len(parts) > _DEEPEST:
        raise _refused(path, f"entry {shown} leads outside or is too deep")
    if not parts:
        return
    if member.issym():
        entry = _Entry(link=_inside(parts, member.linkname, path, shown))
    elif member.isdir():
        entry = _Entry()
    elif member.isreg() and not member.issparse():
        if not 0 <= member.size <= _LARGEST_FILE:
            raise _refused(path, f"entry {shown} is larger than {_LARGEST_FILE >> 20} MiB")
        stream = archive.extractfile(member)
        entry = _Entry(content=stream.read() if stream is not None else b"")
    else:
        raise _refused(path, f"entry {shown} is neither file, folder nor symbolic link")
    _place(entries, parts, entry, path, shown)


def _inside(parts: list[str], target: str, path: str, shown: str) -> str:
    """Where the link at *parts* leads; refused where that is outside, as no link of /sys is."""
    end = posixpath.normpath(posixpath.join(*parts[:-1], target))
    if target.startswith("/") or end.split("/")[0] == ".." or "\0" in target or not 0 < len(target) <= _LONGEST_NAME:
        raise _refused(path, f"link {shown} leads outside")
    return target


def _place(entries: dict[str, _Entry], parts: list[str], entry: _Entry, path: str, shown: str) -> None:
    """Put *entry* where it belongs, with the folders above it; two that contradict each other are refused."""
    for depth in range(len(parts)):
        above = entries.setdefault("/".join(parts[:depth]), _Entry())
        if above.content is not None or above.link is not None:
            raise _refused(path, f"entry {shown} is below a file or link")
        above.names.add(parts[depth])
    name = "/".join(parts)
    before = entries.get(name)
    if before is None:
        entries[name] = entry
    elif before.content is not None or before.link is not None or entry.content is not None or entry.link is not None:
        raise _refused(path, f"entry {shown} is there twice")


def manifest(tree: Tree) -> dict[str, Any]:
    """What no kernel file says of the machine of *tree*; empty where there is nothing about it."""
    try:
        found = json.loads(tree.bytes(MANIFEST) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("version") == VERSION else {}
