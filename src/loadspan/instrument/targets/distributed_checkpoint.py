"""
torch.distributed.checkpoint: checkpoints of many ranks, read piece by piece.

A reader deserializes a piece (`torch.load` of a slice of a file, or a slice of a safetensors file), asks its planner for the tensor that
it belongs to, copies it there, and says so. All pieces are one `deserialize`; the time between asking and saying is the copy.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.calls import RowRecording, recorded
from loadspan.instrument.described import model_name
from loadspan.instrument.destination import named, settled
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import tensors
from loadspan.instrument.targets.roots import outermost

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_HOST = ("cpu", "meta")
_PACKAGE = "torch.distributed.checkpoint"


def _describe_root(load: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    reader = argument(args, kwargs, 1, "storage_reader")
    load.known_as(model_name(kwargs.get("checkpoint_id") or getattr(reader, "path", None)))  # type: ignore[union-attr] # a root


# Reading


def _describe_metadata(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    folder = getattr(args[0], "path", None)
    path = os.path.join(folder, ".metadata") if isinstance(folder, os.PathLike) else ""  # noqa: PTH118 - no Path object on the recording side
    if os.path.isfile(path):  # noqa: PTH113 - as above
        stage.file(path)
        stage.size = os.stat(path).st_size  # noqa: PTH116 - as above


def _describe_data(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    reader, plan = args[0], argument(args, kwargs, 1, "plan")
    folder = os.fspath(reader.path) if isinstance(reader.path, str | os.PathLike) else ""
    files = {getattr(reader.storage_data.get(item.storage_index), "relative_path", None) for item in plan.items}
    for file in sorted(file for file in files if file):
        stage.file(os.path.join(folder, file))  # noqa: PTH118 - as above
    mapped = any(file.endswith(".safetensors") for file in stage.paths)
    stage.attributes |= {names.OPERATION_COUNT: len(plan.items), names.READ_METHOD: "mmap" if mapped else "buffered"}
    if mapped:
        stage.attributes[names.FORMAT] = "safetensors"


class _Copy(threading.local):
    """The copy that runs in this thread."""

    call: Any = None
    size: int | None = None

    def begin(self, target: Any) -> None:
        """A reader was told where a piece goes, and copies it there now."""
        self.end(None)
        frame = recorder.frame()
        if frame is None or frame.stage is None:
            return
        row = _COPY if target.device.type in _HOST else _MOVE
        self.size = tensors.size(target)
        self.call = recorder.begin_fine(row.stage, row, (target,))

    def end(self, size: int | None, error: BaseException | None = None) -> None:
        """The copy is over."""
        call, self.call = self.call, None
        if call is not None:
            recorder.end_fine(call, size, error)


_copy = _Copy()
_COPY = Target(module=_PACKAGE, attribute="", kind=Kind.FINE, stage=names.LOAD_STATE_DICT, why="a piece copied to where it belongs")
_MOVE = Target(
    module=_PACKAGE,
    attribute="",
    kind=Kind.FINE,
    stage=names.TO_DEVICE,
    destination=lambda args, kwargs: settled(named(args[0].device)),
    why="a piece copied to where it belongs, on a device",
)


def _replace_resolve(original: Any) -> Any:
    @functools.wraps(original)
    def resolve_tensor(*args: Any, **kwargs: Any) -> Any:
        target = original(*args, **kwargs)
        if recorder.active:
            safely(_copy.begin, target)
        return target

    return resolve_tensor


def _replace_commit(original: Any) -> Any:
    @functools.wraps(original)
    def commit_tensor(*args: Any, **kwargs: Any) -> Any:
        if _copy.call is not None:
            safely(_copy.end, _copy.size)
        return original(*args, **kwargs)

    return commit_tensor


class _Reading(RowRecording):
    """Reading all pieces, of which one may have failed while it was copied."""

    def close(self, frame: Any, result: Any, error: BaseException | None, args: Args, kwargs: Kwargs) -> None:
        """Close the copy, too."""
        safely(_copy.end, None, error)
        super().close(frame, result, error, args, kwargs)


def _data(module: str, reader: str) -> Target:
    """The row of a reader's `read_data`."""
    row = Target(module=module, attribute=f"{reader}.read_data", stage=names.DESERIALIZE, describe=_describe_data, why="")
    return Target(
        module=module,
        attribute=row.attribute,
        kind=Kind.REPLACE,
        replace=lambda original: recorded(original, _Reading(row)),
        why="all pieces of this rank: one stage, however many tensors",
    )


def _metadata(module: str, reader: str) -> Target:
    return Target(
        module=module,
        attribute=f"{reader}.read_metadata",
        stage=names.READ,
        describe=_describe_metadata,
        why="which tensor is in which file",
    )


def _plan(method: str) -> Target:
    return Target(
        module=f"{_PACKAGE}.default_planner",
        attribute=f"DefaultLoadPlanner.{method}",
        stage=names.INITIALIZE,
        why="decides what this rank reads, and makes the tensors that the program did not bring",
    )


def _quiet(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.opens = False  # type: ignore[union-attr] # a stage; who saves a checkpoint plans, too


def _root(attribute: str, why: str, *aliases: str) -> Target:
    return Target(
        module=f"{_PACKAGE}.state_dict_loader",
        attribute=attribute,
        aliases=aliases,
        kind=Kind.ROOT,
        describe=_describe_root,
        when=outermost("torch"),
        why=why,
    )


# State dicts of sharded models


def _describe_model(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.module = argument(args, kwargs, 0, "model")


ROWS = (
    _root("load", "a checkpoint into a state dict", f"{_PACKAGE}:load"),
    _root("_load_state_dict", "where the older functions and `dcp_to_torch_save` end"),
    Target(
        module=f"{_PACKAGE}._storage_utils",
        attribute="_storage_setup",
        stage=names.INITIALIZE,
        why="finds the reader for a path, and imports file systems for it",
    ),
    _metadata(f"{_PACKAGE}.filesystem", "FileSystemReader"),
    _metadata(f"{_PACKAGE}.hf_storage", "HuggingFaceStorageReader"),
    _data(f"{_PACKAGE}.filesystem", "FileSystemReader"),
    _data(f"{_PACKAGE}.hf_storage", "HuggingFaceStorageReader"),
    Target(
        module=f"{_PACKAGE}.utils",
        attribute="_DistWrapper.reduce_scatter",
        stage=names.INITIALIZE,
        describe=_quiet,
        why="all ranks agree on what each of them reads: the first ones wait here for the last",
    ),
    _plan("set_up_planner"),
    _plan("create_local_plan"),
    _plan("create_global_plan"),
    _plan("finish_plan"),
    Target(
        module=f"{_PACKAGE}.default_planner",
        attribute="_EmptyStateDictLoadPlanner.set_up_planner",
        stage=names.INITIALIZE,
        why="makes every tensor of the checkpoint",
    ),
    Target(
        module=f"{_PACKAGE}.default_planner",
        attribute="DefaultLoadPlanner.resolve_tensor",
        kind=Kind.REPLACE,
        replace=_replace_resolve,
        why="a copy begins",
    ),
    Target(
        module=f"{_PACKAGE}.default_planner",
        attribute="DefaultLoadPlanner.commit_tensor",
        kind=Kind.REPLACE,
        replace=_replace_commit,
        why="it has ended",
    ),
    Target(
        module=f"{_PACKAGE}.state_dict",
        attribute="_load_model_state_dict",
        stage=names.LOAD_STATE_DICT,
        describe=_describe_model,
        why="a state dict into a model that may be sharded: `set_model_state_dict`, `set_state_dict`, FSDP",
    ),
)
