"""peft: LoRAs put into a Llama of many small layers, merged, combined and swapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from pathlib import Path

_WIDTH, _LAYERS = 256, 24
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def _base() -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).eval()


def _write(folder: Path) -> Truth:
    import peft
    import torch

    sizes = {}
    for seed, (name, rank) in enumerate((("style", 16), ("subject", 8))):
        model = peft.get_peft_model(_base(), peft.LoraConfig(r=rank, target_modules=_TARGETS, task_type="CAUSAL_LM"))
        torch.manual_seed(seed)
        found = [value for key, value in model.named_parameters() if "lora_" in key]
        for value in found:
            value.data.normal_(std=0.05)
        model.save_pretrained(folder / name)
        sizes[name] = sum(value.nbytes for value in found)
    return sizes


def _inject(folder: Path) -> Any:
    import peft

    return peft.PeftModel.from_pretrained(_base(), folder / "style", adapter_name="style")


def _both(folder: Path) -> Any:
    model = _inject(folder)
    model.load_adapter(str(folder / "subject"), adapter_name="subject")
    return model


def _set_adapter(folder: Path) -> Any:
    model = _both(folder)
    model.set_adapter("subject")
    return model


def _merge_and_unload(folder: Path) -> Any:
    return _inject(folder).merge_and_unload()


def _merge_again(folder: Path) -> Any:
    model = _inject(folder)
    model.base_model.merge_adapter()
    model.base_model.merge_adapter()
    model.base_model.unmerge_adapter()
    return model


def _combine(folder: Path) -> Any:
    model = _both(folder)
    model.base_model.add_weighted_adapter(["style", "subject"], [0.5, 0.5], "mixed", combination_type="cat")
    return model


def _swap(folder: Path) -> Any:
    from peft.utils.hotswap import hotswap_adapter

    model = _inject(folder)
    hotswap_adapter(model, str(folder / "style"), adapter_name="style")
    return model


def _write_wrong(folder: Path) -> Truth:
    from safetensors.torch import load, save_file

    _write(folder)
    path = folder / "style" / "adapter_model.safetensors"
    state = load(path.read_bytes())
    key = next(iter(state))
    state[key] = state[key][:, :-1].contiguous()
    save_file(state, path)
    return {}


_SEEN = ("deserialize", "initialize", "load_state_dict", "merge_lora")


def _case(name: str, load: Any, sizes: Any, write: Any = _write, **more: Any) -> Case:
    needs = ("torch", "transformers", "peft", *more.pop("needs", ()))
    return Case(name=name, library="peft", write=write, load=load, sizes=sizes, loader="peft", stages=_SEEN, needs=needs, **more)


def _of(style: int, subject: int = 0, merges: int = 0) -> Any:
    """Times that each adapter was brought; and times that the first went into or out of the weights besides."""

    def sizes(truth: Truth) -> Truth:
        brought = style * truth["style"] + subject * truth["subject"]
        return {"deserialize": brought, "merge_lora": brought + merges * truth["style"]}

    return sizes


CASES = [
    _case("from_pretrained", _inject, _of(1)),
    _case("load_adapter, set_adapter", _set_adapter, _of(1, 1)),
    _case("merge_and_unload", _merge_and_unload, _of(1, merges=1)),
    _case("merge_adapter twice, unmerge_adapter", _merge_again, _of(1, merges=2)),
    _case("add_weighted_adapter", _combine, lambda truth: {"merge_lora": 2 * (truth["style"] + truth["subject"])}),
    _case("hotswap_adapter", _swap, _of(2), needs=("peft>=0.15",)),
    _case("from_pretrained, of another shape", _inject, lambda _: {}, write=_write_wrong, raises="RuntimeError"),
]
