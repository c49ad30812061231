"""peft: adapters injected into a real model and merged into its weights: one stage each, with the bytes of the adapter."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hosts import equal, failure, told

import loadspan
from loadspan import LoadspanInstrumentor
from loadspan.instrument import stages
from recorded import check, outline, walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recorded import Spans

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # an adapter that is not there is not looked for elsewhere
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of what transformers itself imports
    warnings.simplefilter("ignore", DeprecationWarning)
    import peft
    import transformers

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers for it

LAYERS, WIDTH, RANK = 2, 64, 8
INPUT = torch.arange(8)[None]


def base() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).eval()


def make_adapter(folder: Path, seed: int, targets: list[str]) -> Path:
    """An adapter whose weights do something."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(base(), peft.LoraConfig(r=RANK, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(folder / "style", 1, ["q_proj", "v_proj"])
    make_adapter(folder / "subject", 2, ["q_proj"])
    return folder


def size(layers: int) -> int:
    """Bytes of an adapter for *layers* square layers."""
    return layers * 2 * RANK * WIDTH * 4


STYLE, SUBJECT = size(2 * LAYERS), size(LAYERS)


def answer(model: Any) -> Any:
    with torch.no_grad():
        return model(INPUT).logits


def inject(adapters: Path) -> Any:
    return peft.PeftModel.from_pretrained(base(), adapters / "style")


def both(adapters: Path) -> Any:
    model = peft.PeftModel.from_pretrained(base(), adapters / "style", adapter_name="style")
    model.load_adapter(str(adapters / "subject"), adapter_name="subject")
    return model


def merged(adapters: Path) -> Any:
    model = both(adapters)
    model.base_model.merge_adapter(["style", "subject"])
    return model


def merge(model: Any, *args: Any) -> Any:
    model.base_model.merge_adapter(*args)
    return model


def unmerge(model: Any) -> Any:
    model.base_model.unmerge_adapter()
    return model


def add(model: Any, adapters: Path) -> Any:
    model.load_adapter(adapters / "subject", "subject")
    return model


Case = tuple["Callable[[Path], Any]", "Callable[[Any, Path], Any]", dict[str, Any]]
CASES: dict[str, Case] = {
    "from_pretrained": (
        lambda _: base(),
        lambda model, adapters: peft.PeftModel.from_pretrained(model, adapters / "style"),
        {"loadspan.adapter.name": "default", "loadspan.inject.layers": 2 * LAYERS, "loadspan.size": STYLE, "file": "style"},
    ),
    "from_pretrained with a name": (
        lambda _: base(),
        lambda model, adapters: peft.PeftModel.from_pretrained(model=model, model_id=str(adapters / "style"), adapter_name="x"),
        {"loadspan.adapter.name": "x", "loadspan.inject.layers": 2 * LAYERS, "loadspan.size": STYLE, "file": "style"},
    ),
    "from_pretrained of a subclass": (
        lambda _: base(),
        lambda model, adapters: peft.PeftModelForCausalLM.from_pretrained(model, str(adapters), subfolder="subject"),
        {"loadspan.adapter.name": "default", "loadspan.inject.layers": LAYERS, "loadspan.size": SUBJECT, "file": "subject"},
    ),
    "load_adapter": (
        inject,
        add,
        {"loadspan.adapter.name": "subject", "loadspan.inject.layers": LAYERS, "loadspan.size": SUBJECT, "file": "subject"},
    ),
    "merge_adapter": (
        both,
        lambda model, _: merge(model),
        {"loadspan.adapter.name": "style", "loadspan.merge.layers": 2 * LAYERS, "loadspan.size": STYLE},
    ),
    "merge_adapter by name": (
        both,
        lambda model, _: merge(model, ["subject"]),
        {"loadspan.adapter.name": "subject", "loadspan.merge.layers": LAYERS, "loadspan.size": SUBJECT},
    ),
    "merge_adapter of two": (
        both,
        lambda model, _: merge(model, ["style", "subject"]),
        {"loadspan.adapter.name": "style, subject", "loadspan.merge.layers": 2 * LAYERS, "loadspan.size": STYLE + SUBJECT},
    ),
    "merge_adapter of the second": (
        lambda adapters: merge(both(adapters), ["style"]),
        lambda model, _: merge(model, ["style", "subject"]),
        {"loadspan.adapter.name": "style, subject", "loadspan.merge.layers": LAYERS, "loadspan.size": SUBJECT},
    ),
    "unmerge_adapter": (
        merged,
        lambda model, _: unmerge(model),
        {
            "loadspan.adapter.action": "unmerge",
            "loadspan.adapter.name": "style, subject",
            "loadspan.merge.layers": 2 * LAYERS,
            "loadspan.size": STYLE + SUBJECT,
        },
    ),
    "merge_and_unload": (
        both,
        lambda model, _: model.merge_and_unload(),
        {"loadspan.adapter.name": "style", "loadspan.merge.layers": 2 * LAYERS, "loadspan.size": STYLE},
    ),
    "merge_and_unload by name": (
        both,
        lambda model, _: model.merge_and_unload(progressbar=False, safe_merge=True, adapter_names=["subject"]),
        {"loadspan.adapter.name": "subject", "loadspan.merge.layers": LAYERS, "loadspan.size": SUBJECT},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Already following adapters were merged:UserWarning")  # peft's, where one is merged after another
def test_an_adapter_is_one_merge_of_its_bytes_and_layers(recording: Callable[..., Spans], adapters: Path, case: str) -> None:
    prepare, call, expected = CASES[case]
    bare = call(prepare(adapters), adapters)
    spans = recording()
    model = prepare(adapters)
    spans.finish()
    with loadspan.load("model"):
        found = call(model, adapters)
    assert type(found) is type(bare)
    assert equal(found, bare)
    assert torch.equal(answer(found), answer(bare))
    tree = next(load for load in spans.loads() if load["attributes"].get("loadspan.model.name") == "model")
    check(tree)
    assert [span["name"] for span in walk(tree)].count("merge_lora") == 1
    (stage,) = tree["children"]
    assert stage["name"] == "merge_lora"
    attributes, file = stage["attributes"], expected.get("file")
    assert {key: attributes.get(key) for key in expected if key != "file"} == {key: expected[key] for key in expected if key != "file"}
    assert attributes["loadspan.throughput"] > 0
    inner = {span["name"]: span["attributes"] for span in stage["children"]}
    if file is None:
        assert "file.path" not in attributes
        assert not inner
    else:
        path = adapters / file / "adapter_model.safetensors"
        assert (attributes["file.path"], attributes["file.size"]) == (str(path), path.stat().st_size)
        assert inner.keys() == {"deserialize", "initialize", "load_state_dict"}
        assert len(list(walk(stage))) <= 5, "no span for each of the modules that were moved"
        assert inner["initialize"]["loadspan.inject.layers"] == expected["loadspan.inject.layers"]
        assert inner["deserialize"]["loadspan.size"] == inner["load_state_dict"]["loadspan.size"] == expected["loadspan.size"]
        assert inner["deserialize"]["file.path"] == str(path)
    assert attributes["loadspan.adapter.action"] == expected.get("loadspan.adapter.action", "load" if file else "merge")


@pytest.mark.filterwarnings("ignore:All adapters are already merged:UserWarning")  # peft's, which some of its releases give
def test_merging_what_is_merged_has_neither_bytes_nor_deltas_and_says_so(spans: Spans, adapters: Path) -> None:
    model = merge(inject(adapters))
    spans.finish()
    with loadspan.load("again"):
        merge(model, ["default"])
    (stage,) = spans.loads()[-1]["children"]
    assert stage["attributes"]["loadspan.merge.layers"] == 0
    assert stage["attributes"]["loadspan.merge.repeated"] == 2 * LAYERS
    assert stage["attributes"]["loadspan.size"] == 0
    assert {"loadspan.throughput", "loadspan.merge.delta_size"}.isdisjoint(stage["attributes"])


def actions(load: Any) -> list[tuple[str, str, int | None]]:
    """What was done with which adapter, and the bytes of the deltas that it took."""
    found = [span["attributes"] for span in load["children"] if span["name"] == "merge_lora"]
    return [tuple(stage.get(f"loadspan.{name}") for name in ("adapter.action", "adapter.name", "merge.delta_size")) for stage in found]


@pytest.mark.filterwarnings("ignore:Adapter cannot be set when the model is merged:UserWarning")
def test_deltas_are_counted_wherever_they_are_computed(spans: Spans, adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SHORT", 0)  # a span each, however short
    model = both(adapters)
    spans.finish()
    layer = WIDTH * WIDTH * 4
    with loadspan.load("model"):
        merge(model, ["style", "subject"])
        unmerge(model)
        merge(model, ["style"])
        model.set_adapter("subject")
        model.add_weighted_adapter(["style", "subject"], [0.5, 0.5], "mixed", combination_type="svd")
    load = spans.loads()[-1]
    both_deltas = 3 * LAYERS * layer
    assert actions(load) == [
        ("merge", "style, subject", both_deltas),
        ("unmerge", "style, subject", both_deltas),
        ("merge", "style", 2 * LAYERS * layer),
        ("activate", "subject", 2 * LAYERS * layer),  # which took out what was merged
        ("combine", "mixed", both_deltas),
    ]
    combined = load["children"][-1]
    assert combined["attributes"]["loadspan.size"] == STYLE + SUBJECT
    assert combined["attributes"]["loadspan.inject.layers"] == 2 * LAYERS
    taken = [span["attributes"]["loadspan.merge.delta_time"] for span in load["children"] if span["name"] == "merge_lora"]
    assert all(0 < seconds < load["duration"] for seconds in taken)


def test_weights_read_over_those_that_are_there_are_not_injected_again(spans: Spans, adapters: Path) -> None:
    hotswap = pytest.importorskip("peft.utils.hotswap")
    model = inject(adapters)
    spans.finish()
    with loadspan.load("model"):
        model.load_adapter(str(adapters / "style"), "default")
        hotswap.hotswap_adapter(model, str(adapters / "style"), adapter_name="default")
    load = spans.loads()[-1]
    assert [action[:2] for action in actions(load)] == [("load", "default"), ("swap", "default")]
    for stage in load["children"]:
        assert stage["attributes"].get("loadspan.inject.layers", 0) == 0
        assert stage["attributes"]["loadspan.size"] == STYLE
        assert [child["name"] for child in stage["children"]] == ["deserialize", "load_state_dict"]


def test_an_adapter_that_is_to_be_trained_is_no_load(spans: Spans) -> None:
    spans.set(min_size=0)
    peft.get_peft_model(base(), peft.LoraConfig(r=RANK, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert spans.loads() == []


def test_a_module_that_is_moved_while_its_adapter_is_injected_elsewhere_is_seen(spans: Spans, adapters: Path) -> None:
    inject(adapters)
    spans.finish()
    module = base()
    with loadspan.load("model"):
        module.half()
    assert outline(spans.loads()[-1]["children"]) == ["convert"]


def test_unloading_without_a_merge_is_no_stage(recording: Callable[..., Spans], adapters: Path) -> None:
    bare = inject(adapters).unload()
    spans = recording()
    model = inject(adapters)
    spans.finish()
    with loadspan.load("unload"):
        found = model.unload()
    assert equal(found, bare)
    assert equal(found, base())
    assert outline(spans.loads()[-1]) == ["load model"]


def test_a_switch_of_adapters_that_nobody_declared_is_one_load_of_what_was_read(spans: Spans, adapters: Path) -> None:
    spans.set(min_size=0)
    model = both(adapters)
    merge(model, ["style", "subject"])
    load = spans.load()
    assert [[child["name"] for child in stage["children"]] for stage in load["children"]] == [
        ["initialize", "deserialize", "load_state_dict"],
        ["initialize", "deserialize", "load_state_dict"],
        [],
    ]
    assert load["attributes"]["loadspan.size"] == STYLE + SUBJECT
    assert load["attributes"]["loadspan.loader"] == "peft"


FAILURES: dict[str, Callable[[Any, Path], Any]] = {
    "no folder": lambda model, adapters: peft.PeftModel.from_pretrained(model, str(adapters / "missing")),
    "no weights": lambda model, adapters: peft.PeftModel.from_pretrained(model, str(adapters / "empty")),
    "truncated": lambda model, adapters: peft.PeftModel.from_pretrained(model, str(adapters / "truncated")),
    "nothing": lambda model, _: peft.PeftModel.from_pretrained(model),
    "no name": lambda model, adapters: peft.PeftModel.from_pretrained(model, adapters / "style").load_adapter(adapters / "subject"),
    "other targets": lambda model, adapters: peft.PeftModel.from_pretrained(model.model.embed_tokens, adapters / "style"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_an_adapter_that_fails_fails_as_it_did_and_is_told_once(
    recording: Callable[..., Spans], adapters: Path, tmp_path: Path, what: str
) -> None:
    config = (adapters / "style" / "adapter_config.json").read_bytes()
    weights = (adapters / "style" / "adapter_model.safetensors").read_bytes()
    for name, content in (("empty", None), ("truncated", weights[:5000]), ("style", weights), ("subject", weights)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_bytes(config)
        if content is not None:
            (tmp_path / name / "adapter_model.safetensors").write_bytes(content)

    def call() -> Any:
        return FAILURES[what](base(), tmp_path)

    expected = failure(call)
    spans = recording()

    def recorded_call() -> None:
        with loadspan.load("model"):
            call()

    with pytest.raises(expected[0]):
        recorded_call()
    assert failure(call) == expected
    tree = spans.loads()[0]
    assert told(tree)
    assert len([where for where, _ in told(tree) if where != "cache"]) <= 1  # peft may go on with the cache's, which is an answer
    assert tree["error"] is not None
    failed = [span for span in walk(tree) if span["name"] == "merge_lora" and span["error"] is not None]
    assert len(failed) == 1, outline(tree)
    assert failed[0]["attributes"].get("loadspan.inject.layers") in (None, 2 * LAYERS), "what was injected before it failed"


def test_methods_come_back(recording: Callable[..., Spans], adapters: Path) -> None:
    from peft.tuners.lora.model import LoraModel
    from peft.tuners.tuners_utils import BaseTuner

    places = [(peft.PeftModel, "from_pretrained"), (peft.PeftModel, "load_adapter"), (LoraModel, "_unload_and_optionally_merge")]
    places += [(BaseTuner, name) for name in ("merge_adapter", "unmerge_adapter", "_unload_and_optionally_merge", "inject_adapter")]
    places += [(LoraModel, "add_weighted_adapter"), (peft.tuners.lora.Linear, "get_delta_weight")]
    before = [vars(owner).get(name) for owner, name in places]
    recording()
    merge(inject(adapters))  # each kind of layer is patched when one is merged
    assert sum(vars(owner).get(name) is not old for (owner, name), old in zip(places, before, strict=True)) >= 8
    LoadspanInstrumentor().uninstrument()
    assert [vars(owner).get(name) for owner, name in places] == before
