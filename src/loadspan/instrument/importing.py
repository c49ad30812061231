"""
Imports that begin: of a library whose rows are wanted then, and of one that is imported once more.

Reloaded, or taken out of `sys.modules` and imported again, a library has new functions, which nobody has wrapped. A post-import hook is
called once, for the first import.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from loadspan.guard import safely
from loadspan.instrument.patching import Kind, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadspan.instrument.patching import Patches


class Beginnings:
    """A finder that is asked for every module about to be imported; it finds none, and tells the patches."""

    def __init__(self, patches: Patches) -> None:
        self._patches = patches

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:  # noqa: ARG002 - the interface
        """Nothing: others find it."""
        if target is None and self._patches.active:
            safely(self._patches.begun, fullname)

    def begin(self) -> None:
        """Be asked, before those that call hooks."""
        sys.meta_path.insert(0, self)

    def end(self) -> None:
        """Be asked no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)


def row(patches: Patches) -> Target:
    """Reloads: what a module has rows for is patched in the functions that it has now."""

    def replace(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def reload(*args: Any, **kwargs: Any) -> Any:
            module = original(*args, **kwargs)
            if patches.active:
                safely(patches.imported, module)
            return module

        return reload

    return Target(
        module="importlib", attribute="reload", kind=Kind.REPLACE, replace=replace, why="a reloaded module has new functions, without hooks"
    )
