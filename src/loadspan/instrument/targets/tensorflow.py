"""
TensorFlow 2: SavedModels and checkpoints.

A checkpoint is a prefix: an index and some files of data, which an operation of TensorFlow's own reads, the tensors of a device in one call
(`deserialize`), before they are assigned (`load_state_dict`). What has no variable yet is read when it gets one, at first use for example.
"""

from __future__ import annotations

import glob
import os
import sys
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import arrays, roots

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_LIBRARY = "tensorflow"
_CHECKPOINT, _READER = "tensorflow.python.checkpoint.checkpoint", "tensorflow.python.training.py_checkpoint_reader"
_FORMAT = "tensor_bundle"
"""What TensorFlow calls the format of its checkpoints."""


def files(prefix: Any) -> list[str]:
    """The files of data of the checkpoint *prefix*, where they are on this machine."""
    return sorted(glob.glob(f"{glob.escape(os.fsdecode(prefix))}.data-*"))  # noqa: PTH207 - no Path object on the recording side


def of_checkpoint(position: int, name: str) -> Any:
    """`describe` of a stage that reads the checkpoint whose prefix is the argument at *position* or called *name*."""

    def describe(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
        prefix = argument(args, kwargs, position, name)
        if hasattr(prefix, "numpy"):
            prefix = prefix.numpy()  # a tensor of text
        of_prefix(frame, prefix)

    return describe


def of_prefix(frame: OpenStage | OpenLoad, prefix: Any) -> None:
    """Say that a stage is about the files of the checkpoint *prefix*."""
    for file in files(prefix):
        frame.file(file, _FORMAT)


def _eager() -> bool:
    """Whether operations run when they are called; else they are put into a graph, and nothing is loaded."""
    return bool(sys.modules["tensorflow.python.eager.context"].executing_eagerly())


def _restores(args: Args, kwargs: Kwargs) -> bool:
    return argument(args, kwargs, 1, "save_path") is not None and _eager()


def _late(args: Args, kwargs: Kwargs) -> bool:
    return _eager() and recorder.same(recorder.frame(), names.LOAD_STATE_DICT) is None


def _opens(args: Args, kwargs: Kwargs) -> bool:
    return _restores(args, kwargs) and roots.by(_LIBRARY) is None


def _measure_read(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    frame.size = sum(arrays.nbytes(tensor) or 0 for tensor in result)


def _measure_restored(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    """Bytes of the variables that are there already, of those that the checkpoint has; the others are read when they are made."""
    checkpoint = getattr(result, "_checkpoint", None)
    found = getattr(checkpoint, "object_by_proto_id", None)
    if found is not None:
        nodes = checkpoint.object_graph_proto.nodes  # type: ignore[union-attr] # it has the other
        frame.size = sum(arrays.nbytes(thing) or 0 for place, thing in list(found.items()) if nodes[place].attributes)


def _describe_late(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    of_prefix(frame, args[0].checkpoint.save_path_string)


def _describe_graph(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    folder = argument(args, kwargs, 0, "export_dir")
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        path = os.path.join(os.fsdecode(folder), name)  # noqa: PTH118 - as above
        if (size := arrays.file_size(path)) is not None:
            frame.file(path, "saved_model")
            frame.size = size
            return


def _reader_path(args: Args, kwargs: Kwargs) -> str | None:
    return next(iter(files(argument(args, kwargs, 0, "filepattern"))), None)


def _checkpoint(attribute: str, why: str) -> Target:
    return Target(module=_CHECKPOINT, attribute=attribute, kind=Kind.ROOT, when=_opens, describe=arrays.root(1, "save_path"), why=why)


ROWS = (
    Target(
        module="tensorflow.python.saved_model.load",
        attribute="load_partial",
        kind=Kind.ROOT,
        describe=arrays.root(0, "export_dir"),
        why="every way to load a SavedModel ends here",
    ),
    Target(
        module="tensorflow.python.saved_model.loader_impl",
        attribute="parse_saved_model_with_debug_info",
        stage=names.DESERIALIZE,
        describe=_describe_graph,
        why="reads the graph, whose constants may be weights",
    ),
    Target(
        module="tensorflow.python.saved_model.load",
        attribute="Loader.__init__",
        stage=names.INITIALIZE,
        describe=roots.made,
        why="makes the functions and objects of the graph; their variables are restored in it",
    ),
    _checkpoint("Checkpoint.restore", "a checkpoint into objects that the caller has"),
    _checkpoint("Checkpoint.read", "the same of one that `write` has written"),
    _checkpoint("CheckpointV1.restore", "the same of `tf.compat.v1`"),
    Target(
        module=_CHECKPOINT,
        attribute="TrackableSaver.restore",
        stage=names.LOAD_STATE_DICT,
        when=_restores,
        describe=of_checkpoint(1, "save_path"),
        measure=_measure_restored,
        why="where all of them, and SavedModels, are matched with a checkpoint and get their values",
    ),
    Target(
        module=_CHECKPOINT,
        attribute="Checkpoint._maybe_create_save_counter",
        stage=names.INITIALIZE,
        when=roots.part,
        why="a variable that counts checkpoints: the first operation of a program waits for TensorFlow to set itself up",
    ),
    Target(
        module="tensorflow.python.checkpoint.restore",
        attribute="CheckpointPosition.restore",
        stage=names.DESERIALIZE,
        when=_late,
        describe=_describe_late,
        why="what is made after its checkpoint was restored gets its value now",
    ),
    Target(
        module="tensorflow.python.ops.gen_io_ops",
        attribute="restore_v2",
        stage=names.DESERIALIZE,
        when=lambda args, kwargs: _eager(),
        describe=of_checkpoint(0, "prefix"),
        measure=_measure_read,
        why="the operation that reads tensors out of a checkpoint",
    ),
    Target(
        module=_READER,
        attribute="NewCheckpointReader",
        kind=Kind.FINE,
        stage=names.DESERIALIZE,
        when=roots.outermost(_LIBRARY),
        path=_reader_path,
        facts=lambda args, kwargs: {names.FORMAT: _FORMAT},
        why="opens a checkpoint for who reads it tensor by tensor",
    ),
    Target(
        module=_READER,
        attribute="CheckpointReader.get_tensor",
        kind=Kind.FINE,
        stage=names.DESERIALIZE,
        when=roots.outermost(_LIBRARY),
        size=lambda result, args, kwargs: getattr(result, "nbytes", None),
        label=lambda args, kwargs: os.fsdecode(argument(args, kwargs, 1, "tensor_str")),
        facts=lambda args, kwargs: {names.FORMAT: _FORMAT},
        why="a tensor of it, as a numpy array",
    ),
)
