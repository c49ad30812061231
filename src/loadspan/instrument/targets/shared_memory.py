"""
Weights that one process keeps in memory for others: `multiprocessing.shared_memory`, and torch's shared storages.

Programs share small things all day: only segments as large as weights are looked at. To attach one brings no byte, and neither does to
make one: its bytes arrive when they are used or copied, in whatever stage that is. Nothing is kept alive: a segment is known by its path.

Torch's storages go by queues in training, too: they count in a load that is open, and open none.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.caching import FOLDER
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import roots
from loadspan.instrument.targets.roots import OPENS

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

# multiprocessing


def _creates(args: Args, kwargs: Kwargs) -> bool:
    return bool(argument(args, kwargs, 2, "create", default=False))


def _path(name: str) -> str:
    return FOLDER + name.lstrip("/")


def _size(name: Any) -> int | None:
    """Bytes of the segment *name*; None where there is none."""
    try:
        return os.stat(_path(name)).st_size  # noqa: PTH116 - plain text
    except OSError:
        return None


def _worth_asking(args: Args, kwargs: Kwargs) -> bool:
    """Whether `SharedMemory(name, create, size)` is about weights; of what is not there nothing tells, so it counts in a load."""
    name, size = argument(args, kwargs, 1, "name"), argument(args, kwargs, 3, "size", 0)
    if _creates(args, kwargs):
        return isinstance(size, int) and size >= OPENS
    found = _size(name) if isinstance(name, str) else 0
    return bool(recorder.loads) if found is None else found >= OPENS


def _look(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage: OpenStage = frame  # type: ignore[assignment] # rows of this file are stages
    creates, name = _creates(args, kwargs), argument(args, kwargs, 1, "name")
    size = None if creates else _size(name)
    stage.attributes[names.CACHE_HIT] = size is not None
    stage.rated = False
    stage.opens = creates or size is not None
    if size is not None:
        stage.file(_path(name))
        stage.size = size
        stage.deferred = True


def _answered(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    segment = args[0]
    if _creates(args, kwargs):
        frame.file(_path(segment.name))
        frame.size = segment.size
        if names.SOURCE_STAGES & frame.load.sizes().keys():
            return  # it is made for what the load has brought
    frame.outputs = [segment]


# torch


def _nbytes(result: Any, args: Args, kwargs: Kwargs) -> int | None:
    return int(args[0].nbytes())


def _not_yet(args: Args, kwargs: Kwargs) -> bool:
    return bool(recorder.loads) and not args[0].is_shared()


def _never(args: Args, kwargs: Kwargs) -> bool:
    return False


def _shared(attribute: str) -> Target:
    return Target(
        module="torch.storage",
        attribute=f"UntypedStorage.{attribute}",
        kind=Kind.FINE,
        stage=names.CACHE,
        when=_not_yet,
        alone=_never,
        joins=_never,
        size=_nbytes,
        why="`share_memory_`, and what is sent to another process: copied into shared memory",
    )


def _attached(attribute: str, position: int) -> Target:
    return Target(
        module="torch.storage",
        attribute=f"UntypedStorage.{attribute}",
        kind=Kind.FINE,
        stage=names.CACHE,
        when=roots.during,
        alone=_never,
        joins=_never,
        size=lambda result, args, kwargs: int(args[position]),
        facts=lambda args, kwargs: {names.CACHE_HIT: True},
        deferred=lambda args, kwargs: True,
        why="what another process shares, attached when it arrives",
    )


ROWS = (
    Target(
        module="multiprocessing.shared_memory",
        attribute="SharedMemory.__init__",
        stage=names.CACHE,
        when=_worth_asking,
        describe=_look,
        measure=_answered,
        answer=lambda error: isinstance(error, FileNotFoundError),
        why="weights that another process has decrypted; a segment that is not there is a miss and no failure",
    ),
    _shared("_share_fd_cpu_"),
    _shared("_share_filename_cpu_"),
    _attached("_new_shared_fd_cpu", 1),
    _attached("_new_shared_filename_cpu", 2),
)
