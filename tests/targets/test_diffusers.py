"""diffusers: a pipeline is a load of loads; its weights, casts and LoRAs, on the real library and small models made here."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hosts import equal, failure

import loadspan
from loadspan import LoadspanInstrumentor
from loadspan.instrument import stages
from recorded import check, walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recorded import Spans

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what is not there is not looked for elsewhere
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what the libraries themselves import
    diffusers = pytest.importorskip("diffusers")
    import transformers
    from diffusers.loaders import lora_base
    from diffusers.models import model_loading_utils, modeling_utils

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # the libraries', about each other
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

WIDTH, RANK = 32, 4
BARE: Any = {"safety_checker": None, "feature_extractor": None, "tokenizer": None, "requires_safety_checker": False}


def unet() -> Any:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(WIDTH, WIDTH),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
    )


def pipeline() -> Any:
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=WIDTH, num_attention_heads=4, num_hidden_layers=2, vocab_size=100, eos_token_id=2
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    return diffusers.StableDiffusionPipeline(
        unet=unet(), vae=vae, text_encoder=transformers.CLIPTextModel(config), scheduler=scheduler, **BARE
    )


def lora(model: Any, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    state = {}
    for name, module in model.named_modules():
        if name.endswith(("to_q", "to_v")):
            state[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, module.in_features)
            state[f"unet.{name}.lora_B.weight"] = torch.randn(module.out_features, RANK)
    return state


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("diffusers")
    whole = pipeline()
    whole.save_pretrained(folder / "sd")
    whole.unet.save_pretrained(folder / "sharded", max_shard_size="200KB")
    save_file(lora(whole.unet, 1), folder / "style.safetensors")
    save_file(lora(whole.unet, 2), folder / "subject.safetensors")
    return folder


@pytest.fixture(autouse=True)
def each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SHORT", 0)  # a span for each stage, however short


def size(model: Any) -> int:
    return sum(int(value.nbytes) for value in model.state_dict().values())


def weights(whole: Any) -> Any:
    return {name: part for name, part in whole.components.items() if isinstance(part, torch.nn.Module)}


def child(tree: Any, name: str) -> list[Any]:
    return [span for span in tree["children"] if span["name"] == name]


def same(left: Any, right: Any) -> bool:
    return equal(weights(left), weights(right))


def test_a_pipeline_is_a_load_of_loads_of_its_components(recording: Callable[..., Spans], files: Path) -> None:
    bare = diffusers.StableDiffusionPipeline.from_pretrained(files / "sd", **BARE)
    spans = recording()
    found = diffusers.StableDiffusionPipeline.from_pretrained(files / "sd", **BARE)
    assert same(found, bare)
    load = spans.load()
    check(load)
    assert load["attributes"]["loadspan.loader"] == "diffusers"
    assert load["attributes"]["loadspan.model.name"] == load["attributes"]["gen_ai.request.model"] == "sd"
    made = [span for span in walk(load) if any(inner["name"] == "load model" for inner in span["children"])]
    inner = {span["attributes"]["loadspan.model.name"]: span["attributes"] for component in made for span in child(component, "load model")}
    assert {component["attributes"]["loadspan.made"] for component in made} == {type(part).__name__ for part in weights(bare).values()}
    assert {name: found["loadspan.loader"] for name, found in inner.items()} == {
        "unet": "diffusers",
        "vae": "diffusers",
        "text_encoder": "transformers",
    }
    sizes = {name: found["loadspan.size"] for name, found in inner.items()}
    times = sizes["text_encoder"] // size(bare.text_encoder)  # older releases of transformers open the file twice
    assert times in (1, 2)
    assert sizes == {name: size(part) * (times if name == "text_encoder" else 1) for name, part in weights(bare).items()}
    assert load["attributes"]["loadspan.size"] == sum(sizes.values())
    assert {"read", "initialize"} <= {span["name"] for span in load["children"]}


def test_weights_that_are_mapped_and_handed_over_have_no_throughput(spans: Spans, files: Path) -> None:
    model = diffusers.UNet2DConditionModel.from_pretrained(str(files / "sd"), subfolder="unet")
    load = spans.load()
    check(load)
    assert load["attributes"]["loadspan.model.name"] == "sd/unet"
    (whole,) = [span for span in child(load, "load_state_dict") if "loadspan.size" in span["attributes"]]
    assert whole["attributes"]["loadspan.size"] == size(model)
    assert {"loadspan.throughput", "loadspan.dtype"}.isdisjoint(whole["attributes"])
    (read,) = child(load, "deserialize")
    assert read["attributes"]["loadspan.size"] == size(model)
    assert read["attributes"]["loadspan.deferred"] is True


def test_a_cast_on_the_way_is_told_by_its_type(spans: Spans, files: Path) -> None:
    model = diffusers.UNet2DConditionModel.from_pretrained(files / "sd" / "unet", torch_dtype=torch.bfloat16)
    load = spans.load()
    (whole,) = [span for span in child(load, "load_state_dict") if "loadspan.size" in span["attributes"]]
    assert whole["attributes"]["loadspan.dtype"] == "bfloat16"
    assert whole["attributes"]["loadspan.throughput"] > 0
    assert whole["attributes"]["loadspan.size"] == 2 * size(model)


@pytest.mark.parametrize("parallel", [False, True])
def test_shards_are_of_one_load_whoever_reads_them(
    recording: Callable[..., Spans], files: Path, monkeypatch: pytest.MonkeyPatch, *, parallel: bool
) -> None:
    if parallel and not hasattr(model_loading_utils, "_load_shard_files_with_threadpool"):
        pytest.skip("this release reads them one after the other")
    monkeypatch.setattr(modeling_utils, "HF_ENABLE_PARALLEL_LOADING", parallel, raising=False)
    shards = sorted((files / "sharded").glob("*.safetensors"))
    assert len(shards) > 2
    bare = diffusers.UNet2DConditionModel.from_pretrained(files / "sharded")
    spans = recording()
    with loadspan.load("around"):
        found = diffusers.UNet2DConditionModel.from_pretrained(files / "sharded")
    assert equal(found, bare)
    (load,) = child(spans.load(), "load model")
    check(load)
    read = [span for span in walk(load) if span["name"] == "deserialize"]
    assert sum(span["attributes"]["loadspan.size"] for span in read) == size(bare)
    assert {span["attributes"]["file.path"] for span in read} == {str(path) for path in shards}
    filled = [span["attributes"].get("loadspan.size", 0) for span in walk(load) if span["name"] == "load_state_dict"]
    assert sum(filled) == size(bare)  # older releases have accelerate do it


def test_a_state_dict_that_is_not_mapped_is_loaded_without_accelerate(spans: Spans, files: Path) -> None:
    model = diffusers.UNet2DConditionModel.from_pretrained(files / "sd" / "unet", low_cpu_mem_usage=False)
    load = spans.load()
    assert load["attributes"]["loadspan.size"] == size(model)
    assert sum(span["attributes"].get("loadspan.size", 0) for span in child(load, "load_state_dict")) == size(model)


def test_a_component_that_fails_fails_as_it_did_in_a_load_that_did(recording: Callable[..., Spans], files: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(files / "sd", tmp_path / "sd")
    next((tmp_path / "sd" / "unet").glob("*.safetensors")).unlink()

    def call() -> Any:
        return diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "sd", **BARE)

    expected = failure(call)
    spans = recording()
    assert failure(call)[:2] == expected[:2]
    load = spans.load()
    assert load["error"] is not None
    (failed,) = [span for span in child(load, "initialize") if span["error"] is not None]
    assert [span["attributes"]["loadspan.model.name"] for span in child(failed, "load model") if span["error"] is not None] == ["unet"]


def test_what_is_built_outside_a_load_is_none(spans: Spans, files: Path) -> None:
    spans.set(min_size=0)
    config = diffusers.UNet2DConditionModel.load_config(files / "sd" / "unet")
    model = diffusers.UNet2DConditionModel.from_config(config)
    model.eval()
    model.state_dict()
    pipeline()
    assert spans.loads() == []


# LoRAs


def actions(tree: Any) -> list[tuple[Any, ...]]:
    """What was done with which LoRA: layers injected, merged and merged before, bytes of the LoRA and of the deltas."""
    keys = ("adapter.action", "adapter.name", "inject.layers", "merge.layers", "merge.repeated", "size", "merge.delta_size")
    return [tuple(span["attributes"].get(f"loadspan.{key}") for key in keys) for span in child(tree, "merge_lora")]


def served(whole: Any, files: Path) -> Any:
    """What a server does that merges one LoRA after the other."""
    whole.load_lora_weights(str(files), weight_name="style.safetensors", adapter_name="style")
    whole.fuse_lora()
    whole.fuse_lora()
    whole.unfuse_lora()
    whole.unload_lora_weights()
    whole.load_lora_weights(str(files), weight_name="subject.safetensors", adapter_name="subject")
    whole.set_adapters(["subject"])
    whole.delete_adapters("subject")
    return whole


def test_each_step_of_a_switch_of_loras_says_what_it_did_and_with_how_much(recording: Callable[..., Spans], files: Path) -> None:
    bare = served(pipeline(), files)
    spans = recording()
    whole = pipeline()
    with loadspan.load("switch"):
        served(whole, files)
    assert same(whole, bare)
    load = spans.loads()[-1]
    check(load)
    state = lora(whole.unet, 1)
    own, layers = sum(int(value.nbytes) for value in state.values()), len(state) // 2
    shapes = [(state[key.replace("lora_A", "lora_B")].shape[0], state[key].shape[1]) for key in state if "lora_A" in key]
    deltas = sum(4 * rows * columns for rows, columns in shapes)
    assert actions(load) == [
        ("load", "style", layers, None, None, own, None),
        ("merge", "style", None, layers, None, own, deltas),
        ("merge", "style", None, 0, layers, 0, None),
        ("unmerge", "style", None, layers, None, own, deltas),
        ("remove", None, None, None, None, None, None),
        ("load", "subject", layers, None, None, own, None),
        ("activate", "subject", None, None, None, None, None),
        ("remove", "subject", None, None, None, None, None),
    ]
    first = child(load, "merge_lora")[0]
    inner = {span["name"]: span["attributes"] for span in first["children"]}
    assert inner["deserialize"]["loadspan.size"] == inner["load_state_dict"]["loadspan.size"] == own
    assert inner["deserialize"]["file.path"] == str(files / "style.safetensors")
    assert inner["initialize"]["loadspan.inject.layers"] == layers
    assert len(list(walk(first))) < 8, "no span for each of the modules that were moved"


def test_a_switch_that_nobody_declared_is_one_load(spans: Spans, files: Path) -> None:
    spans.set(min_size=0)
    whole = pipeline()
    whole.load_lora_weights(str(files), weight_name="style.safetensors", adapter_name="style")
    whole.fuse_lora()
    load = spans.load()
    assert load["attributes"]["loadspan.loader"] == "diffusers"
    assert [action[0] for action in actions(load)] == ["load", "merge"]


def test_a_lora_in_memory_has_its_bytes(spans: Spans) -> None:
    whole = pipeline()
    state = lora(whole.unet, 1)
    with loadspan.load("memory"):
        whole.load_lora_weights(dict(state))
    (stage,) = child(spans.loads()[-1], "merge_lora")
    assert stage["attributes"]["loadspan.size"] == sum(int(value.nbytes) for value in state.values())
    assert "file.path" not in stage["attributes"]


def test_a_lora_of_one_model_is_seen_and_swapped_without_injection(spans: Spans) -> None:
    model = unet()
    if not hasattr(model, "load_lora_adapter"):
        pytest.skip("this release has no such method")
    with loadspan.load("model"):
        model.load_lora_adapter(lora(model, 1), prefix="unet", adapter_name="one")
        model.load_lora_adapter(lora(model, 2), prefix="unet", adapter_name="one", hotswap=True)
        model.fuse_lora()
        model.unfuse_lora()
    found = actions(spans.loads()[-1])
    layers = len(lora(model, 1)) // 2
    assert [action[:3] for action in found] == [
        ("load", "one", layers),
        ("swap", "one", None),
        ("merge", "one", None),
        ("unmerge", "one", None),
    ]


class OwnMixin(lora_base.LoraBaseMixin):  # type: ignore[misc] # the library has no types
    """Pipelines of somebody else's."""

    def load_lora_weights(self, source: Any, **kwargs: Any) -> Any:
        """Whatever they do."""
        return source, kwargs


def test_classes_of_others_are_seen_whether_made_before_or_after(recording: Callable[..., Spans]) -> None:
    places = (OwnMixin, diffusers.loaders.StableDiffusionLoraLoaderMixin)
    before = [vars(kind)["load_lora_weights"] for kind in places]
    recording()
    assert all(vars(kind)["load_lora_weights"] is not old for kind, old in zip(places, before, strict=True))

    class LaterMixin(OwnMixin):
        def load_lora_weights(self, source: Any, **kwargs: Any) -> Any:
            return super().load_lora_weights(source, **kwargs)

    assert hasattr(vars(LaterMixin)["load_lora_weights"], "__wrapped__")
    assert LaterMixin().load_lora_weights("x", y=1) == ("x", {"y": 1})
    LoadspanInstrumentor().uninstrument()
    assert [vars(kind)["load_lora_weights"] for kind in places] == before
    assert not hasattr(vars(LaterMixin)["load_lora_weights"], "__wrapped__")
