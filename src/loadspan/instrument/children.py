"""
Processes that are started for a load belong to it.

What is forked has its context; what multiprocessing spawns is told with the data that it gets anyway; the job of a process pool, whose
processes outlive a load, brings it along; any other child finds `TRACEPARENT` in its environment. That is added where the list of variables
has already been made, below everything the host calls: no mapping of the host's is changed, and no argument of `Popen`.

A child's environment is left as it is where the host gives it a `TRACEPARENT` other than its own, gives it none at all (`env={}`), or
changes it in a `preexec_fn`.
"""

from __future__ import annotations

import functools
import os
import sys
from importlib.machinery import BuiltinImporter
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any

from loadspan.guard import safely
from loadspan.instrument import telemetry
from loadspan.instrument.frames import current
from loadspan.instrument.patching import Kind, Target, patch_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_TOLD = "loadspan"
_JOB = "_loadspan_told"
_ENVIRONMENT = 5
"""Position of the variables among the arguments of `fork_exec`, in every version."""

_PARENT = b"TRACEPARENT"
_STATE = b"TRACESTATE"


def told() -> dict[str, str]:
    """What a process that is started here has to know for its loads to belong to the open one; nothing where it belongs to none."""
    frame = current.get()
    while frame is not None and frame.load.closed:
        frame = frame.load.parent
    if frame is None or frame.load.muted or frame.load.held is not None:
        return dict(telemetry.inherited)
    return telemetry.carrier(frame.load.handle)


# What multiprocessing spawns


def _tell_child(original: Callable[..., Any]) -> Callable[..., Any]:
    """Put the open load into what a child that is started anew is told; one that is not instrumented does not look at it."""

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        data = original(*args, **kwargs)
        safely(lambda: data.update({_TOLD: known} if (known := told()) else {}))
        return data

    return wrapper


def _be_told(original: Callable[..., Any]) -> Callable[..., Any]:
    """Loads of this child belong to the load in which it was started."""

    @functools.wraps(original)
    def wrapper(data: Any, *args: Any, **kwargs: Any) -> Any:
        safely(lambda: telemetry.inherited.update(data.get(_TOLD) or {}))
        return original(data, *args, **kwargs)

    return wrapper


# Jobs of process pools


class Told(dict[str, Any]):
    """The keyword arguments of a job, and what its process is to be told. To pickle it is a dict like any other."""

    told: dict[str, str]

    def __reduce__(self) -> tuple[Any, ...]:
        """A plain dict."""
        return dict, (dict(self),)


def _carry_job(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keep on a job which load submitted it, from where its manager's thread, which makes a message of it, takes it."""

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        safely(_keep, self)
        return result

    return wrapper


def _keep(item: Any) -> None:
    if type(item.kwargs) is dict:
        known = Told(item.kwargs)
        known.told = told()
        item.kwargs = known


def _tell_worker(original: Callable[..., Any]) -> Callable[..., Any]:
    """Write it on the message; a process that is not instrumented finds an attribute that nobody asks for."""
    kind = sys.modules["concurrent.futures.process"]._CallItem  # noqa: SLF001 - there is no other place
    patch_type(kind, "__setstate__", _received)

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if isinstance(self.kwargs, Told):
            self.__dict__[_JOB] = self.kwargs.told
        return result

    return wrapper


def _received(self: Any, state: dict[str, Any]) -> None:
    """What unpickling does; a job that was told something is then called with it."""
    self.__dict__.update(state)
    known = self.__dict__.pop(_JOB, None)
    if known is not None:
        self.fn = functools.partial(_work, known, self.fn)


def _work(known: dict[str, str], function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, whose loads belong to what is *known*, and not to the load in which this process was started."""
    before = dict(telemetry.inherited)
    telemetry.inherited.clear()
    telemetry.inherited.update(known)
    frame, context = current.set(None), safely(telemetry.enter, known)
    try:
        return function(*args, **kwargs)
    finally:
        if context is not None:
            telemetry.detach(context)
        current.reset(frame)
        telemetry.inherited.clear()
        telemetry.inherited.update(before)


# Programs


def environment() -> dict[bytes, bytes]:
    """
    The variables a program that is started now would inherit.

    `os.environ` is a copy from the start of Python: what libraries in C have set since is not in it, but a child gets it. A second instance
    of the module that makes that copy makes a new one.
    """
    spec = BuiltinImporter.find_spec("posix")
    assert spec is not None  # noqa: S101 - `os` could not have been imported
    module: Any = module_from_spec(spec)
    BuiltinImporter.exec_module(module)
    return dict(module.environ)


def _variables(given: Sequence[bytes] | None) -> list[bytes] | None:
    """*given* (None: those of this process) with what the child is to be told; None if there is nothing to say."""
    if given is not None and not given:
        return None
    known = told()
    if not known:
        return None
    variables = [b"%b=%b" % item for item in environment().items()] if given is None else list(given)
    split = [variable.partition(b"=")[::2] for variable in variables]
    if given is not None and any(name == _PARENT and value != os.environb.get(_PARENT) for name, value in split):
        return None  # not just passed on: the host says itself where its child belongs
    kept = [variable for variable, (name, _) in zip(variables, split, strict=True) if name not in (_PARENT, _STATE)]
    return [*kept, *(f"{name.upper()}={value}".encode() for name, value in known.items())]


def _tell_program(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # multiprocessing calls it too, for processes that serve many loads.
        if sys._getframe(1).f_globals.get("__name__") == "subprocess":  # noqa: SLF001 - the only way to know
            changed = safely(_with_variables, args)
            args = args if changed is None else changed
        return original(*args, **kwargs)

    return wrapper


def _with_variables(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    given = args[_ENVIRONMENT]
    if given is None and any(callable(argument) for argument in args[_ENVIRONMENT:]):
        return None  # what runs in the child before it becomes the program may change what that inherits
    variables = _variables(given)
    return None if variables is None else (*args[:_ENVIRONMENT], variables, *args[_ENVIRONMENT + 1 :])


def _tell_spawned(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if len(args) > 2:  # noqa: PLR2004 - path, arguments, environment, by position
            mapping = safely(_with_mapping, args[2])
            args = args if mapping is None else (*args[:2], mapping, *args[3:])
        return original(*args, **kwargs)

    return wrapper


def _with_mapping(given: Mapping[Any, Any] | None) -> dict[bytes, bytes] | None:
    """*given*, an environment as `posix_spawn` takes it, with what the child is to be told; None if there is nothing to say."""
    if given is None:
        listed = None
    else:
        # As the C function asks for them.
        pairs = list(zip(list(given.keys()), list(given.values()), strict=True))
        if not all(isinstance(text, str | bytes) for pair in pairs for text in pair) or any("=" in os.fsdecode(name) for name, _ in pairs):
            return None  # it will be refused
        listed = [os.fsencode(name) + b"=" + os.fsencode(value) for name, value in pairs]
    variables = _variables(listed)
    return None if variables is None else dict(variable.partition(b"=")[::2] for variable in variables)


_FORK_EXEC = ("subprocess", "_fork_exec") if sys.version_info >= (3, 11) else ("_posixsubprocess", "fork_exec")

ROWS = (
    Target(
        module="multiprocessing.spawn",
        attribute="get_preparation_data",
        kind=Kind.REPLACE,
        replace=_tell_child,
        why="a process that is spawned for a load works for it; one that is forked has its context anyway",
    ),
    Target(
        module="multiprocessing.spawn",
        attribute="prepare",
        kind=Kind.REPLACE,
        replace=_be_told,
        why="see `get_preparation_data`: the child",
    ),
    Target(
        module="concurrent.futures.process",
        attribute="_WorkItem.__init__",
        kind=Kind.REPLACE,
        replace=_carry_job,
        why="a pool process works for whoever submitted the job, not for the load in which it was started",
    ),
    Target(
        module="concurrent.futures.process",
        attribute="_CallItem.__init__",
        kind=Kind.REPLACE,
        replace=_tell_worker,
        why="see `_WorkItem.__init__`: the message to the process",
    ),
    Target(
        module=_FORK_EXEC[0],
        attribute=_FORK_EXEC[1],
        kind=Kind.REPLACE,
        replace=_tell_program,
        why="a program that is started for a load works for it; the list of its variables has been made by now",
    ),
    *(
        Target(
            module="os",
            attribute=name,
            kind=Kind.REPLACE,
            replace=_tell_spawned,
            why="as `fork_exec`, which subprocess leaves to it where it can",
        )
        for name in ("posix_spawn", "posix_spawnp")
    ),
)
