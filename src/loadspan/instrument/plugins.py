"""
Rows that other distributions bring by entry points of the group `loadspan_targets`.

An entry point is loaded once the module that it is named after has been imported, by whoever wanted that. What fails in it is told in
one warning that names it.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import wrapt

from loadspan import names, targets
from loadspan.guard import attempt, guard
from loadspan.instrument import patching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from importlib.metadata import EntryPoint

    from loadspan.instrument.patching import Patches

GROUP = "loadspan_targets"

_LOGGER = logging.getLogger("loadspan")
_KINDS = {
    targets.Kind.ROOT: patching.Kind.ROOT,
    targets.Kind.COARSE: patching.Kind.COARSE,
    targets.Kind.FINE: patching.Kind.FINE,
}


class Plugin:
    """One entry point."""

    def __init__(self, entry_point: EntryPoint, patches: Patches) -> None:
        self._entry_point = entry_point
        self._patches = patches
        self._warned = False

    def wait(self) -> None:
        """Have the rows installed as soon as the library is there."""
        name = self._entry_point.name
        if not all(part.isidentifier() for part in name.split(".")):
            self._warn("its name is not that of a module")
        elif sys.modules.get(name) is not None:
            self._load()
        else:
            wrapt.register_post_import_hook(self._imported, name)

    def _imported(self, _module: Any) -> None:
        # As for rows of ours: the host's import must not fail, and a hook cannot be taken back.
        with guard:
            if self._patches.active:
                self._load()

    def _load(self) -> None:
        rows, error = attempt(self._rows)
        if error is not None or rows is None:
            self._warn(f"{type(error).__name__}: {error}")
        else:
            self._patches.add(rows)

    def _rows(self) -> list[patching.Target]:
        found = self._entry_point.load()
        rows = list(found() if callable(found) else found)
        wrong = next((row for row in rows if not isinstance(row, targets.Target)), None)
        if wrong is not None:
            raise TypeError(f"{wrong!r} is not a loadspan.targets.Target")
        return [self._row(row) for row in rows]

    def _row(self, row: targets.Target) -> patching.Target:
        """*row* as one of ours."""
        facts = {} if row.format is None else {names.FORMAT: row.format}
        return patching.Target(
            module=row.module,
            attribute=row.attribute,
            why=row.why,
            kind=_KINDS[row.kind],
            stage=row.stage,
            describe=self._told(row.describe),
            measure=self._told(row.measure),
            when=self._asked(row.when),
            size=self._asked(row.size),
            path=self._asked(row.path),
            facts=(lambda _, __: facts) if facts else None,
            deferred=(lambda _, __: True) if row.deferred else None,
        )

    def _told(self, callback: Callable[..., None] | None) -> Callable[..., None] | None:
        """*callback*, which is given the public side of a call."""
        if callback is None:
            return None

        def tell(frame: Any, *rest: Any) -> None:
            _, error = attempt(callback, targets.Call(frame), *rest)
            if error is not None:
                self._warn_of(callback, error)

        return tell

    def _asked(self, callback: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """*callback*, whose answer is None where it fails."""
        if callback is None:
            return None

        def ask(*rest: Any) -> Any:
            answer, error = attempt(callback, *rest)
            if error is not None:
                self._warn_of(callback, error)
            return answer

        return ask

    def _warn_of(self, callback: Any, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._warn(
                f"{getattr(callback, '__qualname__', callback)} failed: {type(error).__name__}: {error}", "What it tells is left out"
            )

    def _warn(self, what: str, lost: str = "Its rows are left out") -> None:
        entry_point = self._entry_point
        distribution = getattr(getattr(entry_point, "dist", None), "name", None)
        source = f" of {distribution}" if distribution else ""
        _LOGGER.warning("loadspan: entry point %s = %s%s: %s. %s.", entry_point.name, entry_point.value, source, what, lost)


def install(entry_points: Iterable[EntryPoint], patches: Patches) -> None:
    """Have the rows of *entry_points* installed, each as soon as its library is there."""
    for entry_point in entry_points:
        with guard:
            Plugin(entry_point, patches).wait()
