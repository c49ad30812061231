"""TensorFlow: SavedModels, checkpoints into objects and tensor by tensor, and what TensorFlow 1 has saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from pathlib import Path

_LAYERS, _WIDTH = 12, 2048
_SIZE = _LAYERS * _WIDTH * _WIDTH * 4


def _values() -> list[Any]:
    import numpy as np

    generator = np.random.default_rng(0)
    return [generator.standard_normal((_WIDTH, _WIDTH), np.float32) / _WIDTH for _ in range(_LAYERS)]


def _model(values: list[Any] | None = None) -> Any:
    import tensorflow as tf

    class Model(tf.Module):  # type: ignore[misc] # TensorFlow has no types
        def __init__(self) -> None:
            super().__init__()
            self.layers = [tf.Variable(value) for value in values or [tf.zeros((_WIDTH, _WIDTH))] * _LAYERS]

        @tf.function(input_signature=[tf.TensorSpec((None, _WIDTH), tf.float32)])  # type: ignore[untyped-decorator] # as above
        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = tf.matmul(x, layer)
            return x

    return Model()


def _write(folder: Path) -> Truth:
    import tensorflow as tf

    tf.saved_model.save(_model(_values()), folder / "saved")
    return {"deserialize": _SIZE + (folder / "saved" / "saved_model.pb").stat().st_size, "load_state_dict": _SIZE}


def _write_checkpoint(folder: Path) -> Truth:
    import tensorflow as tf

    tf.train.Checkpoint(model=_model(_values())).save(folder / "one")
    return {"deserialize": _SIZE, "load_state_dict": _SIZE}


def _write_weights(folder: Path) -> Truth:
    from safetensors.numpy import save_file

    save_file({f"layer{place}": value for place, value in enumerate(_values())}, folder / "model.safetensors")
    return {"deserialize": _SIZE}


def _graph() -> tuple[Any, Any]:
    from tensorflow.compat import v1

    layers = [v1.get_variable(f"layer{place}", (_WIDTH, _WIDTH), use_resource=True) for place in range(_LAYERS)]
    asked = answer = v1.placeholder("float32", (None, _WIDTH))
    for layer in layers:
        answer = v1.matmul(answer, layer)
    return asked, answer


def _write_session(folder: Path) -> Truth:
    from tensorflow.compat import v1

    with v1.Graph().as_default(), v1.Session() as session:
        asked, answer = _graph()
        for variable, value in zip(v1.global_variables(), _values(), strict=True):
            variable.load(value, session)
        v1.saved_model.simple_save(session, str(folder / "saved"), {"asked": asked}, {"answer": answer})
        v1.train.Saver().save(session, str(folder / "one"))
    return {"deserialize": (folder / "saved" / "saved_model.pb").stat().st_size, "load_state_dict": _SIZE}


def _saved(folder: Path) -> Any:
    import tensorflow as tf

    model = tf.saved_model.load(folder / "saved")
    return [model(tf.ones((2, _WIDTH))).numpy(), *_numbers(model)]


def _saved_by_1(folder: Path) -> Any:
    import tensorflow as tf

    model = tf.saved_model.load(folder / "saved")
    answers = model.signatures["serving_default"](asked=tf.ones((2, _WIDTH)))
    return [answers["answer"].numpy(), *(variable.numpy() for variable in model.variables)]


def _numbers(model: Any) -> Any:
    return [layer.numpy() for layer in model.layers]


def _restored(folder: Path) -> Any:
    import tensorflow as tf

    model = _model()
    tf.train.Checkpoint(model=model).restore(str(folder / "one-1"))
    return _numbers(model)


def _read(folder: Path) -> Any:
    import tensorflow as tf

    model = _model()
    tf.train.Checkpoint(model=model).read(folder / "one-1").expect_partial()
    return _numbers(model)


def _managed(folder: Path) -> Any:
    import tensorflow as tf

    model = _model()
    tf.train.CheckpointManager(tf.train.Checkpoint(model=model), folder, 1).restore_or_initialize()
    return _numbers(model)


def _restored_late(folder: Path) -> Any:
    import tensorflow as tf

    model, layers = tf.Module(), [tf.Variable(tf.zeros((_WIDTH, _WIDTH))) for _ in range(_LAYERS)]
    model.layers = layers[: _LAYERS // 2]
    tf.train.Checkpoint(model=model).restore(str(folder / "one-1"))
    for layer in layers[_LAYERS // 2 :]:
        model.layers.append(layer)  # and gets its value
    return _numbers(model)


def _one_by_one(folder: Path) -> Any:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(folder / "one-1")
    return {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map()) if "/layers/" in name}


def _not_there(folder: Path) -> Any:
    import tensorflow as tf

    return tf.train.Checkpoint(model=_model()).restore(str(folder / "two"))


def _weights(folder: Path) -> Any:
    from safetensors.tensorflow import load_file

    return {name: tensor.numpy() for name, tensor in load_file(folder / "model.safetensors").items()}


def _session_saved(folder: Path) -> Any:
    from tensorflow.compat import v1

    with v1.Graph().as_default(), v1.Session() as session:
        v1.saved_model.load(session, ["serve"], str(folder / "saved"))
        return session.run(v1.global_variables())


def _session_restored(folder: Path) -> Any:
    from tensorflow.compat import v1

    with v1.Graph().as_default(), v1.Session() as session:
        _graph()
        v1.train.Saver().restore(session, str(folder / "one"))
        return session.run(v1.global_variables())


def _case(name: str, load: Any, stages: tuple[str, ...] = ("deserialize", "load_state_dict"), **more: Any) -> Case:
    known: dict[str, Any] = {"library": "tensorflow-cpu", "write": _write_checkpoint, "loader": "tensorflow", "needs": ("tensorflow",)}
    return Case(name=name, load=load, stages=stages, environment={"TF_CPP_MIN_LOG_LEVEL": "3"}, **(known | more))


def _restored_half(truth: Truth) -> Truth:
    return {"deserialize": truth["deserialize"], "load_state_dict": truth["load_state_dict"] // 2}


def _restored_alone(truth: Truth) -> Truth:
    return {"load_state_dict": truth["load_state_dict"]}


CASES = [
    _case("saved_model.load", _saved, ("deserialize", "initialize", "load_state_dict"), write=_write),
    _case("Checkpoint.restore", _restored),
    _case("Checkpoint.read", _read),
    _case("CheckpointManager.restore_or_initialize", _managed),
    _case("Checkpoint.restore before all layers are there", _restored_late, sizes=_restored_half, loads=2),
    _case("load_checkpoint, tensor by tensor", _one_by_one, ("deserialize",), sizes=lambda truth: {"deserialize": truth["deserialize"]}),
    _case("Checkpoint.restore of what is not there", _not_there, (), sizes=lambda _: {}, raises="NotFoundError"),
    _case("saved_model.load of TensorFlow 1", _saved_by_1, ("deserialize", "initialize", "load_state_dict"), write=_write_session),
    _case("v1.saved_model.load", _session_saved, ("initialize", "load_state_dict"), write=_write_session, sizes=_restored_alone),
    _case("v1.train.Saver.restore", _session_restored, ("load_state_dict",), write=_write_session, sizes=_restored_alone),
    _case(
        "safetensors.tensorflow.load_file", _weights, ("deserialize",), library="safetensors", loader="safetensors", write=_write_weights
    ),
]
