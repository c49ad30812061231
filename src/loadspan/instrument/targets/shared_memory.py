"""
Weights that one process keeps in memory for others: `multiprocessing.shared_memory`, and torch's shared storages.

Programs share small things all day: only segments as large as weights are looked at. To attach one brings no byte, and neither does to
make one: its bytes arrive when they are used or copied, in whatever stage that is. Nothing is kept alive: a segment is known by its path.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets.crypto import OPENS

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenStage

FOLDER = "/dev/shm/"  # noqa: S108 - where Linux has what `shm_open` opens


def _begun(args: Args, kwargs: Kwargs) -> OpenStage | None:
    """The stage of a call of `SharedMemory(name, create, size)`; None where it is not about weights."""
    name = argument(args, kwargs, 1, "name")
    if argument(args, kwargs, 2, "create", default=False):
        wanted = argument(args, kwargs, 3, "size", 0)
        if not isinstance(wanted, int) or wanted < OPENS:
            return None
        return recorder.open_stage(names.CACHE, _made)
    if not isinstance(name, str):
        return None  # the host is about to be told
    path = FOLDER + name.lstrip("/")
    try:
        size = os.stat(path).st_size  # noqa: PTH116 - plain text
    except OSError:
        # Nothing tells what it would have held: it counts in a load that is open.
        return recorder.open_stage(names.CACHE, _looked_for) if recorder.loads else None
    return recorder.open_stage(names.CACHE, lambda stage: _found(stage, path, size)) if size >= OPENS else None


def _made(stage: OpenStage) -> None:
    stage.attributes[names.CACHE_HIT] = False
    stage.rated = False


def _looked_for(stage: OpenStage) -> None:
    stage.attributes[names.CACHE_HIT] = False
    stage.opens = False


def _found(stage: OpenStage, path: str, size: int) -> None:
    stage.attributes[names.CACHE_HIT] = True
    stage.file(path)
    stage.size = size
    stage.deferred = True


def _ended(stage: OpenStage, segment: Any, error: BaseException | None) -> None:
    hit = stage.attributes[names.CACHE_HIT]
    if isinstance(error, FileNotFoundError) and not hit:
        error = None  # to find nothing is an answer of a cache, and no failure
    elif error is None and not hit:
        stage.file(FOLDER + segment.name.lstrip("/"))
        stage.size = segment.size
        # Its bytes are to come, unless the load has brought them already.
        stage.outputs = [] if names.SOURCE_STAGES & stage.load.sizes().keys() else [segment]
    elif error is None:
        stage.outputs = [segment]
    recorder.close_stage(stage, error)


def _replace_init(original: Any) -> Any:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stage = safely(_begun, (self, *args), kwargs) if recorder.active else None
        if stage is None:
            return original(self, *args, **kwargs)  # type: ignore[no-any-return] # it returns nothing
        try:
            original(self, *args, **kwargs)
        except BaseException as error:
            safely(_ended, stage, self, error)
            raise
        safely(_ended, stage, self, None)
        return None

    return init


ROWS = (
    Target(
        module="multiprocessing.shared_memory",
        attribute="SharedMemory.__init__",
        kind=Kind.REPLACE,
        replace=_replace_init,
        stage=names.CACHE,
        why="weights that another process has decrypted; a segment that is not there is a miss and no failure",
    ),
)
