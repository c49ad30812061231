"""Libraries that use each other, imported in any order, reloaded, at once or wrapped by others too: recorded once, and nothing left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from orders import child

if TYPE_CHECKING:
    from pathlib import Path

SIZES: dict[str, int] = {}


MODELS = """
import diffusers, peft, safetensors.torch, torch, transformers
config = transformers.LlamaConfig(
    hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=4000
)
model = transformers.LlamaModel(config)
model.save_pretrained(folder / "llama")
adapter = peft.LoraConfig(r=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
peft.get_peft_model(model, adapter).save_pretrained(folder / "lora")
diffusers.AutoencoderKL(block_out_channels=(64,), norm_num_groups=8).save_pretrained(folder / "vae")
torch.save(torch.nn.Linear(600, 600).state_dict(), folder / "linear.pt")
def size(name):
    [file] = (folder / name).glob("*.safetensors")
    return sum(tensor.numel() * tensor.element_size() for tensor in safetensors.torch.load_file(file).values())
tell(**{name: size(name) for name in ("llama", "lora", "vae")})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each library, of a few megabytes."""
    made = tmp_path_factory.mktemp("models")
    SIZES.update(child(MODELS, made, tmp_path_factory.mktemp("work")))
    return made


IMPORTS = """
from transformers import AutoModel, LlamaConfig, LlamaModel
from diffusers import AutoencoderKL
from peft import PeftModel
from peft.utils.save_and_load import load_peft_weights
from accelerate import dispatch_model, init_empty_weights, load_checkpoint_and_dispatch
from accelerate.utils import set_module_tensor_to_device
from safetensors.torch import load_file
from torch import load
"""
USE = """
def use(names):
    model = names.AutoModel.from_pretrained(folder / "llama")
    names.AutoencoderKL.from_pretrained(folder / "vae")
    names.PeftModel.from_pretrained(model, folder / "lora")
    with names.init_empty_weights():
        empty = names.LlamaModel(names.LlamaConfig.from_pretrained(folder / "llama"))
    names.load_checkpoint_and_dispatch(empty, str(folder / "llama" / "model.safetensors"), device_map={"": "cpu"})
    return loads()

def lazily():
    namespace = {}
    exec(IMPORTS, namespace)
    return use(types.SimpleNamespace(**namespace))
"""
ORDERS = {
    "libraries, then instrument": "names = user(IMPORTS)\ninstrument()\nfound = use(names)",
    "instrument, then libraries": "instrument()\nnames = user(IMPORTS)\nfound = use(names)",
    "lazily in a function": "instrument()\nfound = lazily()",
    "some before, some after": "import safetensors.torch, accelerate\ninstrument()\nnames = user(IMPORTS)\nfound = use(names)",
    "some by name before, lazily": "import transformers\nfrom peft import PeftModel\ninstrument()\nimport diffusers\nfound = lazily()",
}
END = """
not_recorded = missed()
uninstrument()
tell(found=found, missed=not_recorded, left=left(), after=lazily())
"""


@pytest.mark.parametrize("order", ORDERS)
def test_libraries_that_use_each_other_are_recorded_once_in_every_order(order: str, folder: Path, tmp_path: Path) -> None:
    told = child(f"IMPORTS = {IMPORTS!r}\n{USE}\n{ORDERS[order]}\n{END}", folder, tmp_path)
    assert (told["missed"], told["left"], told["after"]) == ([], [], [])
    assert [load["loader"] for load in told["found"]] == ["transformers", "diffusers", "peft", "accelerate"]
    llama, vae, lora, filled = told["found"]
    assert read(llama) == SIZES["llama"]
    assert read(vae) == SIZES["vae"]
    assert read(lora) == SIZES["lora"]
    assert read(filled) == SIZES["llama"]


def read(load: dict[str, Any]) -> int:
    return int(load.get("deserialize", 0) or load.get("read", 0))


def test_libraries_that_are_reloaded_are_recorded_once(folder: Path, tmp_path: Path) -> None:
    script = """
import safetensors.torch, torch, peft.utils.save_and_load, transformers.modeling_utils
from importlib import reload
instrument()
def use():
    state = safetensors.torch.load_file(folder / "llama" / "model.safetensors")
    torch.load(folder / "linear.pt")
    return loads()
first = use()
reloaded = []
for module in (safetensors.torch, torch.serialization, peft.utils.save_and_load, torch.nn.modules.module):
    reload(module)
    reloaded.append(use())
for name in ("safetensors.torch", "safetensors"):
    del sys.modules[name]
import safetensors.torch
again = use()
uninstrument()
tell(first=first, reloaded=reloaded, again=again, left=left(), after=use())
"""
    told = child(script, folder, tmp_path)
    assert told["first"] == [{"loader": "safetensors", "deserialize": SIZES["llama"] + 601 * 600 * 4}]
    assert told["reloaded"] == [told["first"]] * 4
    assert told["again"] == told["first"]
    assert (told["left"], told["after"]) == ([], [])


def test_two_libraries_at_once_in_one_server_are_two_loads_each_with_its_own_bytes(folder: Path, tmp_path: Path) -> None:
    script = """
from concurrent.futures import ThreadPoolExecutor
instrument()
from transformers import AutoModel
from diffusers import AutoencoderKL
both = threading.Barrier(2)
def serve(kind, name):
    both.wait()
    return kind.from_pretrained(folder / name)
found = []
with ThreadPoolExecutor(2) as pool:
    for _ in range(3):
        list(pool.map(serve, (AutoModel, AutoencoderKL), ("llama", "vae")))
        found.append(sorted(loads(), key=lambda load: load["loader"]))
uninstrument()
tell(found=found, left=left())
"""
    told = child(script, folder, tmp_path)
    assert told["left"] == []
    seen = [[(load["loader"], read(load)) for load in turn] for turn in told["found"]]
    assert seen == [[("diffusers", SIZES["vae"]), ("transformers", SIZES["llama"])]] * 3


@pytest.mark.parametrize("place", ["while the module is built", "while weights are read", "while a thread loads"])
def test_uninstrument_in_the_middle_of_a_load_leaves_the_load_as_it_is(place: str, folder: Path, tmp_path: Path) -> None:
    script = f"""
place = {place!r}
import torch, safetensors
from transformers import LlamaModel
calls = []
def once(when):
    if place == when and calls == ["ready"]:
        calls.append("done")
        thread = threading.Thread(target=uninstrument)
        thread.start()
        thread.join()
class Mine(LlamaModel):
    def __init__(self, config):
        super().__init__(config)
        once("while the module is built")
class Weights(dict):
    def items(self):
        once("while weights are read")
        return super().items()
    def __getitem__(self, key):
        once("while weights are read")
        return super().__getitem__(key)
def use():
    if place == "while weights are read":
        model = LlamaModel(LlamaModel.config_class.from_pretrained(folder / "llama"))
        model.load_state_dict(Weights(safetensors.torch.load_file(folder / "llama" / "model.safetensors")), assign=True)
        return model
    return Mine.from_pretrained(folder / "llama")
def state(model):
    return {{name: (tensor.dtype, tuple(tensor.shape), tensor.double().sum().item()) for name, tensor in model.state_dict().items()}}
import safetensors.torch
bare = state(use())
instrument()
calls.append("ready")
if place == "while a thread loads":
    thread = threading.Thread(target=lambda: calls.append(state(use())))
    thread.start()
    uninstrument()
    thread.join()
    ours = calls[1]
else:
    ours = state(use())
    assert calls == ["ready", "done"], calls
loads()
nothing = left()
use()
after = loads()
instrument()
use()
tell(same=bare == ours, left=nothing, after=after, again=loads())
"""
    told = child(script, folder, tmp_path)
    assert told["same"]
    assert (told["left"], told["after"]) == ([], [])
    assert len(told["again"]) == 1
    assert read(told["again"][0]) == SIZES["llama"]


def test_instrument_in_the_middle_of_a_load_breaks_nothing_and_the_next_is_recorded(folder: Path, tmp_path: Path) -> None:
    script = """
from transformers import LlamaModel
calls = []
class Mine(LlamaModel):
    def __init__(self, config):
        super().__init__(config)
        if not calls:
            calls.append(instrument())
Mine.from_pretrained(folder / "llama")
loads()
Mine.from_pretrained(folder / "llama")
found = loads()
uninstrument()
tell(found=found, left=left())
"""
    told = child(script, folder, tmp_path)
    assert told["left"] == []
    assert [read(load) for load in told["found"]] == [SIZES["llama"]]


@pytest.mark.parametrize("when", ["before", "after", "between"])
@pytest.mark.parametrize("how", ["wrapt", "functools"])
def test_another_instrumentation_of_the_same_functions_is_left_alone_and_called(when: str, how: str, folder: Path, tmp_path: Path) -> None:
    script = f"""
when, how = {when!r}, {how!r}
import functools, wrapt, torch, safetensors.torch
from peft.utils.save_and_load import load_peft_weights
called = []
originals = safetensors.torch.__dict__["load_file"], torch.nn.Module.__dict__["load_state_dict"]
originals = dict(zip(("load_file", "load_state_dict"), originals))
owners = {{"load_file": safetensors.torch, "load_state_dict": torch.nn.Module}}
def theirs(name):
    owner, wrapped = owners[name], owners[name].__dict__[name]
    if how == "wrapt":
        def wrapper(function, instance, args, kwargs):
            called.append(name)
            return function(*args, **kwargs)
        setattr(owner, name, wrapt.FunctionWrapper(wrapped, wrapper))
    else:
        @functools.wraps(wrapped)
        def wrapper(*args, **kwargs):
            called.append(name)
            return wrapped(*args, **kwargs)
        setattr(owner, name, wrapper)
def unwrap(name):
    setattr(owners[name], name, owners[name].__dict__[name].__wrapped__)
def use():
    state = safetensors.torch.load_file(folder / "llama" / "model.safetensors")
    module = torch.nn.ParameterDict({{key.replace(".", "_"): torch.empty_like(value) for key, value in state.items()}})
    module.load_state_dict({{key.replace(".", "_"): value for key, value in state.items()}})
    seen = list(called)
    called.clear()
    return seen, [load for load in loads()]
if when == "before":
    list(map(theirs, owners))
instrument()
if when != "before":
    list(map(theirs, owners))
if when == "between":
    uninstrument()
    off = use()
    instrument()
else:
    off = None
on = use()
uninstrument()
after = use()
list(map(unwrap, owners))
instrument()
alone = use()
uninstrument()
restored = [owners[name].__dict__[name] is originals[name] for name in owners]
tell(off=off, on=on, after=after, alone=alone, restored=restored, left=left())
"""
    told = child(script, folder, tmp_path)
    both = ["load_file", "load_state_dict"]
    loads = [{"loader": "safetensors", "deserialize": SIZES["llama"], "load_state_dict": SIZES["llama"]}]
    assert told["on"] == [both, loads]
    assert told["after"] == [both, []]
    assert told["off"] == ([both, []] if when == "between" else None)
    assert told["alone"] == [[], loads]
    assert (told["restored"], told["left"]) == ([True, True], [])
