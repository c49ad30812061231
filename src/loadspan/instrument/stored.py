"""The files of a stage: their names and sizes, what they are stored on, how much of them came from there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.facts import files as files_seen
from loadspan.instrument import attributes, caching

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.facts.storage import StorageFacts


def files(paths: Iterable[str], *, full_paths: bool) -> dict[str, Any]:
    """Path, size, count and filesystem of the files of a stage."""
    known = list(paths)
    if not known:
        return {}
    found: dict[str, Any] = {}
    seen = [files_seen.seen(path) for path in known]
    sizes = [one.size for one in seen if one.size is not None]
    if len(sizes) == len(known):
        found[names.FILE_SIZE] = sum(sizes)
    if len(known) > 1:
        found[names.FILE_COUNT] = len(known)
    # Of several files the first one's name: an attribute is a fact about the stage, the count says that there are more.
    found[names.FILE_PATH] = attributes.clip(_path(known[0], seen[0].real) if full_paths else os.path.basename(known[0]))  # noqa: PTH119 - plain text
    if all(path.startswith(caching.FOLDER) for path in known):
        found[names.CACHE_HIT] = True
    mounts = {one.storage for one in seen}
    mount = mounts.pop() if len(mounts) == 1 else None
    if mount is None:
        return found
    of_storage = _of_storage(mount)
    return found | (of_storage if full_paths else _without_paths(of_storage))


def _path(path: str, real: str) -> str:
    """Where a file really is; of a link of another name, which its content may have made up (a hub's cache), where that is."""
    return real if os.path.basename(real) == os.path.basename(path) else os.path.abspath(path)  # noqa: PTH100, PTH119 - no Path object here


def _without_paths(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out what names folders: a mount point may be the file itself, as a subPath of Kubernetes is."""
    kept = {name: value for name, value in found.items() if name not in (names.FILESYSTEM_MOUNTPOINT, names.STORAGE_ROOT)}
    if str(kept.get(names.STORAGE_SOURCE, "")).startswith("/") and not str(kept[names.STORAGE_SOURCE]).startswith(("/dev/", "//")):
        del kept[names.STORAGE_SOURCE]
    options = tuple(option for option in kept.pop(names.STORAGE_OPTIONS, ()) if "=/" not in option and not option.startswith("aname="))
    return kept | ({names.STORAGE_OPTIONS: options} if options else {})


def _of_storage(mount: StorageFacts) -> dict[str, Any]:
    """What a file is on."""
    models = {disk.model for disk in mount.disks}
    device = mount.device if (mount.device or "").startswith("/dev/") else None
    found = {
        names.FILESYSTEM_TYPE: mount.filesystem,
        names.FILESYSTEM_MOUNTPOINT: mount.mountpoint,
        names.SYSTEM_DEVICE: device,
        names.SERVER_ADDRESS: mount.server,
        names.STORAGE_KIND: mount.kind,
        names.STORAGE_STACK: mount.stack if len(mount.stack) > 1 else None,
        names.STORAGE_MODEL: models.pop() if len(models) == 1 else None,
        names.STORAGE_ENCRYPTED: True if mount.encrypted else None,
        names.STORAGE_READ_AHEAD: mount.read_ahead,
        names.STORAGE_SOURCE: mount.source if device is None else None,
        names.STORAGE_SUBTYPE: mount.subtype,
        names.STORAGE_ROOT: mount.root if mount.root != "/" else None,
        names.STORAGE_OPTIONS: tuple(f"{name}={value}" for name, value in mount.options) or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def cold(found: dict[str, Any], paths: Iterable[str], size: int | None, *, deferred: bool) -> dict[str, Any]:
    """How much of a read came from the device, where the kernel counts that for this filesystem."""
    read = found.get(names.IO_STORAGE_READ)
    # Bytes that were in memory already came from no device, those of a direct read all, whatever was in the page cache.
    if deferred or not size or read is None or found.get(names.READ_METHOD) in ("memory", "direct"):
        return {}
    seen = [files_seen.seen(path) for path in paths]
    if seen and all(one.whole and one.storage is not None and one.storage.counted for one in seen):
        return {names.CACHE_COLD: min(1.0, read / size)}
    return {}
