"""
Where the files of a process's control groups are: of the memory controller, whichever version has it, and of version 2.

Both versions can be mounted at once. A container sees its groups below another root than the one that its path names, or only its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from loadspan.facts.mounts import MOUNTINFO, Mount, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadspan.facts.tree import Tree

_DEEPEST = 64  # groups within groups
_MARKER = "cgroup.procs"  # in every group
_NOT_ROOT = "cgroup.type"  # in every group of version 2 but the machine's own
_KINDS = ("cgroup", "cgroup2")
_CONTROLLER = "memory"


class Groups(NamedTuple):
    """Folders below the tree's root; empty and None where there are none."""

    version: int | None
    """That has the memory controller."""
    memory: tuple[str, ...]
    """The process's group of the memory controller and those around it, from the inside out."""
    unified: str | None
    """The process's group of version 2; None where that is the whole machine."""


def paths(text: bytes) -> dict[str, str]:
    """Group of each controller, out of the text of a `cgroup` file; version 2 has the empty name."""
    found = {}
    for line in text.split(b"\n"):
        number, _, rest = line.partition(b":")
        controllers, separator, path = rest.partition(b":")
        if number.isdigit() and separator and path.startswith(b"/"):
            for controller in controllers.split(b","):
                found[controller.decode("utf-8", "replace")] = path.removesuffix(b" (deleted)").decode("utf-8", "surrogateescape")
    return found


def of_process(tree: Tree, text: bytes) -> Groups:
    """The groups that *text*, a process's `cgroup` file, names."""
    named = paths(text)
    mounted = list(_mounted(tree.bytes(MOUNTINFO)))
    with_memory = [mount for mount in mounted if mount.filesystem == "cgroup" and (_CONTROLLER, "") in mount.options]
    old = _folders(tree, with_memory, named.get(_CONTROLLER))
    new = _folders(tree, [mount for mount in mounted if mount.filesystem == "cgroup2"], named.get(""))
    unified = new[0] if new and tree.exists(f"{new[0]}/{_NOT_ROOT}") else None
    if old:
        return Groups(1, old, unified)
    return Groups(2 if new else None, new, unified)


def _mounted(text: bytes) -> Iterator[Mount]:
    for line in text.split(b"\n"):
        if b" - cgroup" in line and (mount := parse(line)) is not None and mount.filesystem in _KINDS:
            yield mount


def _folders(tree: Tree, mounted: list[Mount], path: str | None) -> tuple[str, ...]:
    """The group at *path* and those around it. A group that is not there is taken to be what the mount shows, as in containers."""
    if path is None:
        return ()
    tops = [(mount.point.strip("/"), _below(mount.root, path)) for mount in mounted]
    for top, names in tops:
        if tree.exists("/".join((top, *names, _MARKER))):
            return tuple("/".join((top, *names[:depth])) for depth in range(len(names), -1, -1))
    return next(((top,) for top, _ in tops if tree.exists(f"{top}/{_MARKER}")), ())


def _below(root: str, path: str) -> list[str]:
    """Names that lead from a mount of group *root* to group *path*."""
    root = root.rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    names = [name for name in path.split("/") if name]
    # A process outside of the container's namespace has a path that leads up.
    return names if len(names) <= _DEEPEST and ".." not in names else []
