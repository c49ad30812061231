"""
orbax and flax: checkpoints of jax.

orbax reads arrays with a library of its own (tensorstore), many at once, and puts them on their devices as they come: one stage. Its bytes
are those of the arrays; on the disk they are compressed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.patching import Args, Kind, Kwargs, Measure, Target, argument
from loadspan.instrument.targets import arrays, roots
from loadspan.instrument.targets.transfers import stage_of

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_HANDLERS = "orbax.checkpoint._src.handlers"


def _describe_handler(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    frame.attributes[names.FORMAT] = "orbax"
    arrays.of_file(1, "directory")(frame, args, kwargs)


def _handler(module: str, kind: str, why: str, measure: Measure | None = None) -> Target:
    return Target(
        module=f"{_HANDLERS}.{module}",
        attribute=f"{kind}.restore",
        stage=names.DESERIALIZE,
        describe=_describe_handler,
        measure=measure,
        why=why,
    )


def _measure_from_bytes(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    found = arrays.find(result)
    frame.size = sum(array.nbytes for array in found) or None
    if argument(args, kwargs, 0, "target") is None:
        stage_of(frame).rated = False  # as it came


def _describe_compile(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage_of(frame).opens = False


ROWS = (
    Target(
        module="jax._src.compiler",
        attribute="compile_or_get_cached",
        stage=names.COMPILE,
        when=roots.during,
        describe=_describe_compile,
        why="what initializes random weights is compiled while a model is built",
    ),
    Target(
        module="orbax.checkpoint._src.checkpointers.checkpointer",
        attribute="Checkpointer.restore",
        kind=Kind.ROOT,
        describe=arrays.root(1, "directory"),
        why="every checkpointer and the manager of many end here",
    ),
    _handler("composite_checkpoint_handler", "CompositeCheckpointHandler", "of what a manager has saved together"),
    _handler("standard_checkpoint_handler", "StandardCheckpointHandler", "a tree of arrays"),
    _handler("pytree_checkpoint_handler", "PyTreeCheckpointHandler", "the same with options"),
    _handler("base_pytree_checkpoint_handler", "BasePyTreeCheckpointHandler", "where all of them end", arrays.measure),
    Target(
        module="flax.training.checkpoints",
        attribute="restore_checkpoint",
        kind=Kind.ROOT,
        describe=arrays.root(0, "ckpt_dir"),
        why="the older checkpoints of flax: one file of msgpack",
    ),
    Target(
        module="flax.serialization",
        attribute="from_bytes",
        stage=names.LOAD_STATE_DICT,
        describe=arrays.of_bytes(1, "encoded_bytes", "msgpack"),
        measure=_measure_from_bytes,
        why="bytes to arrays, and these into the caller's tree",
    ),
    Target(
        module="flax.serialization",
        attribute="msgpack_restore",
        stage=names.DESERIALIZE,
        describe=arrays.of_bytes(0, "encoded_pytree", "msgpack"),
        measure=arrays.measure,
        why="bytes to arrays",
    ),
)
