"""
Measured ceilings, kept from one run to the next: `$XDG_CACHE_HOME/loadspan/ceilings.json`, by default in `~/.cache`.

A home directory may be shared by many machines, so an entry belongs to a host, and on it to a mount, a device or the processor. The file
is anybody's to spoil: whatever in it is not an entry as `save` writes them is no entry.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from loadspan.errors import UserError
from loadspan.facts import keeping
from loadspan.facts.rates import CACHE, MEMORY, MIXED, STORAGE, UNKNOWN, Rate
from loadspan.facts.tree import HERE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VERSION = 1
_LONGEST = 4096  # characters of one text, a path at most
_ENTRIES = 2000
_CONDITIONS = 64
_PIECE = 4 << 20  # bytes of the file that are looked at
_LARGEST = 1 << 60  # bytes of one measurement
_FASTEST = 1e14  # bytes per second
_DEEPEST = 1 << 16
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted filesystem; `device` is its source, or the block device under it."""

    filesystem: str
    mountpoint: str
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator: `cuda`, its name, its PCI address."""

    type: str
    name: str | None = None
    pci_address: str | None = None


@dataclass(frozen=True, slots=True)
class Processor:
    """The machine's own processor: what one core of it decrypts."""


Place = Mount | Device | Processor
_PLACES: dict[str, type[Mount | Device | Processor]] = {"mount": Mount, "device": Device, "processor": Processor}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A measured rate, where and when."""

    host: str
    place: Place
    rate: Rate
    measured: str
    """UTC, as `2026-01-31T12:00:00Z`."""
    conditions: tuple[tuple[str, str], ...] = ()

    @property
    def _identity(self) -> tuple[str, Place, str, int, bool]:
        # A file that was in the page cache the second time says nothing new about its storage.
        return self.host, self.place, self.rate.probe, self.rate.depth, self.rate.source in (CACHE, MIXED)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """All that were kept, of every host."""

    entries: tuple[Ceiling, ...] = ()

    def for_mount(self, mount: Mount, host: str | None = None) -> tuple[Ceiling, ...]:
        """Ceilings of *mount* on *host* (default: this one)."""
        return self._of(mount, host)

    def for_device(self, device: Device, host: str | None = None) -> tuple[Ceiling, ...]:
        """Ceilings of *device* on *host* (default: this one)."""
        return self._of(device, host)

    def for_processor(self, host: str | None = None) -> tuple[Ceiling, ...]:
        """Ceilings of one core of *host* (default: this one)."""
        return self._of(Processor(), host)

    def _of(self, place: Place, host: str | None) -> tuple[Ceiling, ...]:
        host = host or this_host()
        return tuple(entry for entry in self.entries if entry.host == host and entry.place == place)


def best(ceilings: Iterable[Ceiling], probe: str = "") -> Ceiling | None:
    """The fastest of *ceilings* whose probe's name begins with *probe*; what turned out to be the page cache is no ceiling of a storage."""
    found = [entry for entry in ceilings if entry.rate.probe.startswith(probe) and entry.rate.source not in (CACHE, MIXED)]
    return max(found, key=lambda entry: entry.rate.rate, default=None)


@lru_cache(maxsize=1)
def this_host() -> str:
    """A name for this machine that stays the same from one boot to the next and tells nobody which machine it is."""
    identity = _machine_id() or os.uname().nodename
    model = next((line for line in HERE.bytes("proc/cpuinfo").split(b"\n") if line.startswith((b"model name", b"CPU part"))), b"")
    return blake2b(identity.encode() + b"\0" + model, digest_size=8, person=b"loadspan").hexdigest()


def _machine_id() -> str | None:
    with suppress(OSError, ValueError):
        text = Path("/etc/machine-id").read_text("ascii").strip()
        return text if text.isalnum() else None
    return None


def location() -> Path | None:
    """Where they are kept; None where this user has no home directory."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if folder.startswith("/"):
        return Path(folder, "loadspan", "ceilings.json")
    with suppress(RuntimeError):
        return Path.home() / ".cache" / "loadspan" / "ceilings.json"
    return None


def read(path: Path | None = None) -> Ceilings:
    """What was kept at *path* (default: `location()`); nothing where there is nothing, or nothing that can be read."""
    found = path or location()
    return Ceilings(tuple(_entries(_document(found)))) if found else Ceilings()


def save(rates: Iterable[Rate], place: Place, conditions: Mapping[str, str] | None = None, path: Path | None = None) -> Path:
    """
    Keep *rates* of *place*, measured now on this host, beside what is kept already.

    Of two of one probe and depth the newer stays; what came from the page cache is apart.

    Raises:
        UserError: they cannot be kept.
    """
    found = path or location()
    if found is None:
        raise UserError("ceilings: this user has no home directory to keep them in. Set XDG_CACHE_HOME to a folder.")
    now, host = keeping.now(), this_host()
    known = tuple(sorted({**keeping.conditions(), **(conditions or {})}.items()))
    new = [Ceiling(host, place, rate, now, known) for rate in rates]
    try:
        with keeping.alone(found):
            document = _document(found)
            if (version := document.get("version")) != VERSION and isinstance(version, int) and version > VERSION:
                raise UserError(f"{found}: written by a newer loadspan. Update loadspan, or delete the file.")
            merged = {entry._identity: entry for entry in (*_entries(document), *new)}  # noqa: SLF001 - of this module
            last = sorted(merged.values(), key=lambda entry: entry.measured)[-_ENTRIES:]
            keeping.replace(found, json.dumps({"version": VERSION, "entries": [_as_json(entry) for entry in last]}, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{found}: cannot be written ({error.strerror}). Set XDG_CACHE_HOME to a folder that can.") from error
    return found


def _as_json(entry: Ceiling) -> dict[str, Any]:
    kind = next(name for name, place in _PLACES.items() if isinstance(entry.place, place))
    return {
        "host": entry.host,
        kind: asdict(entry.place),
        **asdict(entry.rate),
        "rate": entry.rate.rate,  # for people: it is not read back
        "measured": entry.measured,
        "conditions": dict(entry.conditions),
    }


def _document(path: Path) -> dict[str, Any]:
    """The JSON object in *path*; empty where there is none."""
    try:
        # Not blocking, and regular files only: somebody may have put a named pipe there.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return {}
    try:
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            text = file.read(_PIECE + 1) if regular else b""
        found = json.loads(text) if len(text) <= _PIECE else None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _entries(document: Mapping[str, Any]) -> list[Ceiling]:
    if document.get("version") != VERSION or not isinstance(document.get("entries"), list):
        return []
    return [entry for item in document["entries"][:_ENTRIES] if isinstance(item, dict) and (entry := _entry(item)) is not None]


def _entry(item: Mapping[str, Any]) -> Ceiling | None:
    """The entry that *item* is, None where anything in it is not what `save` writes."""
    place, rate = _place(item), _rate(item)
    host, measured, conditions = item.get("host"), item.get("measured"), item.get("conditions", {})
    if place is None or rate is None or not _text(host) or not _text(measured) or not keeping.is_date(measured):
        return None
    if (
        not isinstance(conditions, dict)
        or len(conditions) > _CONDITIONS
        or not all(_text(key) and _text(value) for key, value in conditions.items())
    ):
        return None
    return Ceiling(host, place, rate, measured, tuple(sorted(conditions.items())))


def _place(item: Mapping[str, Any]) -> Place | None:
    kinds = [name for name in _PLACES if name in item]
    if len(kinds) != 1 or not isinstance(fields := item[kinds[0]], dict):
        return None
    if not all(isinstance(value, str | None) and len(value or "") <= _LONGEST for value in fields.values()):
        return None
    needed = {"mount": ("filesystem", "mountpoint"), "device": ("type",), "processor": ()}[kinds[0]]
    try:
        return _PLACES[kinds[0]](**fields) if all(isinstance(fields.get(name), str) for name in needed) else None
    except TypeError:  # a field that we do not know
        return None


def _rate(item: Mapping[str, Any]) -> Rate | None:
    size, seconds, depth, block = (item.get(name) for name in ("size", "seconds", "depth", "block"))
    verified, source, note, probe = (item.get(name) for name in ("verified", "source", "note", "probe"))
    if not _whole(size, _LARGEST) or not _whole(depth, _DEEPEST) or not (block is None or _whole(block, _LARGEST)):
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _HOUR:
        return None
    if not _text(probe) or not (note is None or _text(note)) or source not in (STORAGE, CACHE, MIXED, MEMORY, UNKNOWN):
        return None
    if not (verified is None or isinstance(verified, bool)) or size / seconds > _FASTEST:
        return None
    return Rate(probe, size, float(seconds), depth, block, verified, source, note)


def _whole(value: Any, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def _text(value: Any) -> TypeGuard[str]:
    # Printable: it goes to terminals, and a text of ours never has anything else.
    return isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable()
