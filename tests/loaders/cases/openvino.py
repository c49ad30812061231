"""OpenVINO: its own format and ONNX, read and compiled in two steps and in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from case import Case, Truth

from cases import onnxruntime

if TYPE_CHECKING:
    from pathlib import Path


def _write(folder: Path) -> Truth:
    import onnx
    import openvino

    onnx.save(onnxruntime.model(), folder / "model.onnx")
    openvino.save_model(openvino.convert_model(folder / "model.onnx"), folder / "model.xml", compress_to_fp16=False)
    size = (folder / "model.xml").stat().st_size + (folder / "model.bin").stat().st_size
    return {"deserialize": size, "onnx": (folder / "model.onnx").stat().st_size}


def _run(compiled: Any) -> Any:
    import numpy as np

    return compiled(np.ones((1, 1536), np.float32))[0]


def _core() -> Any:
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1})
    return core


def _two_steps(folder: Path) -> Any:
    core = _core()
    return _run(core.compile_model(core.read_model(folder / "model.xml"), "CPU"))


def _one_step(folder: Path) -> Any:
    return _run(_core().compile_model(folder / "model.xml", "CPU"))


def _onnx(folder: Path) -> Any:
    core = _core()
    return _run(core.compile_model(core.read_model(folder / "model.onnx"), "CPU"))


def _missing(folder: Path) -> Any:
    _core().read_model(folder / "none.xml")


def _case(name: str, load: Any, **more: Any) -> Case:
    known: dict[str, Any] = {
        "loader": "openvino",
        "stages": ("deserialize", "compile"),
        "sizes": lambda truth: {"deserialize": truth["deserialize"]},
    }
    return Case(name=name, library="openvino", write=_write, load=load, needs=("openvino", "onnx"), **(known | more))


CASES = [
    _case("read_model and compile_model", _two_steps),
    _case("compile_model of a file", _one_step, stages=("compile",), sizes=lambda truth: {"compile": truth["deserialize"]}),
    _case("read_model of ONNX", _onnx, sizes=lambda truth: {"deserialize": truth["onnx"]}),
    _case("no such file", _missing, stages=("deserialize",), sizes=lambda _: {}, raises="RuntimeError"),
]
