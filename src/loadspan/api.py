"""
`load()` and `stage()`: for load functions that no row knows.

Both are decorators and context managers, for plain, coroutine, generator and asynchronous generator functions and methods, in any
thread. With loadspan installed but nothing configured to record they do next to nothing.

    with loadspan.load("sdxl-base"):
        with loadspan.stage("decrypt", path=path) as stage:
            for chunk in chunks:
                plain += cipher.update(chunk)
                stage.add(len(chunk))

    @loadspan.stage("merge_lora", adapter="style")
    def merge(model, tensors): ...
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from loadspan import imports, names
from loadspan.guard import safely
from loadspan.instrument.destination import merge, named, settled

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from types import TracebackType

    from loadspan.instrument.frames import OpenLoad, OpenStage

_Function = TypeVar("_Function", bound="Callable[..., Any]")
_ATTRIBUTES = {
    "format": names.FORMAT,
    "model": names.MODEL_NAME,
    "adapter": names.ADAPTER_NAME,
    "cache_hit": names.CACHE_HIT,
    "loader": names.LOADER,
}
_PLACES = ("path", "size", "device", "deferred")


def _describe(frame: OpenLoad | OpenStage, facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if value is None:
            continue
        if key == "path":
            for path in value if isinstance(value, list | tuple) else (value,):
                frame.file(path)
        elif key == "size":
            frame.size = int(value)
        elif key == "device":
            _device(frame, value)
        elif key == "model" and frame.stage is None:
            frame.load.known_as(str(value))
        elif key == "deferred":
            setattr(frame, "deferred", bool(value))  # noqa: B010 - stages have it, loads do not
        else:
            frame.attributes[_ATTRIBUTES[key]] = value if isinstance(value, bool) else str(value)


def _device(frame: OpenLoad | OpenStage, device: Any) -> None:
    kind, _, index = str(device).partition(":")
    frame.attributes[names.DEVICE_TYPE] = kind
    if index.isdigit():
        frame.attributes[names.DEVICE_INDEX] = int(index)
    there = named(str(device))
    if there is not None and frame.stage is not None:
        frame.stage.destination = settled(there)
    elif there is not None and there.index is not None:
        merge(frame.load.destinations, there)


def _check(facts: dict[str, Any], allowed: tuple[str, ...]) -> None:
    unknown = sorted(set(facts) - set(allowed))
    if unknown:
        raise TypeError(f"loadspan: unknown fact {unknown[0]!r}. Known: {', '.join(allowed)}.")


class Handle:
    """What `with loadspan.stage(...)` and `with loadspan.load(...)` give: says more about the work while it runs."""

    __slots__ = ("_frame",)

    def __init__(self, frame: OpenLoad | OpenStage | None) -> None:
        self._frame = frame

    def add(self, size: int) -> None:
        """Add *size* bytes to what was brought or transformed so far."""
        if self._frame is not None:
            safely(self._frame.add, int(size))

    def set(self, **facts: Any) -> None:
        """
        Say what only the caller knows.

        Args:
            **facts: `path` (one or several), `size` (bytes, replaces what was added), `format`, `device` ("cuda:0"), `model`,
                `adapter`, `cache_hit`, `deferred` (the bytes arrive later), `loader`.

        Raises:
            TypeError: a fact has another name.
        """
        _check(facts, _FACTS)
        if self._frame is not None:
            safely(_describe, self._frame, facts)


_entered: ContextVar[tuple[tuple[_Scope, Any], ...]] = ContextVar("loadspan_entered", default=())
"""What `with` statements opened in this context, innermost last: one object may be entered by several threads and tasks at once."""

_FACTS = (*_PLACES, *_ATTRIBUTES)
_NOTHING = Handle(None)


def current() -> Handle:
    """The innermost stage or load that is open here; a handle that does nothing where none is."""
    frame = safely(_recorder().frame)
    return Handle(frame) if frame is not None else _NOTHING


class _Scope:
    """One `load(...)` or `stage(...)` expression: reusable as decorator, and as context manager also nested and in several threads."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = {key: value for key, value in facts.items() if value is not None}

    def _open(self) -> OpenLoad | OpenStage | None:
        raise NotImplementedError

    def open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OpenLoad | OpenStage | None:  # noqa: ARG002 - as a row's recording
        """Open the frame of one call."""
        return self._open()

    def close(self, frame: Any, result: Any, error: BaseException | None, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - as a row's recording
        """Close it."""
        if hasattr(frame, "partition"):
            _recorder().close_load(frame, error)
        else:
            _recorder().close_stage(frame, error)

    def __call__(self, function: _Function) -> _Function:
        imports.need("loadspan.instrument.calls")
        from loadspan.instrument.calls import recorded  # noqa: PLC0415 - only who decorates needs it

        return recorded(function, self)  # type: ignore[return-value] # functools.wraps keeps the signature

    def __enter__(self) -> Handle:
        frame = safely(self.open, (), {})
        _entered.set((*_entered.get(), (self, frame)))
        return Handle(frame) if frame is not None else _NOTHING

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        entered = _entered.get()
        index = max((index for index, (scope, _) in enumerate(entered) if scope is self), default=None)
        if index is None:
            return  # entered in a context that did not reach here
        _entered.set((*entered[:index], *entered[index + 1 :]))
        frame = entered[index][1]
        if frame is not None:
            safely(self.close, frame, None, error, (), {})

    async def __aenter__(self) -> Handle:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.__exit__(kind, error, traceback)


def _recorder() -> Any:
    imports.need("loadspan.instrument.live")
    from loadspan.instrument.live import recorder  # noqa: PLC0415 - `import loadspan` stays light

    return recorder


class load(_Scope):  # noqa: N801 - reads as a verb where it is used
    """
    One load: everything that is loaded inside is a stage of it.

    Args:
        name: Model, as people call it.
        loader: Library or program that loads.
        path: File or folder of the model.
        device: Where the weights go, for example "cuda:0".
    """

    def __init__(
        self, name: str | None = None, *, loader: str | None = None, path: str | os.PathLike[str] | None = None, device: object = None
    ) -> None:
        super().__init__({"loader": loader, "path": path, "device": device})
        self._name = None if name is None else str(name)

    def _open(self) -> OpenLoad | OpenStage | None:
        frame = _recorder().open_load({}, name=self._name)
        if frame is not None:
            safely(_describe, frame, self._facts)
        return frame  # type: ignore[no-any-return] # the recorder is looked up late


class stage(_Scope):  # noqa: N801 - as above
    """
    One stage of a load.

    Args:
        name: One of the stage names: download, read, decrypt, deserialize, initialize, load_state_dict, convert, merge_lora, to_device,
            compile, cache.
        path: File or files it works on.
        size: Bytes it brings or transforms, where known beforehand; `add` and `set` of the handle say it later.
        format: safetensors, gguf, ...
        device: Target of a to_device stage, for example "cuda:0".
        model: Name of the model.
        adapter: Name of the LoRA adapter.
        cache_hit: Whether a cache stage found what it looked for.
        deferred: True if the bytes arrive later, so that no throughput is shown.

    Raises:
        ValueError: *name* is no stage name.
    """

    def __init__(
        self,
        name: str,
        *,
        path: str | os.PathLike[str] | list[str | os.PathLike[str]] | None = None,
        size: int | None = None,
        format: str | None = None,  # noqa: A002 - the attribute's name
        device: object = None,
        model: str | None = None,
        adapter: str | None = None,
        cache_hit: bool | None = None,
        deferred: bool | None = None,
    ) -> None:
        if name not in names.STAGES:
            raise ValueError(f"loadspan: {name!r} is not a stage. Use one of: {', '.join(names.STAGES)}.")
        super().__init__(
            {
                "path": path,
                "size": size,
                "format": format,
                "device": device,
                "model": model,
                "adapter": adapter,
                "cache_hit": cache_hit,
                "deferred": deferred,
            }
        )
        self._name = name

    def _open(self) -> OpenLoad | OpenStage | None:
        facts = self._facts
        return _recorder().open_stage(self._name, lambda frame: safely(_describe, frame, facts))  # type: ignore[no-any-return] # as above
