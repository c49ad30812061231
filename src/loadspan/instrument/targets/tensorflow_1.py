"""
TensorFlow 1, which is in TensorFlow 2 as `tf.compat.v1`: graphs whose variables an operation in the graph restores.

The values never come to Python. Which tensors are read stands in the graph, and how large they are in the checkpoint's index.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.described import model_name
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import roots, tensorflow

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_IMPL, _IN_2 = "tensorflow.python.saved_model.loader_impl", "tensorflow.python.saved_model.load_v1_in_v2"
_RESTORE = "RestoreV2"
_ON_THE_WAY = frozenset({"NoOp", "Assign", "AssignVariableOp", "Identity", "Reshape", "Cast", _RESTORE})
"""Kinds of operations between the one that restores all and those that read: all that assigns."""


def _read_by(operations: list[Any]) -> set[str]:
    """Names of the tensors that running *operations* reads out of a checkpoint."""
    todo, seen = deque(operations), set(operations)
    found: set[str] = set()
    while todo:
        step = todo.popleft()
        if step.type == _RESTORE:
            listed = step.inputs[1].op
            found.update(name.decode() for name in listed.get_attr("value").string_val if listed.type == "Const")
            continue
        before = {*step.control_inputs, *(tensor.op for tensor in step.inputs)} - seen
        before = {other for other in before if other.type in _ON_THE_WAY}
        seen |= before
        todo.extend(before)
    return found


def _size(operations: list[Any], prefix: Any) -> int | None:
    """Bytes that running *operations* restores of the checkpoint *prefix*; None where it is not on this machine."""
    if not tensorflow.files(prefix):
        return None
    index = sys.modules["tensorflow.python.util._pywrap_checkpoint_reader"].CheckpointReader(os.fsencode(prefix))
    shapes, kinds = index.get_variable_to_shape_map(), index.get_variable_to_dtype_map()
    return sum(int(math.prod(shapes[name]) * kinds[name].size) for name in _read_by(operations) & shapes.keys())


def _describe_model(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    folder = args[0]._export_dir  # noqa: SLF001 - `export_dir` is not in all releases
    frame.known_as(model_name(folder))  # type: ignore[union-attr] # a root is a load
    frame.file(folder)


def _measure_restored(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    restore = argument(args, kwargs, 1, "sess").graph.as_graph_element(args[0].saver_def.restore_op_name)
    frame.size = _size([restore], argument(args, kwargs, 2, "save_path"))


def _describe_variables(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    tensorflow.of_prefix(frame, args[0]._variables_path)  # noqa: SLF001 - where else would it be


def _measure_variables(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    restore = argument(args, kwargs, 2, "restore_from_saver")
    if restore is not None:
        frame.size = _size(restore.graph.get_operations(), args[0]._variables_path)  # noqa: SLF001 - as above


ROWS = (
    Target(
        module=_IMPL,
        attribute="SavedModelLoader.load",
        kind=Kind.ROOT,
        describe=_describe_model,
        why="a SavedModel into a session",
    ),
    Target(module=_IMPL, attribute="SavedModelLoader.load_graph", stage=names.INITIALIZE, when=roots.part, why="builds its graph"),
    Target(
        module="tensorflow.python.training.saver",
        attribute="Saver.restore",
        stage=names.LOAD_STATE_DICT,
        describe=tensorflow.of_checkpoint(2, "save_path"),
        measure=_measure_restored,
        why="runs what restores the variables of a session",
    ),
    Target(
        module=_IN_2,
        attribute="_EagerSavedModelLoader.load",
        stage=names.INITIALIZE,
        when=roots.part,
        why="makes functions of a graph that TensorFlow 1 has saved",
    ),
    Target(
        module=_IN_2,
        attribute="_EagerSavedModelLoader.restore_variables",
        stage=names.LOAD_STATE_DICT,
        when=roots.part,
        describe=_describe_variables,
        measure=_measure_variables,
        why="runs what restores its variables",
    ),
)
