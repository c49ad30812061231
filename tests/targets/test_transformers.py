"""transformers: one load for each model, whoever chose its class and whichever threads read it."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hosts import the

from loadspan import LoadspanInstrumentor
from loadspan.instrument import destination
from recorded import check, outline, parts, walk

if TYPE_CHECKING:
    from pathlib import Path

    from recorded import Spans, Tree

os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of what transformers itself imports
    warnings.simplefilter("ignore", DeprecationWarning)
    import transformers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # transformers deprecates its own names

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}


def config(words: int = 4000) -> Any:
    return transformers.LlamaConfig(vocab_size=words, **SIZES)


def save(folder: Path, words: int = 4000, **options: Any) -> int:
    """A model in `folder`; returns its bytes in the file."""
    model = transformers.AutoModelForCausalLM.from_config(config(words), dtype=torch.bfloat16)  # not cast: that would be a load, too
    model.save_pretrained(folder, **options)
    return sum(int(parameter.nbytes) for parameter in model.parameters())


def sizes(load: Tree, stage: str) -> int:
    return sum(span["attributes"].get("loadspan.size", 0) for span in walk(load) if span["name"] == stage)


def inner(load: Tree) -> list[Tree]:
    return [span for span in walk(load) if span["name"] == "load model" and span is not load]


def test_the_auto_class_and_the_class_it_chooses_are_one_load(spans: Spans, tmp_path: Path) -> None:
    size = save(tmp_path / "llama")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    load = spans.load()
    check(load)
    assert inner(load) == []
    assert load["attributes"]["loadspan.loader"] == "transformers"
    assert load["attributes"]["loadspan.model.name"] == "llama"
    assert load["attributes"]["loadspan.size"] == size
    read = the(load, "deserialize")
    assert read["loadspan.size"] == size
    assert read["loadspan.deferred"] is True
    assert "loadspan.throughput" not in read
    assert sizes(load, "load_state_dict") == size
    assert "convert" not in parts(load)


def test_the_class_itself_is_a_load_and_its_constructor_is_seen(spans: Spans, tmp_path: Path) -> None:
    save(tmp_path)
    transformers.LlamaForCausalLM.from_pretrained(str(tmp_path))
    load = spans.load()
    made = [span["attributes"].get("loadspan.made") for span in walk(load) if span["name"] == "initialize"]
    assert "LlamaForCausalLM" in made
    assert "LlamaConfig" in made


def test_a_class_with_its_own_from_pretrained_is_one_load(spans: Spans, tmp_path: Path) -> None:
    class Own(transformers.LlamaForCausalLM):
        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            return super().from_pretrained(*args, **kwargs)

    save(tmp_path)
    assert type(Own.from_pretrained(tmp_path)) is Own
    assert inner(spans.load()) == []


def test_casts_in_the_pool_are_counted_with_what_they_make(spans: Spans, tmp_path: Path) -> None:
    size = save(tmp_path, max_shard_size="500KB")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    load = spans.load()
    check(load)
    cast = the(load, "convert")
    assert cast["loadspan.size"] == 2 * size
    assert cast["loadspan.dtype"] == "float32"
    assert sizes(load, "deserialize") == size
    assert sizes(load, "load_state_dict") == 2 * size


def test_a_model_or_configuration_made_without_weights_is_no_load(spans: Spans, tmp_path: Path) -> None:
    save(tmp_path)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path)  # from now on the constructor is recorded
    transformers.LlamaForCausalLM(config())
    transformers.AutoConfig.from_pretrained(tmp_path)
    spans.load()


def test_two_loads_in_two_threads_keep_apart(spans: Spans, tmp_path: Path) -> None:
    wanted = {"one": save(tmp_path / "one"), "two": save(tmp_path / "two", words=9000)}
    ready = threading.Barrier(2)

    def load(name: str) -> None:
        ready.wait()
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)

    threads = [threading.Thread(target=load, args=(name,)) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loads = spans.loads()
    assert {load["attributes"]["loadspan.model.name"]: sizes(load, "deserialize") for load in loads} == wanted
    assert {load["attributes"]["loadspan.model.name"]: sizes(load, "convert") // 2 for load in loads} == wanted
    for found in loads:
        check(found)


def test_a_load_in_a_thread_of_asyncio_belongs_to_the_callers_span(spans: Spans, tmp_path: Path) -> None:
    size = save(tmp_path)

    async def serve() -> None:
        with spans.provider.get_tracer("host").start_as_current_span("request"):
            await asyncio.to_thread(transformers.AutoModelForCausalLM.from_pretrained, tmp_path)

    asyncio.run(serve())
    [request] = spans.all()
    assert outline(request["children"])[0].keys() == {"load model"}
    assert sizes(spans.load(), "deserialize") == size


class Broken:
    """Stands in a state dict for a tensor that cannot be read."""

    def __init__(self, like: Any, then: Any) -> None:
        self.shape, self.dtype = like.shape, like.dtype
        self._like, self._then = like, then

    def __getitem__(self, index: Any) -> Any:
        self._then()
        return self._like[index]


def state(then: Any) -> tuple[dict[str, Any], Any]:
    """The weights of a model, of which reading one in the middle calls `then`."""
    model = transformers.LlamaForCausalLM(config())
    found: dict[str, Any] = dict(model.state_dict())
    found["model.layers.1.mlp.up_proj.weight"] = Broken(found["model.layers.1.mlp.up_proj.weight"], then)
    return found, model


def test_what_a_job_of_the_pool_raises_arrives_and_leaves_nothing_open(spans: Spans) -> None:
    def fail() -> None:
        raise OSError("no such page")

    weights, _ = state(fail)
    with pytest.raises(OSError, match="no such page"):
        transformers.LlamaForCausalLM.from_pretrained(None, config=config(), state_dict=weights, dtype=torch.float16)
    load = spans.load()
    check(load)
    assert load["attributes"]["error.type"] == "OSError"
    assert load["attributes"]["loadspan.model.name"] == "LlamaForCausalLM"
    failed = [span["name"] for span in walk(load) if span["error"]]
    assert "load_state_dict" in failed


@pytest.mark.parametrize("where", ["pool", "constructor"])
def test_uninstrumented_in_the_middle_the_load_goes_on(spans: Spans, where: str) -> None:
    def stop() -> None:
        LoadspanInstrumentor().uninstrument()

    class Stopping(transformers.LlamaForCausalLM):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if where == "constructor":
                stop()

    constructor = vars(Stopping)["__init__"]
    weights, model = state(stop if where == "pool" else lambda: None)
    loaded = Stopping.from_pretrained(None, config=config(), state_dict=weights, dtype=torch.float16)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.half())
    assert vars(Stopping)["__init__"] is constructor
    assert spans.recorder.loads == []
    spans.load()


def test_a_model_that_is_not_there_is_a_failed_load(spans: Spans, tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no file named"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    load = spans.load()
    assert load["error"]
    assert "load_state_dict" not in parts(load)


def test_a_pipeline_and_its_model_are_one_load_with_its_tokenizer(spans: Spans, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(100))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    sizes_of_bert = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes_of_bert)).save_pretrained(tmp_path)
    transformers.pipeline("feature-extraction", model=str(tmp_path))
    load = spans.load()
    assert inner(load) == []
    assert load["attributes"]["loadspan.model.name"] == tmp_path.name
    assert "tokenizer" in [span["attributes"].get("loadspan.made") for span in walk(load)]


def test_a_pipeline_of_a_model_that_is_there_loads_none(spans: Spans, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    model = transformers.BertModel(transformers.BertConfig(vocab_size=5, hidden_size=16, num_attention_heads=2, num_hidden_layers=1))
    transformers.pipeline("feature-extraction", model=model, tokenizer=tokenizer)
    assert spans.loads() == []


@pytest.mark.parametrize(("said", "there"), [("cuda", ("cuda", None)), ("cuda:1", ("cuda", 1)), (torch.device("cuda", 2), ("cuda", 2))])
def test_a_device_is_known_by_its_name_with_and_without_a_number(said: Any, there: Any) -> None:
    found = destination.named(said)
    assert found is not None
    assert found.key == there


@pytest.mark.parametrize("said", ["cpu", "meta", "disk", torch.device("cpu"), None, {}, 3])
def test_the_host_is_no_destination(said: Any) -> None:
    assert destination.named(said) is None
