"""Keras 3 on jax and on TensorFlow: whole models and weights alone, as `.keras` and as `.h5`."""

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


def _write_exported(folder: Path) -> Truth:
    model = _model()
    model.export(folder / "exported", verbose=False)
    folder /= "exported"
    kept = next((folder / "variables").glob("*.data-*")).stat().st_size  # each weight twice: Keras exports them under two names
    return {"deserialize": kept + (folder / "saved_model.pb").stat().st_size, "load_state_dict": kept}


def _load_exported(folder: Path) -> Any:
    import keras
    import numpy as np

    layer = keras.layers.TFSMLayer(folder / "exported", call_endpoint="serve")
    return [np.asarray(layer(np.ones((2, _WIDTH), np.float32))), *(weight.numpy() for weight in layer.weights)]


_ALL = ("initialize", "deserialize", "load_state_dict")
_ON_JAX: dict[str, Any] = {"needs": ("keras", "jax", "h5py"), "environment": {"KERAS_BACKEND": "jax"}}
_ON_TENSORFLOW: dict[str, Any] = {
    "needs": ("keras", "tensorflow", "h5py"),
    "environment": {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
}


def _case(name: str, load: Any, stages: tuple[str, ...] = ("deserialize", "load_state_dict"), **more: Any) -> Case:
    known: dict[str, Any] = {"library": "keras", "write": _write, "loader": "keras"}
    return Case(name=name, load=load, stages=stages, **(known | more))


def _cases(where: str, on: dict[str, Any]) -> list[Case]:
    return [
        _case(f"load_model, .keras{where}", _load_model, _ALL, **on),
        _case(f"load_model, .h5{where}", _load_legacy, _ALL, write=_write_legacy, **on),
        _case(f"load_weights{where}", _load_weights, **on),
        _case(f"load_weights of another model{where}", _wrong, ("load_state_dict",), sizes=lambda _: {}, raises="ValueError", **on),
    ]


CASES = [
    *_cases("", _ON_JAX),
    *_cases(", on TensorFlow", _ON_TENSORFLOW),
    _case("TFSMLayer", _load_exported, _ALL, write=_write_exported, loader="tensorflow", **_ON_TENSORFLOW),
]
