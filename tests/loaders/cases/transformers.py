"""transformers: models from all kinds of files, cast and not, merged, unpacked, offloaded; pipelines; adapters; what fails."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from case import Case, Truth, is_here

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LAYERS = 9
_CASTS_APART = is_here("transformers>=4.50")
"""Older versions cast a tensor in the line that puts it into the model, where nothing tells the one from the other."""

_ONCE_CAST = ("deserialize", "initialize", "load_state_dict", *(("convert",) if _CASTS_APART else ()))


# Files


def _llama(**options: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 8000}
    torch.manual_seed(0)
    config = LlamaConfig(**(sizes | {"num_hidden_layers": _LAYERS, "tie_word_embeddings": True} | options))
    return LlamaForCausalLM(config).bfloat16()


def _truth(model: Any, file_type: int = 2) -> Truth:
    """Of weights in two bytes each that become float32."""
    import torch  # noqa: F401 - before the model is asked

    count = sum(parameter.numel() for parameter in model.parameters())
    return {"deserialize": file_type * count, "convert": 4 * count, "load_state_dict": 4 * count}


def _write(folder: Path) -> Truth:
    model = _llama()
    model.save_pretrained(folder)
    return _truth(model)


def _write_shards(folder: Path) -> Truth:
    model = _llama()
    model.save_pretrained(folder, max_shard_size="30MB")
    return _truth(model)


def _write_bin(folder: Path) -> Truth:
    import torch

    model = _llama(tie_word_embeddings=False)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return _truth(model)


def _write_experts(folder: Path) -> Truth:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 4000}
    model = MixtralForCausalLM(MixtralConfig(num_hidden_layers=3, num_local_experts=8, **sizes)).bfloat16()
    model.save_pretrained(folder)
    size = sum(parameter.nbytes for parameter in model.parameters())
    experts = 3 * 8 * 3 * 512 * 1024 * 2
    # Two halves are stacked, then put together; the third is stacked.
    return {"deserialize": size, "load_state_dict": size, "convert": experts + experts * 2 // 3}


def _write_gguf(folder: Path) -> Truth:
    import gguf
    import numpy as np

    layers, hidden, inner, heads, words = 3, 768, 2048, 12, 4000
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(words)
    generator, packed, plain, norm = np.random.default_rng(0), 0, 0, 0
    shapes = {"attn_q": (hidden, hidden), "attn_k": (hidden, hidden), "attn_v": (hidden, hidden), "attn_output": (hidden, hidden)}
    shapes |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    tensors = {f"blk.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in shapes.items()}
    tensors |= {"token_embd.weight": (words, hidden), "output.weight": (words, hidden)}
    for name, shape in tensors.items():
        data = gguf.quants.quantize(generator.standard_normal(shape, dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        packed, plain = packed + data.nbytes, plain + shape[0] * shape[1] * 4
    norms = [f"blk.{layer}.{name}_norm.weight" for layer in range(layers) for name in ("attn", "ffn")]
    for name in (*norms, "output_norm.weight"):
        writer.add_tensor(name, np.ones(hidden, dtype=np.float32))
        packed, norm = packed + hidden * 4, norm + hidden * 4
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"deserialize": packed, "convert": plain, "load_state_dict": plain + norm}


def _write_adapter(folder: Path) -> Truth:
    from peft import LoraConfig, get_peft_model

    model = _llama()
    model.save_pretrained(folder / "base")
    wanted = LoraConfig(r=64, target_modules=["q_proj", "v_proj", "gate_proj", "up_proj"], init_lora_weights=False)
    adapted = get_peft_model(model.float(), wanted)
    adapted.save_pretrained(folder / "adapter")
    return {"merge_lora": sum(value.nbytes for key, value in adapted.state_dict().items() if "lora_" in key)}


def _write_bert(folder: Path) -> Truth:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(140_000))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
    model = BertModel(BertConfig(vocab_size=len(words), num_hidden_layers=2, **sizes)).half()
    model.save_pretrained(folder)
    return _truth(model)


def _write_code(folder: Path) -> Truth:
    """A model whose class is in the folder itself."""
    truth = _write(folder)
    (folder / "own.py").write_text("from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    pass\n")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("{", '{\n  "auto_map": {"AutoModelForCausalLM": "own.Own"},', 1))
    return truth


def _write_nothing(folder: Path) -> Truth:
    _llama().config.save_pretrained(folder)
    return {}


def _write_other_sizes(folder: Path) -> Truth:
    model = _llama()
    model.save_pretrained(folder)
    _llama(vocab_size=7000).config.save_pretrained(folder)
    return {}


# The user's lines


def _auto(folder: Path, **options: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **({"torch_dtype": torch.float32} | options))


def _concrete(folder: Path) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(str(folder), torch_dtype=torch.float64)


def _first_use(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(16)[None]).logits


def _offloaded(folder: Path) -> Any:
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{index}": "disk" if index > 2 else "cpu" for index in range(_LAYERS)}
    return _auto(folder, device_map=places, offload_folder=str(folder.parent / "offloaded"))


def _head(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_pretrained(folder, torch_dtype=torch.float32)


def _pipeline(folder: Path) -> Any:
    import torch
    from transformers import pipeline

    return pipeline("feature-extraction", model=str(folder), torch_dtype=torch.float64).model


def _adapter(folder: Path) -> Any:
    model = _auto(folder / "base")
    model.load_adapter(str(folder / "adapter"))
    return model


def _case(*, sizes: Callable[[Truth], Truth] = dict, **more: Any) -> Case:
    def seen(truth: Truth) -> Truth:
        return {stage: size for stage, size in sizes(truth).items() if stage != "convert" or _CASTS_APART}

    return Case(**{"library": "transformers", "loader": "transformers", "needs": ("torch", "transformers"), "sizes": seen} | more)


def _mapped_twice(truth: Truth) -> Truth:
    """Older versions map a single file for its names first, and forget what they have mapped, where memory is to be saved."""
    return truth if _CASTS_APART else {**truth, "deserialize": 2 * truth["deserialize"]}


def _deserialized(truth: Truth) -> Truth:
    """What is not cast: each tensor as the file has it, and the same bytes put into the model."""
    return {"deserialize": truth["deserialize"], "load_state_dict": truth["deserialize"]}


def _double(truth: Truth) -> Truth:
    """What is cast to float64, which takes longer: there is little else to see in such a load."""
    return {**truth, "convert": 2 * truth["convert"], "load_state_dict": 2 * truth["load_state_dict"]}


_ORDERED = {"PYTHONHASHSEED": "0"}
"""It prints what it has in a set."""


def _unknown(_: Truth) -> Truth:
    return {}


_OFFLOADS = ("torch", "transformers", "accelerate")
_NEW = ("torch", "transformers>=5")
_PICKLED = ("torch" if not is_here("transformers>=4.50") else "torch>=2.6", "transformers")
"""Newer versions refuse to have an older torch unpickle anything."""
CASES = [
    _case(name="from_pretrained, one file, cast", write=_write, load=_auto, stages=_ONCE_CAST),
    _case(
        name="from_pretrained, not cast: bytes arrive at first use",
        write=_write,
        load=partial(_auto, torch_dtype="auto"),
        use=_first_use,
        stages=_ONCE_CAST[:3],
        sizes=_deserialized,
    ),
    _case(name="from_pretrained of the class itself", write=_write, load=_concrete, stages=_ONCE_CAST, sizes=_double),
    _case(name="from_pretrained, sharded", write=_write_shards, load=_auto, stages=_ONCE_CAST),
    _case(name="from_pretrained, .bin", write=_write_bin, load=_auto, stages=_ONCE_CAST, needs=_PICKLED),
    _case(
        name="from_pretrained without threads",
        write=_write,
        load=_auto,
        stages=_ONCE_CAST,
        environment={"HF_DEACTIVATE_ASYNC_LOAD": "1"},
        needs=_NEW,
    ),
    _case(
        name="from_pretrained without mmap",
        write=_write_shards,
        load=partial(_auto, disable_mmap=True),
        stages=("read", *_ONCE_CAST),
        needs=_NEW,
    ),
    _case(
        name="from_pretrained, device_map auto",
        write=_write,
        load=partial(_auto, device_map="auto"),
        stages=_ONCE_CAST,
        sizes=_mapped_twice,
        needs=_OFFLOADS,
    ),
    _case(
        name="from_pretrained, device_map with disk",
        write=_write,
        load=_offloaded,
        stages=_ONCE_CAST[:3],
        sizes=_unknown,
        environment=_ORDERED,
        needs=_OFFLOADS,
    ),
    _case(
        name="from_pretrained, experts merged",
        write=_write_experts,
        load=partial(_auto, torch_dtype="auto"),
        stages=_ONCE_CAST,
        needs=_NEW,
    ),
    _case(
        name="from_pretrained, GGUF",
        write=_write_gguf,
        load=partial(_auto, gguf_file="model.gguf"),
        stages=_ONCE_CAST,
        needs=("torch", "transformers", "gguf", "accelerate"),
    ),
    _case(name="from_pretrained, code of its own", write=_write_code, load=partial(_auto, trust_remote_code=True), stages=_ONCE_CAST),
    _case(
        name="from_pretrained, a head that the checkpoint lacks",
        write=_write_bert,
        load=_head,
        stages=_ONCE_CAST,
        sizes=lambda truth: {key: truth[key] for key in ("deserialize", "convert")},
        environment=_ORDERED,
    ),
    _case(name="pipeline", write=_write_bert, load=_pipeline, stages=_ONCE_CAST, sizes=_double),
    _case(
        name="model.load_adapter",
        write=_write_adapter,
        load=_adapter,
        stages=(*_ONCE_CAST, "merge_lora"),
        loads=2,
        needs=("torch", "transformers", "peft"),
    ),
    _case(name="from_pretrained, no file", write=_write_nothing, load=_auto, stages=("initialize",), raises="OSError"),
    _case(
        name="from_pretrained, a size that does not fit",
        write=_write_other_sizes,
        load=_auto,
        stages=_ONCE_CAST,
        sizes=_unknown,
        raises="RuntimeError",
    ),
]
