"""
accelerate: checkpoints put into a model and spread over devices, memory and disk.

`load_checkpoint_in_model` reads a file, sets every tensor and forgets the file: all of it that is not reading is `load_state_dict`.
`set_module_tensor_to_device` is what the hooks of an offloaded model call for every tensor of every forward: it is left alone. What such
a model moves at inference is in `accelerate_hooks`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument.calls import recorded
from loadspan.instrument.described import model_name
from loadspan.instrument.destination import arrived
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import tensors
from loadspan.instrument.targets.roots import by, outermost

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_LIBRARY = "accelerate"
_HOST = ("cpu", "disk", "meta")


def _describe_root(load: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    load.module = argument(args, kwargs, 0, "model")
    load.known_as(model_name(argument(args, kwargs, 1, "checkpoint")))  # type: ignore[union-attr] # a root


def _describe_state(load: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    load.known_as(model_name(argument(args, kwargs, 1, "input_dir")))  # type: ignore[union-attr] # a root


# A checkpoint into a model


class _IntoModel:
    """`load_checkpoint_in_model`: a load, unless it is part of one of accelerate's, and a `load_state_dict` in it."""

    def open(self, args: Args, kwargs: Kwargs) -> Any:
        """Open both."""
        if not recorder.active:
            return None
        load = None if by(_LIBRARY) is not None else recorder.open_load({names.LOADER: _LIBRARY}, name=None)
        if load is not None:
            safely(_describe_root, load, args, kwargs)

        def describe(stage: OpenStage) -> None:
            stage.library = _LIBRARY
            stage.module = argument(args, kwargs, 0, "model")

        return load, safely(recorder.open_stage, names.LOAD_STATE_DICT, describe)

    def close(self, frame: Any, result: Any, error: BaseException | None, args: Args, kwargs: Kwargs) -> None:
        """Close both. The stage's bytes are those of the checkpoint, where no `load_state_dict` inside has told its own."""
        load, stage = frame
        if stage is not None:
            if stage.inner_size is None:
                safely(self._size, stage)
            recorder.close_stage(stage, error)
        if load is not None:
            recorder.close_load(load, error)

    @staticmethod
    def _size(stage: OpenStage) -> None:
        one_by_one = stage.tallies.get(names.DESERIALIZE)
        stage.size = stage.brought + (0 if one_by_one is None else one_by_one.so_far()) or None
        stage.rated = False  # tensors change hands; whether bytes move, none of them tells


def _describe_again(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    folder = argument(args, kwargs, 2, "offload_folder")
    for name in argument(args, kwargs, 1, "index") or ():
        stage.file(os.path.join(folder, f"{name}.dat"))  # noqa: PTH118 - no Path object on the recording side
    stage.size = sum(os.stat(path).st_size for path in stage.paths)  # noqa: PTH116 - as above
    stage.attributes[names.READ_METHOD] = "mmap"


def _size_of_weight(result: Any, args: Args, kwargs: Kwargs) -> int | None:
    return tensors.size(argument(args, kwargs, 0, "weight"))


def _path_of_weight(args: Args, kwargs: Kwargs) -> str | None:
    folder = argument(args, kwargs, 2, "offload_folder")
    return os.fspath(folder) if isinstance(folder, str | os.PathLike) else None


# Over devices


class _Spread:
    """
    `dispatch_model`, `cpu_offload` and `disk_offload`: hooks are attached, and tensors may go to devices.

    They do not tell which: where they are is compared before and after. What goes to the meta device was put aside.
    """

    def open(self, args: Args, kwargs: Kwargs) -> Any:
        """Open the stage."""
        if not recorder.active:
            return None
        model = argument(args, kwargs, 0, "model")
        targets = argument(args, kwargs, 1, "device_map")
        wanted = targets.values() if isinstance(targets, dict) else (targets,)
        moves = any(device is not None and str(device).partition(":")[0] not in _HOST for device in wanted)

        def describe(stage: OpenStage) -> None:
            stage.library = _LIBRARY
            stage.module = model

        stage = recorder.open_stage(names.TO_DEVICE if moves else names.INITIALIZE, describe)
        if stage is None:
            return None
        return stage, safely(self._named, model) or {}

    @staticmethod
    def _named(model: Any) -> dict[str, Any]:
        return {name: tensor.device for part in (model.named_parameters(), model.named_buffers()) for name, tensor in part}

    def close(self, frame: Any, result: Any, error: BaseException | None, args: Args, kwargs: Kwargs) -> None:
        """Close it, named by what happened."""
        stage, before = frame
        if error is None:
            safely(self._compare, stage, before, argument(args, kwargs, 0, "model"))
        recorder.close_stage(stage, error)

    @staticmethod
    def _compare(stage: OpenStage, before: dict[str, Any], model: Any) -> None:
        moved: dict[int, Any] = {}
        for part in (model.named_parameters(), model.named_buffers()):
            for name, tensor in part:
                if tensor.device.type not in _HOST and before.get(name) != tensor.device:
                    moved[id(tensor)] = tensor
        if moved:
            stage.name = names.TO_DEVICE
            stage.size = tensors.sizes(list(moved.values()))
            device = next(iter(moved.values())).device
            stage.attributes[names.DEVICE_TYPE] = device.type
            stage.destination = arrived(stage.destination, device)
        elif stage.inner_count == 0:
            stage.name = names.INITIALIZE


def _spread(attribute: str, why: str) -> Target:
    return Target(
        module="accelerate.big_modeling",
        attribute=attribute,
        kind=Kind.REPLACE,
        replace=lambda original: recorded(original, _Spread()),
        why=why,
    )


def _plan(attribute: str) -> Target:
    return Target(
        module="accelerate.utils.modeling", attribute=attribute, stage=names.INITIALIZE, why="decides which part of a model goes where"
    )


ROWS = (
    Target(
        module="accelerate.big_modeling",
        attribute="load_checkpoint_and_dispatch",
        kind=Kind.ROOT,
        describe=_describe_root,
        when=outermost(_LIBRARY),
        why="a checkpoint into a model that is spread over devices",
    ),
    Target(
        module="accelerate.utils.modeling",
        attribute="load_checkpoint_in_model",
        kind=Kind.REPLACE,
        replace=lambda original: recorded(original, _IntoModel()),
        why="the same without the spreading",
    ),
    Target(
        module="accelerate.accelerator",
        attribute="Accelerator.load_state",
        kind=Kind.ROOT,
        describe=_describe_state,
        when=outermost(_LIBRARY),
        why="models, optimizers and schedulers of a training that goes on",
    ),
    _plan("get_balanced_memory"),
    _plan("infer_auto_device_map"),
    Target(
        module="accelerate.utils.offload",
        attribute="offload_weight",
        kind=Kind.FINE,
        stage=names.CACHE,
        size=_size_of_weight,
        path=_path_of_weight,
        label=lambda args, kwargs: str(argument(args, kwargs, 1, "weight_name")),
        alone=lambda args, kwargs: False,
        why="weights written to files, from which each forward reads them",
    ),
    Target(
        module="accelerate.utils.modeling",
        attribute="load_offloaded_weights",
        stage=names.READ,
        describe=_describe_again,
        why="a state dict that was written to files to save memory is read back",
    ),
    _spread("dispatch_model", "hooks are attached, tensors go to their devices"),
    _spread("cpu_offload", "weights stay in memory, and go to the device at each forward"),
    _spread("disk_offload", "weights go to files, from which each forward reads them"),
)
