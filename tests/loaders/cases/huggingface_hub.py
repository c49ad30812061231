"""Models that come from a hub in a process of its own: downloaded, found in the cache, broken off; and whole `from_pretrained`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from collections.abc import Iterator

_SERVER = Path(__file__).parents[2] / "hubserver.py"
_SHARDS = 3
_SIZE = 40 << 20
_ONLINE = {"HF_HUB_OFFLINE": "0"}


@contextlib.contextmanager
def _hub(folder: Path, options: str = "") -> Iterator[str]:
    """A hub that serves *folder*, set as *options* say; an empty cache."""
    import os
    import tempfile
    import urllib.request

    process = subprocess.Popen([sys.executable, "-I", "-S", str(_SERVER), str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout:
            url = process.stdout.readline().strip()
        os.environ["HF_ENDPOINT"] = url
        urllib.request.urlopen(f"{url}/set?slow=400e6&{options}").close()  # noqa: S310 - its own address
        with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
            os.environ["HF_HOME"] = cache
            yield cache
    finally:
        process.terminate()
        process.wait()


def _write(folder: Path) -> Truth:
    model = folder / "org" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    for shard in range(1, _SHARDS + 1):
        (model / f"model-{shard:05}-of-{_SHARDS:05}.safetensors").write_bytes(bytes([shard]) * _SIZE)
    return {"download": _SHARDS * _SIZE + 2, "one": _SIZE}


def _snapshot(folder: Path) -> Any:
    with _hub(folder):
        import huggingface_hub

        return sorted(path.name for path in Path(huggingface_hub.snapshot_download("org/model")).iterdir())


def _one(folder: Path) -> Any:
    with _hub(folder):
        import huggingface_hub

        return Path(huggingface_hub.hf_hub_download("org/model", "model-00002-of-00003.safetensors")).stat().st_size


def _broken(folder: Path) -> Any:
    with _hub(folder, "broken=22e6"):
        import huggingface_hub

        huggingface_hub.logging.set_verbosity_error()  # the warning names the hub's port, which is another each time
        return Path(huggingface_hub.hf_hub_download("org/model", "model-00002-of-00003.safetensors")).stat().st_size


def _refused(folder: Path) -> Any:
    with _hub(folder, "refused=1"):
        import huggingface_hub

        try:
            huggingface_hub.hf_hub_download("org/model", "model-00002-of-00003.safetensors")
        except huggingface_hub.utils.HfHubHTTPError as error:
            return type(error).__name__, error.response.status_code


def _write_transformers(folder: Path) -> Truth:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8, vocab_size=8000)
    model = LlamaForCausalLM(config)
    place = folder / "org" / "model"
    model.save_pretrained(place, max_shard_size="40MB")
    files = sum(path.stat().st_size for path in place.iterdir() if path.name != "generation_config.json")
    tensors = sum(parameter.nbytes for parameter in model.parameters())
    return {"download": files + (place / "generation_config.json").stat().st_size, "deserialize": tensors}


def _from_pretrained(folder: Path) -> Any:
    with _hub(folder):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained("org/model")


def _from_cache(folder: Path) -> Any:
    """The download is in a process of its own."""
    with _hub(folder):
        code = "import huggingface_hub; huggingface_hub.snapshot_download('org/model')"
        subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"], check=True)
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained("org/model")


def _case(name: str, load: Any, stages: tuple[str, ...], **more: Any) -> Case:
    known = {"library": "huggingface-hub", "write": _write, "loader": "huggingface_hub", "needs": ("huggingface_hub",)}
    return Case(name=name, load=load, stages=stages, environment=_ONLINE, **(known | more))


_TRANSFORMERS = {"write": _write_transformers, "loader": "transformers", "needs": ("huggingface_hub", "transformers", "torch")}
CASES = [
    _case("snapshot_download", _snapshot, ("cache", "download"), sizes=lambda truth: {"download": truth["download"]}),
    _case("hf_hub_download", _one, ("cache", "download"), sizes=lambda truth: {"download": truth["one"]}),
    _case(
        "hf_hub_download, broken off and resumed",
        _broken,
        ("cache", "download"),
        sizes=lambda truth: {"download": truth["one"]},
        needs=("huggingface_hub>=1",),
    ),
    _case("hf_hub_download, refused", _refused, ("cache", "download"), sizes=lambda _: {}),
    _case("AutoModel.from_pretrained from a hub", _from_pretrained, ("cache", "download", "deserialize"), **_TRANSFORMERS),
    _case(
        "AutoModel.from_pretrained from its cache",
        _from_cache,
        ("cache", "deserialize"),
        sizes=lambda truth: {"deserialize": truth["deserialize"]},
        **_TRANSFORMERS,
    ),
]
