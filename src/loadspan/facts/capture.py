"""
A captured machine: the kernel files that were read of one, in an archive, to be read elsewhere as if they were that machine's.

An archive holds `sys/...` and `proc/...` as they were, and `loadspan.json` with what no kernel file says. It is read into memory and
never unpacked, so nothing in it can write anywhere; what is too large or leads outside is refused.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import posixpath
import stat
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadspan.errors import UserError
from loadspan.facts.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadspan.facts.scrub import Scrub

MANIFEST = "loadspan.json"
VERSION = 1

_LARGEST_FILE, _LARGEST, _MOST = 16 << 20, 64 << 20, 50_000
_LONGEST_NAME, _DEEPEST = 4096, 64
_LINKS = 40
_SELF = ("proc/self", "proc/thread-self")  # links to a number that is another one in every process


class Recorder(Tree):
    """This machine's kernel files (or those below *root*), remembered as they are read."""

    def __init__(self, root: str = "/") -> None:
        super().__init__(root)
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.folders: set[str] = set()

    def bytes(self, path: str) -> bytes:
        """As of every tree; the content is kept."""
        found = self._place(path)
        content = super().bytes(path)
        if found is not None and (content or not self._is_folder(found)):
            self.files[found] = content
        return content

    def names(self, path: str) -> list[str]:
        """As of every tree; the names are kept, with where those that are links lead."""
        found = self._place(path)
        entries = super().names(path)
        if found is not None and self._is_folder(found):
            self.folders.add(found)
            for entry in entries:
                if not (found == "proc" and entry.isdecimal()):  # other processes are nobody's business
                    self._note(f"{found}/{entry}" if found else entry)
        return entries

    def exists(self, path: str) -> bool:
        """As of every tree."""
        return self.real(path) is not None

    def real(self, path: str) -> str | None:
        """As of every tree; the links on the way are kept."""
        if (found := self._place(path)) is not None:
            self._note(found)
        return super().real(path)

    def _is_folder(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(os.stat(self.root + path).st_mode)  # noqa: PTH116 - the tree speaks in text
        except (OSError, ValueError):
            return False

    def _note(self, path: str) -> None:
        """Remember that there is something at *path*, itself perhaps a link."""
        target = self._link(path)
        if target is not None:
            self.links[path] = target
        elif self._is_folder(path):
            self.folders.add(path)
        elif path not in self.folders:
            self.files.setdefault(path, b"")

    def _link(self, path: str) -> str | None:
        if path in _SELF:
            return None
        try:
            return os.readlink(self.root + path)  # noqa: PTH115 - as above
        except (OSError, ValueError):
            return None

    def _place(self, path: str) -> str | None:
        """*path* with its links resolved and remembered, except that this process stays `self`; None where it does not exist."""
        todo, done, links = path.split("/")[::-1], list[str](), 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            place = "/".join((*done, part))
            target = self._link(place)
            if target is None:
                done.append(part)
                continue
            self.links[place] = target
            links += 1
            if links > _LINKS:
                return None
            if target.startswith("/"):
                done.clear()
            todo.extend(target.split("/")[::-1])
        found = "/".join(done)
        return found if os.path.lexists(self.root + found) else None


@dataclass(frozen=True, slots=True)
class Written:
    """An archive that was written."""

    size: int
    """Bytes of the archive."""
    files: tuple[str, ...]
    """What it holds, links and folders that were only listed left out."""


def write(path: str, seen: Recorder, told: Mapping[str, Any], scrub: Scrub) -> Written:
    """
    Write what *seen* saw, scrubbed, and *told* as its manifest to a new archive at *path*.

    Raises:
        UserError: there is something at *path*, or it cannot be written.
    """
    files = {scrub.name(name): scrub.content(name, content) for name, content in seen.files.items()}
    # Numbers and dates of the archive are the same whenever and by whomever it is written.
    files[MANIFEST] = json.dumps({"version": VERSION, **told}, indent=2).encode()
    links = {scrub.name(name): scrub.name(target) for name, target in seen.links.items()}
    folders = {scrub.name(name) for name in seen.folders if name} - files.keys() - links.keys()
    try:
        with (
            open(path, "xb") as out,  # noqa: PTH123 - the tree speaks in text; "x" is never over another file
            gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in sorted(files.keys() | links.keys() | folders):
                _add(archive, name, files.get(name), links.get(name))
    except FileExistsError:
        raise UserError(f"{path}: exists already. Name a new file with --save, or remove this one.") from None
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}. Name a file you can write with --save.") from None
    return Written(os.path.getsize(path), tuple(sorted(name for name, content in files.items() if content)))  # noqa: PTH202 - as above


def _add(archive: tarfile.TarFile, name: str, content: bytes | None, target: str | None) -> None:
    member = tarfile.TarInfo(name)
    if content is not None:
        member.size, member.mode = len(content), 0o644
        archive.addfile(member, io.BytesIO(content))
        return
    member.type, member.mode = (tarfile.SYMTYPE, 0o777) if target is not None else (tarfile.DIRTYPE, 0o755)
    member.linkname = target or ""
    archive.addfile(member)


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
        todo, done, links = path.split("/")[::-1], list[str](), 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            entry = self._entries.get("/".join((*done, part)))
            if entry is None:
                return None
            if entry.link is None:
                done.append(part)
                continue
            links += 1
            if links > _LINKS:
                return None
            if entry.link.startswith("/"):
                done.clear()
            todo.extend(entry.link.split("/")[::-1])
        return "/".join(done)


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
