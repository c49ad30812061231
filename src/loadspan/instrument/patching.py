"""
What is patched is a table of `Target` rows; this file installs rows and puts back the very objects it took.

Nothing is imported: a row waits for its module. A missing module, attribute or type skips the row with one debug line.
"""

from __future__ import annotations

import enum
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any

import wrapt

from loadspan import names
from loadspan.guard import guard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadspan.instrument.destination import Destination
    from loadspan.instrument.frames import OpenLoad, OpenStage

_LOGGER = logging.getLogger("loadspan")
_MISSING: Any = object()
_DEEPEST = 10  # wrappers around wrappers that are looked through
OURS = "__loadspan_target__"
"""Attribute of a wrapper: its row."""

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Describe = Callable[["OpenStage | OpenLoad", Args, Kwargs], None]
Measure = Callable[["OpenStage | OpenLoad", Any, Args, Kwargs], None]


class Kind(enum.Enum):
    """How calls of a target are recorded."""

    ROOT = "opens a load"
    COARSE = "one span each"
    FINE = "per tensor or per chunk: tallied"
    REPLACE = "replaced by an object of the row's own making"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """
    One host function to wrap: where it is, which stage its calls are, how to read bytes and paths out of a call, and why.

    Callbacks get the host's arguments and must not change them; whatever they raise is swallowed by the guard.
    """

    module: str
    attribute: str
    """Dotted path inside the module, for example `Module.load_state_dict`."""
    why: str
    kind: Kind = Kind.COARSE
    stage: str = ""
    describe: Describe | None = None
    """Before a coarse call or root: fill in what the arguments tell."""
    measure: Measure | None = None
    """After a coarse call or root that returned: fill in what the result tells."""
    answer: Callable[[BaseException], bool] | None = None
    """Coarse calls: whether an exception is an answer (there is no such file) and no failure."""
    size: Callable[[Any, Args, Kwargs], int | None] | None = None
    """Fine calls: bytes, from the result and the arguments."""
    thing: Callable[[Any], Any] | None = None
    """Fine calls: what of a result an implicit load is to know again, where that is a part of it."""
    label: Callable[[Args, Kwargs], str] | None = None
    """Fine calls: name of this one among the slowest."""
    facts: Callable[[Args, Kwargs], dict[str, Any]] | None = None
    """Fine calls: attributes of the tally, asked once, at its first call."""
    path: Callable[[Args, Kwargs], str | None] | None = None
    """Fine calls: the file, where that is known."""
    destination: Callable[[Args, Kwargs], Destination | None] | None = None
    """Fine calls: the device that they bring bytes to, where that is not the host."""
    deferred: Callable[[Args, Kwargs], bool] | None = None
    """Fine calls: whether the bytes arrive later."""
    waits: bool = False
    """Fine calls: whether they but wait for bytes that come all the while, so that bytes by their seconds are no throughput."""
    when: Callable[[Args, Kwargs], bool] | None = None
    """Whether a call is of interest at all; asked first and always, so it must cost next to nothing."""
    alone: Callable[[Args, Kwargs], bool] | None = None
    """Whether a call may open an implicit load; without it every call may."""
    joins: Callable[[Args, Kwargs], bool] | None = None
    """Fine calls: whether place and time prove that a call belongs to an implicit load; without it they do. Where they do not, only a call
    on the object (`args[0]`) of the call before it, or on the `buffer` that one returned, belongs to its load."""
    buffer: Callable[[Args, Kwargs], Any] | None = None
    """Fine calls: the bytes a call works on, by which an implicit load that brought them is recognized."""
    bursts: bool = False
    """Fine calls: whether thousands of them come in a row, of which not each is announced."""
    apart: str = ""
    """Fine calls: attribute that gets their seconds. They are tallied apart from the stage's others, whose throughput they do not lower."""
    aside: Callable[[], Callable[[], bool] | None] | None = None
    """Coarse calls: gives, once the library is there, what is asked first of all and by itself whether to leave a call alone."""
    replace: Callable[[Any], Any] | None = None
    """REPLACE: from the original to its replacement."""
    aliases: tuple[str, ...] = ()
    """Other `module:attribute` places that hold the same object."""


def library(row: Target) -> str | None:
    """The library that a row is about; None for Python's own modules."""
    top = row.module.partition(".")[0]
    return None if top in sys.stdlib_module_names else top


def _of_loading(row: Target) -> bool:
    """Whether who imports the module of a row is likely to load a model: not Python itself, nor who talks to a store of files."""
    return bool(row.stage) and row.stage != names.DOWNLOAD and library(row) is not None


def argument(args: Args, kwargs: Kwargs, position: int, name: str, default: Any = None) -> Any:
    """One argument of a call, however it was passed."""
    if name in kwargs:
        return kwargs[name]
    return args[position] if len(args) > position else default


@dataclass(frozen=True, slots=True)
class _Patch:
    owner: Any
    name: str
    raw: Any
    """The object that was there, `_MISSING` where the attribute was inherited."""
    ours: Any

    def restore(self) -> bool:
        """Put back what was there; False if somebody wrapped ours since, which then passes calls through."""
        if vars(self.owner).get(self.name, _MISSING) is not self.ours:
            return False
        if self.raw is _MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.raw)
        return True

    def is_covered(self) -> bool:
        """Whether what is there now goes on to ours."""
        there = vars(self.owner).get(self.name)
        for _ in range(_DEEPEST):
            there = getattr(there, "__wrapped__", None)
            if there is self.ours:
                return True
        return False


def _split(row: Target) -> list[tuple[str, str]]:
    return [(row.module, row.attribute), *((place.partition(":")[0], place.partition(":")[2]) for place in row.aliases)]


def _resolve(module: str, attribute: str) -> tuple[Any, str, Any]:
    """Owner, name and raw value of an attribute; the raw value is `_MISSING` where it is inherited."""
    owner: Any = sys.modules[module]
    *path, name = attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    raw = vars(owner).get(name, _MISSING)
    if raw is _MISSING and isinstance(owner, type):
        getattr(owner, name)  # AttributeError: not even inherited
    elif raw is _MISSING:
        raw = getattr(owner, name)  # a module may make its attributes on demand
    return owner, name, raw


_found: list[_Patch] = []
_covered: list[_Patch] = []
"""Patches of earlier instrumentors that somebody had wrapped when they were to be restored."""


def _uncover() -> None:
    """Restore what somebody had wrapped and has unwrapped since."""
    _covered[:] = [patch for patch in _covered if not patch.restore()]


def patch_type(kind: type, name: str, ours: Any) -> None:
    """Patch a type that is reachable only through an instance; it is restored with the rows."""
    raw = vars(kind).get(name, _MISSING)
    if any(patch.owner is kind and patch.name == name and raw is patch.ours for patch in _found):
        return
    setattr(kind, name, ours)
    _found.append(_Patch(kind, name, raw, ours))


def patch_method(kind: Any, name: str, replacement: Callable[[Any], Any], row: Target) -> None:
    """Patch a method, its own or inherited, of a type that is known only now; not if it has none of that name, or has ours."""
    method = getattr(kind, name, None)
    if method is not None and getattr(method, OURS, None) is None:
        patch_type(kind, name, marked(replacement(method), row))


class Patches:
    """The patches of one instrumentor: installs rows, restores what was there."""

    def __init__(self, wrap: Callable[[Target, Any], Any], on_import: Callable[[], None] = lambda: None) -> None:
        self._wrap = wrap
        self._on_import = on_import
        """Called when a library that loads models has been imported."""
        self._installed: list[_Patch] = []
        self._waiting: dict[str, list[Target]] = {}
        self._hooked: set[str] = set()
        self._expected: dict[str, Callable[[str], Sequence[Target]]] = {}
        """Libraries that are not there yet, and what gives their rows."""
        self._met: set[str] = set()
        """Modules with rows that were imported: hooks are called once, and may have to be called again."""
        self.active = False

    def install(self, rows: Sequence[Target]) -> None:
        """Install *rows*, now where their module is imported, else when it will be."""
        with guard:
            _uncover()
        self.active = True
        self._waiting = {}
        self._add(rows)

    def add(self, rows: Sequence[Target]) -> None:
        """Install more *rows*."""
        self._add(rows)
        if any(_of_loading(row) and row.module in sys.modules for row in rows):
            self._on_import()

    def expect(self, libraries: Iterable[str], rows_of: Callable[[str], Sequence[Target]]) -> None:
        """Install the rows of each of *libraries*, now where it is imported, else when its import begins (`begun`)."""
        there = [name for name in libraries if sys.modules.get(name) is not None]
        self._expected = {name: rows_of for name in libraries if name not in there}
        self._add([row for name in there for row in rows_of(name)])

    def begun(self, module: str) -> None:
        """The import of *module* begins: what it has rows of is hooked."""
        if (rows_of := self._expected.pop(module, None)) is not None:
            self._add(rows_of(module))
        elif module in self._met:
            self.hook(module)

    def _add(self, rows: Sequence[Target]) -> None:
        for row in rows:
            self._waiting.setdefault(row.module, []).append(row)
        swaps: dict[int, tuple[Any, Any]] = {}
        for module in dict.fromkeys(row.module for row in rows):
            if sys.modules.get(module) is not None:  # None: somebody forbids its import
                self._install_module(module, swaps)
            else:
                self.hook(module)
        if swaps:
            self._rebind(swaps)  # once for all: it looks at every name of every module

    def hook(self, module: str) -> None:
        """Wait for the import of *module*, which is not there."""
        if module not in self._hooked:
            self._hooked.add(module)
            wrapt.register_post_import_hook(self.imported, module)

    def imported(self, module: Any) -> None:
        """Install the rows of *module*, which has just been imported."""
        # An exception here would make the host's import fail. A hook cannot be taken back, so it asks whether it is still wanted.
        with guard:
            self._hooked.discard(module.__name__)
            if self.active:
                swaps: dict[int, tuple[Any, Any]] = {}
                self._install_module(module.__name__, swaps)
                if swaps and "." in module.__name__ and hasattr(module, "__path__"):
                    # What a package imports of its own has copied its functions before they were all there.
                    inner = [found for name, found in list(sys.modules.items()) if name.startswith(f"{module.__name__}.")]
                    self._rebind(swaps, inner)
                if any(map(_of_loading, self._waiting.get(module.__name__, ()))):
                    self._on_import()

    def _install_module(self, module: str, swaps: dict[int, tuple[Any, Any]]) -> None:
        self._met.add(module)
        for row in self._waiting.get(module, ()):
            with guard:
                self._install_row(row, swaps)

    def _install_row(self, row: Target, swaps: dict[int, tuple[Any, Any]]) -> None:
        try:
            owner, name, raw = _resolve(row.module, row.attribute)
        except (AttributeError, KeyError):
            _LOGGER.debug("loadspan: %s has no %s, row skipped", row.module, row.attribute)
            return
        inherited = raw is _MISSING
        original = _inherited(owner, name) if inherited else raw
        if getattr(original, OURS, None) is not None or any(patch.ours is original for patch in self._installed):
            return
        ours = self._make(row, original)
        if ours is None:
            return
        if isinstance(ours, FunctionType) and not hasattr(original, "__module__"):
            ours.__module__ = owner.__module__  # a method of a C type has none: `pickle` finds it through the type's
        try:
            setattr(owner, name, ours)
        except (AttributeError, TypeError) as error:
            _LOGGER.debug("loadspan: %s.%s cannot be set (%s), row skipped", row.module, row.attribute, error)
            return
        self._installed.append(_Patch(owner, name, raw, ours))
        if not isinstance(owner, type):
            swaps[id(original)] = (original, ours)
        for module, attribute in _split(row)[1:]:
            self._install_alias(module, attribute, original, ours)

    def _install_alias(self, module: str, attribute: str, original: Any, ours: Any) -> None:
        if sys.modules.get(module) is None:
            return
        try:
            owner, name, raw = _resolve(module, attribute)
        except AttributeError:
            return
        if raw is original:
            setattr(owner, name, ours)
            self._installed.append(_Patch(owner, name, raw, ours))

    def _make(self, row: Target, original: Any) -> Any:
        if row.kind is Kind.REPLACE and row.replace is not None:
            return row.replace(original)
        if isinstance(original, staticmethod | classmethod):
            return type(original)(marked(self._wrap(row, original.__func__), row))
        return marked(self._wrap(row, original), row)

    def _rebind(self, swaps: dict[int, tuple[Any, Any]], modules: Iterable[Any] = ()) -> None:
        """Rebind the copies that modules made by `from library import function` before we came."""
        for module in list(modules or sys.modules.values()):
            name = getattr(module, "__name__", "")
            if not isinstance(name, str) or name.partition(".")[0] == "loadspan":
                continue
            for key, value in list(getattr(module, "__dict__", {}).items()):
                swap = swaps.get(id(value))
                if swap is not None and swap[0] is value:
                    setattr(module, key, swap[1])
                    self._installed.append(_Patch(module, key, value, swap[1]))

    def restore(self) -> None:
        """Put back every object that was taken, copies that modules made of our wrappers included."""
        self.active = False
        back = {id(patch.ours): (patch.ours, patch.raw) for patch in self._installed if not isinstance(patch.owner, type)}
        for patch in reversed([*_found, *self._installed]):
            with guard:
                if not patch.restore() and patch.is_covered():
                    _covered.append(patch)
        with guard:
            _uncover()
        _found.clear()
        if back:
            with guard:
                self._rebind(back)
        self._installed = []
        self._waiting = {}
        self._expected = {}
        self._met.clear()


def _inherited(owner: Any, name: str) -> Any:
    """The raw attribute along the owner's bases, unbound."""
    for base in owner.__mro__[1:]:
        if name in vars(base):
            return vars(base)[name]
    return getattr(owner, name)


def marked(wrapper: Any, row: Target) -> Any:
    """*wrapper*, with the row that it stands for."""
    setattr(wrapper, OURS, row)
    return wrapper
