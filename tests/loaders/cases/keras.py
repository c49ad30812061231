"""Keras 3 on jax: whole models and weights alone, as `.keras` and as `.h5`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from pathlib import Path

_LAYERS, _WIDTH = 8, 1536


def _model() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(_WIDTH, name=f"dense{index}") for index in range(_LAYERS)]
    model = keras.Sequential([keras.Input((_WIDTH,)), *layers])
    model.compile(loss="mse")
    return model


def _size(model: Any) -> Truth:
    size = sum(weight.numpy().nbytes for weight in model.weights)
    return {"load_state_dict": size, "deserialize": size}


def _write(folder: Path) -> Truth:
    model = _model()
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    return _size(model)


def _write_legacy(folder: Path) -> Truth:
    model = _model()
    model.save(folder / "model.h5")
    return _size(model)


def _weights(model: Any) -> Any:
    return type(model).__name__, [(weight.path, weight.numpy()) for weight in model.weights]


def _load_model(folder: Path) -> Any:
    import keras

    return _weights(keras.saving.load_model(folder / "model.keras", compile=False))


def _load_legacy(folder: Path) -> Any:
    import keras

    return _weights(keras.models.load_model(folder / "model.h5", compile=False))


def _load_weights(folder: Path) -> Any:
    model = _model()
    model.load_weights(folder / "model.weights.h5")
    return _weights(model)


def _wrong(folder: Path) -> Any:
    import keras

    keras.utils.set_random_seed(0)  # its weights are in the message
    model = keras.Sequential([keras.Input((_WIDTH,)), keras.layers.Dense(3)])
    try:
        model.load_weights(folder / "model.weights.h5")
    except ValueError as error:
        raise ValueError(str(error)[:100]) from None  # the rest names variables that are numbered anew


def _case(name: str, load: Any, stages: tuple[str, ...] = ("deserialize", "load_state_dict"), **more: Any) -> Case:
    known: dict[str, Any] = {"library": "keras", "write": _write, "loader": "keras", "needs": ("keras", "jax", "h5py")}
    return Case(name=name, load=load, stages=stages, environment={"KERAS_BACKEND": "jax"}, **(known | more))


CASES = [
    _case("load_model, .keras", _load_model, ("initialize", "deserialize", "load_state_dict")),
    _case("load_model, .h5", _load_legacy, ("initialize", "deserialize", "load_state_dict"), write=_write_legacy),
    _case("load_weights", _load_weights),
    _case("load_weights of another model", _wrong, ("load_state_dict",), sizes=lambda _: {}, raises="ValueError"),
]
