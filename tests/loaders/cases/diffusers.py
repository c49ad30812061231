"""
diffusers: a small Stable Diffusion and a small Flux transformer, whole, in shards, from one file; and LoRAs put into them.

Of many layers: how long a warm load takes is a matter of layers more than of bytes, which are mapped and not read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from case import Case, Truth, held, is_here

if TYPE_CHECKING:
    from pathlib import Path

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_BARE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_LORA, _OTHER_LORA = "style.safetensors", "subject.safetensors"
_HOT = "unet-"  # before the names of those that may be swapped while the model is in use: of the denoiser alone
_DEEP, _WIDTH = 30, 128


def _bytes(model: Any) -> int:
    return sum(int(value.nbytes) for value in model.state_dict().values())


def _unet() -> Any:
    import diffusers

    return diffusers.UNet2DConditionModel(
        block_out_channels=(_WIDTH, _WIDTH, 2 * _WIDTH),
        layers_per_block=2,
        transformer_layers_per_block=_DEEP // 3,
        sample_size=16,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=_WIDTH,
        attention_head_dim=8,
    )


def _vae() -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=3,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def _text_encoder() -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        hidden_size=_WIDTH, intermediate_size=4 * _WIDTH, num_attention_heads=4, num_hidden_layers=_DEEP, vocab_size=1000
    )
    return transformers.CLIPTextModel(config)


def _tokenizer(folder: Path) -> Any:
    import transformers

    words = ["<|startoftext|>", "<|endoftext|>", *(f"w{index}</w>" for index in range(998))]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def _scheduler() -> Any:
    import diffusers

    return diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)


def _pipeline(folder: Path) -> Any:
    import diffusers
    import torch

    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        unet=_unet(), vae=_vae(), text_encoder=_text_encoder(), tokenizer=_tokenizer(folder), scheduler=_scheduler(), **_BARE
    )


def _parts(pipeline: Any) -> Any:
    """What is compared of a pipeline."""
    return {"kind": type(pipeline).__qualname__, **{name: part for name, part in pipeline.components.items() if hasattr(part, "modules")}}


def _write_pipeline(folder: Path) -> Truth:
    (folder / "words").mkdir()
    _pipeline(folder / "words").save_pretrained(folder / "pipeline")
    size = held(folder)
    # Older versions of transformers map the text encoder for the names in it first.
    again = 0 if is_here("transformers>=4.50") else held(folder / "pipeline" / "text_encoder")
    return {"deserialize": size + again, "load_state_dict": size}


def _load_pipeline(folder: Path) -> Any:
    import diffusers

    return _parts(diffusers.StableDiffusionPipeline.from_pretrained(folder / "pipeline", **_BARE))


def _load_any_pipeline(folder: Path) -> Any:
    import diffusers
    import torch

    return _parts(diffusers.DiffusionPipeline.from_pretrained(str(folder / "pipeline"), torch_dtype=torch.bfloat16, **_BARE))


def _load_broken_pipeline(folder: Path) -> Any:
    import diffusers

    return diffusers.StableDiffusionPipeline.from_pretrained(folder / "pipeline", **_BARE)


def _write_broken_pipeline(folder: Path) -> Truth:
    _write_pipeline(folder)
    (folder / "pipeline" / "unet" / _WEIGHTS).unlink()
    return {}


def _load_model(folder: Path) -> Any:
    import diffusers

    return diffusers.UNet2DConditionModel.from_pretrained(folder / "pipeline", subfolder="unet")


def _load_slow_model(folder: Path) -> Any:
    import diffusers

    return diffusers.UNet2DConditionModel.from_pretrained(folder / "pipeline" / "unet", low_cpu_mem_usage=False, device_map=None)


def _of(part: str) -> Any:
    """The true bytes of one component, which `_write_parts` has written down."""
    return lambda truth: {"deserialize": truth[part], "load_state_dict": truth[part]}


def _write_parts(folder: Path) -> Truth:
    _write_pipeline(folder)
    return {part: held(folder / "pipeline" / part) for part in ("unet", "vae", "text_encoder")}


# Flux: a transformer in shards


def _write_flux(folder: Path) -> Truth:
    import diffusers
    import torch

    torch.manual_seed(1)
    model = diffusers.FluxTransformer2DModel(
        num_layers=40,
        num_single_layers=80,
        attention_head_dim=16,
        num_attention_heads=8,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(4, 6, 6),
        in_channels=16,
    )
    model.save_pretrained(folder / "flux", max_shard_size="20MB")
    size = _bytes(model)
    return {"deserialize": size, "load_state_dict": size}


def _load_flux(folder: Path) -> Any:
    import diffusers

    return diffusers.FluxTransformer2DModel.from_pretrained(str(folder / "flux"))


def _load_flux_half(folder: Path) -> Any:
    import diffusers
    import torch

    return diffusers.FluxTransformer2DModel.from_pretrained(str(folder / "flux"), torch_dtype=torch.bfloat16, disable_mmap=True)


def _write_short_flux(folder: Path) -> Truth:
    _write_flux(folder)
    path = next((folder / "flux").glob("*00002*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])
    return {}


# One file


_ORIGINAL = (("proj_in", "patchify_proj"), ("time_embed", "adaln_single"), ("norm_q", "q_norm"), ("norm_k", "k_norm"))


def ltx(layers: int, seed: int) -> Any:
    """A small transformer of LTX."""
    import diffusers
    import torch

    torch.manual_seed(seed)
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=4, attention_head_dim=96, cross_attention_dim=384, num_layers=layers
    )


def original(name: str) -> str:
    """What its makers call a tensor of LTX."""
    for ours, theirs in _ORIGINAL:
        name = name.replace(ours, theirs)
    return name


def _write_single(folder: Path) -> Truth:
    """LTX, as its makers name its tensors: from_single_file renames them."""
    from safetensors.torch import save_file

    model = ltx(60, seed=2)
    model.save_config(folder / "ltx")
    save_file({f"model.diffusion_model.{original(key)}": value for key, value in model.state_dict().items()}, folder / "ltx.safetensors")
    size = _bytes(model)
    return {"deserialize": size, "load_state_dict": size}


def _load_single(folder: Path) -> Any:
    import diffusers

    return diffusers.LTXVideoTransformer3DModel.from_single_file(str(folder / "ltx.safetensors"), config=str(folder / "ltx"))


# LoRAs


def _lora(model: Any, rank: int, seed: int, wanted: tuple[str, ...]) -> dict[str, Any]:
    import torch

    torch.manual_seed(seed)
    found = {}
    for name, module in model.named_modules():
        if name.endswith(wanted):
            found[f"{name}.lora_A.weight"] = torch.randn(rank, module.in_features) / 10
            found[f"{name}.lora_B.weight"] = torch.randn(module.out_features, rank) / 10
    return found


def _write_loras(folder: Path) -> Truth:
    from safetensors.torch import save_file

    pipeline = _write_and_keep(folder)
    sizes = {}
    for seed, (name, rank) in enumerate(((_LORA, 16), (_OTHER_LORA, 8))):
        of_unet = _lora(pipeline.unet, rank, seed, ("to_q", "to_k", "to_v", "to_out.0"))
        of_text = _lora(pipeline.text_encoder, rank, seed, ("q_proj", "v_proj"))
        state = {f"unet.{key}": value for key, value in of_unet.items()} | {f"text_encoder.{key}": value for key, value in of_text.items()}
        save_file(state, folder / name)
        save_file({f"unet.{key}": value for key, value in of_unet.items()}, folder / f"{_HOT}{name}")
        sizes[name] = sum(value.nbytes for value in state.values())
    return sizes


def _write_and_keep(folder: Path) -> Any:
    (folder / "words").mkdir()
    pipeline = _pipeline(folder / "words")
    pipeline.save_pretrained(folder / "pipeline")
    return pipeline


def _bare_pipeline(folder: Path) -> Any:
    """Made, not loaded: the loads of these cases are of LoRAs."""
    return _pipeline(folder / "words")


def _load_lora(folder: Path) -> Any:
    pipeline = _bare_pipeline(folder)
    pipeline.load_lora_weights(str(folder), weight_name=_LORA, adapter_name="style")
    return _parts(pipeline)


def _load_lora_dict(folder: Path) -> Any:
    from safetensors.torch import load

    pipeline = _bare_pipeline(folder)
    pipeline.load_lora_weights(load((folder / _LORA).read_bytes()))
    return _parts(pipeline)


def _fuse(folder: Path) -> Any:
    pipeline = _bare_pipeline(folder)
    pipeline.load_lora_weights(str(folder), weight_name=_LORA, adapter_name="style")
    pipeline.fuse_lora(lora_scale=0.5)
    return _parts(pipeline)


def _switch(folder: Path) -> Any:
    """What a server does that merges one LoRA after the other."""
    pipeline = _bare_pipeline(folder)
    pipeline.load_lora_weights(str(folder), weight_name=_LORA, adapter_name="style")
    pipeline.fuse_lora()
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(str(folder), weight_name=_OTHER_LORA, adapter_name="subject")
    pipeline.fuse_lora()
    return _parts(pipeline)


def _set_adapters(folder: Path) -> Any:
    pipeline = _bare_pipeline(folder)
    pipeline.load_lora_weights(str(folder), weight_name=_LORA, adapter_name="style")
    pipeline.load_lora_weights(str(folder), weight_name=_OTHER_LORA, adapter_name="subject")
    pipeline.set_adapters(["style", "subject"], [0.5, 0.7])
    pipeline.delete_adapters("style")
    return _parts(pipeline)


def _hotswap(folder: Path) -> Any:
    pipeline = _bare_pipeline(folder)
    pipeline.unet.enable_lora_hotswap(target_rank=16)
    for name in (_LORA, _OTHER_LORA):
        pipeline.load_lora_weights(str(folder), weight_name=_HOT + name, adapter_name="one", hotswap=name == _OTHER_LORA)
    return _parts(pipeline)


def _wrong_lora(folder: Path) -> Any:
    from safetensors.torch import load_file

    pipeline = _bare_pipeline(folder)
    state = load_file(folder / _LORA)
    key = next(key for key in state if key.endswith("lora_A.weight"))
    state[key] = state[key][:, :-1].contiguous()
    pipeline.load_lora_weights(state, adapter_name="style")
    return _parts(pipeline)


_NEEDS = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
_SEEN = ("deserialize", "initialize", "load_state_dict")
_LORA_SEEN = ("deserialize", "initialize", "load_state_dict", "merge_lora")


def _case(name: str, write: Any, load: Any, stages: tuple[str, ...] = _SEEN, **more: Any) -> Case:
    needs = (*_NEEDS, *more.pop("needs", ()))
    return Case(name=name, library="diffusers", write=write, load=load, loader="diffusers", stages=stages, needs=needs, **more)


def _lora_case(name: str, load: Any, sizes: Any, stages: tuple[str, ...] = _LORA_SEEN, **more: Any) -> Case:
    needs = (*_NEEDS, "peft", *more.pop("needs", ()))
    return Case(
        name=name, library="diffusers", write=_write_loras, load=load, sizes=sizes, loader="diffusers", stages=stages, needs=needs, **more
    )


CASES = [
    _case("pipeline", _write_pipeline, _load_pipeline),
    _case("pipeline, cast", _write_pipeline, _load_any_pipeline, sizes=lambda truth: {"deserialize": truth["deserialize"]}),
    _case("pipeline, a component without weights", _write_broken_pipeline, _load_broken_pipeline, ("initialize",), raises="OSError"),
    _case("model", _write_parts, _load_model, sizes=_of("unet")),
    _case("model, low_cpu_mem_usage=False", _write_parts, _load_slow_model, sizes=_of("unet")),
    _case("model in shards", _write_flux, _load_flux),
    _case("model in shards, in parallel", _write_flux, _load_flux, environment={"HF_ENABLE_PARALLEL_LOADING": "YES"}),
    _case("model in shards, cast, without mmap", _write_flux, _load_flux_half, needs=("diffusers>=0.35",)),
    _case("model in shards, one cut off", _write_short_flux, _load_flux, raises="OSError", needs=("diffusers>=0.35",)),
    _case("model from a single file, of other names", _write_single, _load_single, (*_SEEN, "convert"), needs=("diffusers>=0.33",)),
    _lora_case("load_lora_weights", _load_lora, lambda truth: {"merge_lora": truth[_LORA], "deserialize": truth[_LORA]}),
    _lora_case("load_lora_weights of a state dict", _load_lora_dict, lambda truth: {"merge_lora": truth[_LORA]}),
    _lora_case("fuse_lora", _fuse, lambda truth: {"merge_lora": 2 * truth[_LORA], "deserialize": truth[_LORA]}),
    _lora_case(
        "LoRAs switched: fuse, unfuse, unload, load, fuse",
        _switch,
        lambda truth: {"merge_lora": 3 * truth[_LORA] + 2 * truth[_OTHER_LORA], "deserialize": truth[_LORA] + truth[_OTHER_LORA]},
    ),
    _lora_case(
        "set_adapters, delete_adapters",
        _set_adapters,
        lambda truth: {"merge_lora": truth[_LORA] + truth[_OTHER_LORA], "deserialize": truth[_LORA] + truth[_OTHER_LORA]},
    ),
    _lora_case("hotswap", _hotswap, lambda _: {}, needs=("diffusers>=0.35",)),
    _lora_case("load_lora_weights, of another shape", _wrong_lora, lambda _: {}, raises="RuntimeError"),
]
