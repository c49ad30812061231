"""Weights that are quantized while they are loaded, and checkpoints that are quantized already: torchao, bitsandbytes, quanto, GGUF."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from case import Case, Truth, held

from cases.diffusers import ltx, original

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LAYERS = 16
_ALL = ("deserialize", "initialize", "load_state_dict", "convert")
_BASE, _QUANTIZED = "base", "quantized"


def _llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 4000}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=_LAYERS, tie_word_embeddings=True, **sizes)).bfloat16()


def _linear(model: Any) -> list[tuple[int, int]]:
    """Shapes of the weights that are quantized: all but the head, which is tied to the embeddings."""
    import torch

    found = [module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]
    return [(module.out_features, module.in_features) for module in found]


# How each library is asked for, and the bytes that it makes of a weight of so many rows and columns.


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _eight_bits() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def _four_bits() -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)


def _quanto() -> Any:
    from transformers import QuantoConfig

    return QuantoConfig(weights="int8")


def _bytes_and_scales(rows: int, columns: int, scale: int) -> int:
    """A byte each, and for each row a scale of so many bytes, its zero point among them."""
    return rows * columns + scale * rows


def _halves_and_scales(rows: int, columns: int) -> int:
    """Two values a byte, a scale for 64 of them, and what the sixteen values stand for."""
    return rows * columns // 2 + 4 * (rows * columns // 64) + 4 * 16


def _write(folder: Path, quantized: Callable[[int, int], int], config: Callable[[], Any] | None) -> Truth:
    """The plain model, and unless that is impossible the quantized one."""
    from transformers import AutoModelForCausalLM

    model = _llama()
    model.save_pretrained(folder / _BASE)
    shapes = _linear(model)
    made = sum(quantized(*shape) for shape in shapes)
    kept = sum(parameter.nbytes for parameter in model.parameters()) - 2 * sum(rows * columns for rows, columns in shapes)
    if config is not None:
        asked = {"dtype": "auto", "quantization_config": config(), "device_map": "cpu"}
        AutoModelForCausalLM.from_pretrained(folder / _BASE, **asked).save_pretrained(folder / _QUANTIZED)
    return {_BASE: held(folder / _BASE), _QUANTIZED: held(folder / _QUANTIZED), "made": made, "kept": kept}


def _load(folder: Path, config: Callable[[], Any]) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / _BASE, dtype="auto", quantization_config=config(), device_map="cpu")


def _load_quantized(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / _QUANTIZED, device_map="cpu")


def _while_loading(truth: Truth) -> Truth:
    return {"deserialize": truth[_BASE], "convert": truth["made"], "load_state_dict": truth["made"] + truth["kept"]}


def _already(truth: Truth) -> Truth:
    return {"deserialize": truth[_QUANTIZED], "load_state_dict": truth["made"] + truth["kept"]}


def _of_transformers(library: str, name: str, package: str, config: Callable[[], Any], made: Callable[[int, int], int]) -> list[Case]:
    common: dict[str, Any] = {
        "library": library,
        "loader": "transformers",
        "needs": ("torch", f"transformers>={'4.50' if config is _quanto else '5'}", "accelerate", package),
    }
    saved = None if config is _quanto else config  # it saves no model
    write = partial(_write, quantized=made, config=saved)
    while_loading = Case(
        name=f"from_pretrained, {name} while it loads",
        write=write,
        load=partial(_load, config=config),
        stages=_ALL,
        sizes=_while_loading,
        **common,
    )
    already = Case(name=f"from_pretrained, {name} already", write=write, load=_load_quantized, stages=_ALL[:3], sizes=_already, **common)
    return [while_loading] if saved is None else [while_loading, already]


# diffusers


def _ltx() -> Any:
    return ltx(24, seed=1)


def _write_ltx(folder: Path) -> Truth:
    model = _ltx().bfloat16()
    model.save_pretrained(folder / _BASE)
    shapes = _linear(model)
    found = held(folder / _BASE)
    return {"deserialize": found, "load_state_dict": found, "values": sum(map(math.prod, shapes)), "rows": sum(rows for rows, _ in shapes)}


def _scaled(truth: Truth, scale: int) -> Truth:
    return {**{stage: truth[stage] for stage in ("deserialize", "load_state_dict")}, "convert": truth["values"] + scale * truth["rows"]}


def _torchao_of_diffusers() -> Any:
    import diffusers
    from torchao.quantization import Int8WeightOnlyConfig

    return diffusers.TorchAoConfig(Int8WeightOnlyConfig())


def _quanto_of_diffusers() -> Any:
    import diffusers

    return diffusers.QuantoConfig(weights_dtype="int8")


def _load_ltx(folder: Path, config: Callable[[], Any]) -> Any:
    import diffusers
    import torch

    return diffusers.LTXVideoTransformer3DModel.from_pretrained(folder / _BASE, quantization_config=config(), torch_dtype=torch.bfloat16)


_load_torchao, _load_quanto = (partial(_load_ltx, config=config) for config in (_torchao_of_diffusers, _quanto_of_diffusers))


def _write_gguf(folder: Path) -> Truth:
    """As its makers name its tensors; matrices in eight bits, the rest as it is."""
    import gguf

    model = _ltx()
    model.save_config(folder / "ltx")
    writer = gguf.GGUFWriter(folder / "ltx.gguf", "ltxv")
    size = 0
    for key, value in model.state_dict().items():
        data = value.numpy()
        packed = gguf.GGMLQuantizationType.Q8_0 if data.ndim == 2 and data.shape[1] % 32 == 0 else None
        stored = data if packed is None else gguf.quants.quantize(data, packed)
        writer.add_tensor(original(key), stored, raw_dtype=packed)
        size += stored.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"deserialize": size, "load_state_dict": size}


def _load_gguf(folder: Path) -> Any:
    import diffusers
    import torch

    config = diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32)
    kind, place = diffusers.LTXVideoTransformer3DModel, str(folder / "ltx")
    return kind.from_single_file(str(folder / "ltx.gguf"), quantization_config=config, config=place)


def _of_diffusers(name: str, write: Callable[[Path], Truth], load: Callable[[Path], Any], package: str, **more: Any) -> Case:
    needs = ("torch", "diffusers>=0.35", "accelerate", package)
    return Case(
        **{"name": name, "library": "diffusers", "write": write, "load": load, "loader": "diffusers", "stages": _ALL, "needs": needs} | more
    )


CASES = [
    *_of_transformers("torchao", "int8", "torchao", _torchao, partial(_bytes_and_scales, scale=5)),
    *_of_transformers("bitsandbytes", "int8", "bitsandbytes", _eight_bits, partial(_bytes_and_scales, scale=4)),
    *_of_transformers("bitsandbytes", "nf4", "bitsandbytes", _four_bits, _halves_and_scales),
    *_of_transformers("optimum-quanto", "int8", "optimum", _quanto, partial(_bytes_and_scales, scale=2)),
    _of_diffusers(
        "model, torchao int8 while it loads",
        _write_ltx,
        _load_torchao,
        "torchao",
        sizes=partial(_scaled, scale=5),
    ),
    _of_diffusers(
        "model, quanto int8 while it loads",
        _write_ltx,
        _load_quanto,
        "optimum",
        sizes=partial(_scaled, scale=2),
    ),
    _of_diffusers("model from a single file, GGUF", _write_gguf, _load_gguf, "gguf", stages=_ALL[:3]),
]
