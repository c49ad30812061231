"""Checkpoints of jax: orbax, flax and safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from pathlib import Path

_ARRAYS, _SHAPE = 36, (1024, 1024)


def _tree() -> Any:
    import jax.numpy as jnp
    import numpy as np

    random = np.random.default_rng(0)
    return {f"layer{index}": {"kernel": jnp.asarray(random.random(_SHAPE, np.float32))} for index in range(_ARRAYS)}


def _truth() -> int:
    return _ARRAYS * _SHAPE[0] * _SHAPE[1] * 4


def _write_orbax(folder: Path) -> Truth:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve() / "checkpoint", _tree())
    return {"deserialize": _truth()}


def _orbax(folder: Path) -> Any:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.resolve() / "checkpoint")


def _orbax_pytree(folder: Path) -> Any:
    import orbax.checkpoint as ocp

    return ocp.PyTreeCheckpointer().restore(folder.resolve() / "checkpoint")


def _write_manager(folder: Path) -> Truth:
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(folder.resolve()) as manager:
        manager.save(3, args=ocp.args.StandardSave(_tree()))
    return {"deserialize": _truth()}


def _manager(folder: Path) -> Any:
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(folder.resolve()) as manager:
        return manager.restore(3, args=ocp.args.StandardRestore())


def _write_flax(folder: Path) -> Truth:
    import flax.serialization

    data = flax.serialization.to_bytes(_tree())
    (folder / "model.msgpack").write_bytes(data)
    return {"read": len(data), "deserialize": _truth(), "load_state_dict": _truth()}


def _flax(folder: Path) -> Any:
    import flax.serialization
    import jax

    target = jax.tree.map(lambda array: array * 0, _tree())
    with (folder / "model.msgpack").open("rb") as file:
        return flax.serialization.from_bytes(target, file.read())


def _write_safetensors(folder: Path) -> Truth:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({name: np.asarray(layer["kernel"]) for name, layer in _tree().items()}, folder / "model.safetensors")
    return {"deserialize": _truth()}


def _safetensors_flax(folder: Path) -> Any:
    from safetensors.flax import load_file

    return dict(sorted(load_file(folder / "model.safetensors").items()))


def _safetensors_numpy(folder: Path) -> Any:
    from safetensors.numpy import load_file

    return dict(sorted(load_file(folder / "model.safetensors").items()))


def _case(name: str, library: str, load: Any, write: Any, stages: tuple[str, ...], **more: Any) -> Case:
    known: dict[str, Any] = {"loader": library.partition("-")[0], "needs": ("jax", library.partition("-")[0])}
    return Case(name=name, library=library, load=load, write=write, stages=stages, **(known | more))


_ONE = ("deserialize",)
CASES = [
    _case("StandardCheckpointer", "orbax-checkpoint", _orbax, _write_orbax, _ONE),
    _case("PyTreeCheckpointer", "orbax-checkpoint", _orbax_pytree, _write_orbax, _ONE),
    _case("CheckpointManager", "orbax-checkpoint", _manager, _write_manager, _ONE),
    _case("serialization.from_bytes", "flax", _flax, _write_flax, ("read", "deserialize", "load_state_dict"), loader="flax"),
    _case("flax.load_file", "safetensors", _safetensors_flax, _write_safetensors, _ONE),
    _case("numpy.load_file", "safetensors", _safetensors_numpy, _write_safetensors, _ONE),
]
