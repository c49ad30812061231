"""sentence-transformers: a model of several modules, one of which transformers loads in it; one without files of sentence-transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from case import Case, Truth, held

if TYPE_CHECKING:
    from pathlib import Path

_WORDS = 140_000
_SIZES = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "num_hidden_layers": 2}
_DENSE = 512 * 2048 + 2048


def _write_bert(folder: Path) -> Truth:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(_WORDS))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    model = BertModel(BertConfig(vocab_size=len(words), **_SIZES)).half()
    model.save_pretrained(folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"deserialize": 2 * count, "convert": 8 * count, "load_state_dict": 8 * count}  # to float64: that takes its time


def _write(folder: Path) -> Truth:
    from sentence_transformers import SentenceTransformer, models

    (folder / "bert").mkdir()
    truth = _write_bert(folder / "bert")
    inner = models.Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[inner, models.Pooling(512), models.Dense(512, 2048)], device="cpu").save(str(folder / "model"))
    # In which type it is saved depends on the version. The dense layer is cast to the type of what is before it, when it was loaded.
    whole, dense = held(folder / "model"), held(folder / "model" / "2_Dense")
    return {"deserialize": whole, "load_state_dict": truth["load_state_dict"] + dense, "convert": truth["convert"] + 8 * _DENSE}


def _load(folder: Path) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder / "model"), device="cpu", model_kwargs={"torch_dtype": torch.float64})


def _load_bert(folder: Path) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", model_kwargs={"torch_dtype": torch.float64})


_STAGES = ("deserialize", "initialize", "load_state_dict", "convert")
_NEEDS = ("torch", "sentence_transformers", "transformers>=4.50")


CASES = [
    Case(
        name="SentenceTransformer, a model of transformers and a dense layer",
        library="sentence-transformers",
        write=_write,
        load=_load,
        loader="sentence_transformers",
        stages=_STAGES,
        needs=_NEEDS,
    ),
    Case(
        name="SentenceTransformer of a model of transformers",
        library="sentence-transformers",
        write=_write_bert,
        load=_load_bert,
        loader="sentence_transformers",
        stages=_STAGES,
        needs=_NEEDS,
    ),
]
