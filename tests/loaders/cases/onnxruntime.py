"""ONNX Runtime: sessions of a file, of bytes, of a model whose weights are in a file beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from pathlib import Path

_LAYERS, _WIDTH = 12, 1536


def model() -> Any:
    """A chain of matrix products."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.random((_WIDTH, _WIDTH), np.float32) / _WIDTH, f"weight{index}") for index in range(_LAYERS)]
    nodes = [helper.make_node("MatMul", [f"x{index}", f"weight{index}"], [f"x{index + 1}"]) for index in range(_LAYERS)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _WIDTH]) for name in ("x0", f"x{_LAYERS}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(found)
    return found


def write(folder: Path) -> Truth:
    """A model in one file."""
    import onnx

    path = folder / "model.onnx"
    onnx.save(model(), path)
    return {"deserialize": path.stat().st_size}


def _write_beside(folder: Path) -> Truth:
    import onnx

    path = folder / "model.onnx"
    onnx.save_model(model(), path, save_as_external_data=True, location="weights.bin")
    return {"deserialize": path.stat().st_size + (folder / "weights.bin").stat().st_size}


def _write_broken(folder: Path) -> Truth:
    write(folder)
    with (folder / "model.onnx").open("r+b") as file:
        file.truncate(110_000_000)
    return {}


def _run(session: Any) -> Any:
    import numpy as np

    return session.run(None, {"x0": np.ones((1, _WIDTH), np.float32)})


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the same sum each time
    return options


def _file(folder: Path) -> Any:
    import onnxruntime

    return _run(onnxruntime.InferenceSession(folder / "model.onnx", _options()))


def _bytes(folder: Path) -> Any:
    import onnxruntime

    data = b"".join(_parts(folder / "model.onnx"))
    return _run(onnxruntime.InferenceSession(data, _options()))


def _parts(path: Path) -> Any:
    """Read past `open`: bytes that come from a file are a load of their own, before the session's."""
    import os

    descriptor = os.open(path, os.O_RDONLY)
    while part := os.read(descriptor, 1 << 24):
        yield part
    os.close(descriptor)


def _case(name: str, load: Any, **more: Any) -> Case:
    known: dict[str, Any] = {"write": write, "stages": ("deserialize", "compile"), "loader": "onnxruntime"}
    return Case(name=name, library="onnxruntime", load=load, needs=("onnxruntime", "onnx"), **(known | more))


CASES = [
    _case("InferenceSession of a file", _file),
    _case("InferenceSession, weights in a file beside", _file, write=_write_beside),
    _case("InferenceSession of bytes", _bytes),
    _case("InferenceSession of a part of a model", _file, write=_write_broken, stages=("deserialize",), raises="InvalidProtobuf"),
]
