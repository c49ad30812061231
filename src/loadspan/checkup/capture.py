"""
Capturing a machine: the kernel files that were read of it, in an archive, to be read elsewhere as if they were that machine's.

An archive holds `sys/...` and `proc/...` as they were, scrubbed, and `loadspan.json` with what no kernel file says.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadspan.errors import UserError
from loadspan.facts.tree import Tree, resolved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadspan.checkup.scrub import Scrub

MANIFEST = "loadspan.json"
VERSION = 1

_SELF = ("proc/self", "proc/thread-self")  # links to a number that is another one in every process


class Recorder(Tree):
    """This machine's kernel files (or those below *root*), remembered as they are read."""

    def __init__(self, root: str = "/") -> None:
        super().__init__(root)
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.folders: set[str] = set()
        self._read: set[str] = set()

    def bytes(self, path: str) -> bytes:
        """As of every tree; the content is kept, and stays what it was when it was read first, as in the archive."""
        found = self._place(path)
        if found in self._read:
            return self.files[found]
        content = super().bytes(path)
        if found is not None and (content or not self._is_folder(found)):
            self.files[found] = content
            self._read.add(found)
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

        def target(place: str) -> str | None:
            leads = self._link(place)
            if leads is not None:
                self.links[place] = leads
            return leads

        found = resolved(path, target)
        return found if found is not None and os.path.lexists(self.root + found) else None


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
