"""torch: moves and casts of modules on the CPU. The outermost call is the stage, named by what happened."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hosts import equal, failure, layer, the, told

import loadspan
from loadspan import LoadspanInstrumentor, guard
from recorded import check, outline, walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from recorded import Spans

SIZE = 2_000_000
DEPTH = 3


class Deep(torch.nn.Module):
    """Modules in modules, a buffer of integers, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Sequential(layer(), torch.nn.ReLU()) for _ in range(DEPTH)])
        self.tied = layer()
        self.tied.weight = self.layers[0][0].weight
        self.register_buffer("positions", torch.arange(1000))
        self.register_buffer("nothing", None)


def deep() -> Deep:
    torch.manual_seed(0)
    return Deep()


CASTS: dict[str, tuple[Callable[[Any], Any], int, str]] = {
    "half": (lambda module: module.half(), 2, "float16"),
    "bfloat16": (lambda module: module.bfloat16(), 2, "bfloat16"),
    "double": (lambda module: module.double(), 8, "float64"),
    "to": (lambda module: module.to(torch.float16), 2, "float16"),
    "to keyword": (lambda module: module.to(dtype=torch.bfloat16), 2, "bfloat16"),
    "to tensor": (lambda module: module.to(torch.zeros(1, dtype=torch.float16)), 2, "float16"),
    "to device and dtype": (lambda module: module.to("cpu", torch.float16, non_blocking=True), 2, "float16"),
}


@pytest.mark.parametrize("how", CASTS)
def test_a_cast_is_one_convert_of_the_bytes_that_changed(recording: Callable[..., Spans], how: str) -> None:
    call, width, dtype = CASTS[how]
    bare = call(deep())
    spans, module = recording(), deep()
    with loadspan.load("model"):
        assert call(module) is module
    assert equal(module, bare)
    assert module.tied.weight is module.layers[0][0].weight
    tree = spans.load()
    check(tree)
    assert outline(tree) == [{"load model": ["convert"]}]
    attributes = the(tree, "convert")
    assert attributes["loadspan.size"] == DEPTH * 500_000 * width
    assert attributes["loadspan.dtype"] == dtype
    assert "loadspan.device.type" not in attributes


class _Kept(torch.nn.Linear):
    """A layer that stays as it is, as some keep what is sensitive in float32."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # noqa: ARG002, FBT001, FBT002 - the signature of torch
        return self


def test_what_a_module_keeps_as_it_is_was_not_cast(spans: Spans) -> None:
    module = torch.nn.Sequential(layer(), _Kept(1000, 500, bias=False), layer())
    with loadspan.load("model"):
        module.half()
    assert the(spans.load(), "convert")["loadspan.size"] == 2 * 1_000_000


def test_of_a_cast_that_fails_half_way_counts_what_was_cast(spans: Spans) -> None:
    calls = []

    def cast(tensor: Any) -> Any:
        calls.append(tensor)
        if len(calls) > 1:
            raise MemoryError
        return tensor.half()

    cast.__module__ = "torch.nn.modules.module"
    with loadspan.load("model"), pytest.raises(MemoryError):
        torch.nn.Sequential(layer(), layer())._apply(cast)  # noqa: SLF001 - as its own methods do
    assert the(spans.load(), "convert")["loadspan.size"] == 1_000_000


@pytest.mark.parametrize("sizes", [3, 200])
def test_tensors_of_few_and_of_many_sizes_and_types_are_cast(spans: Spans, sizes: int) -> None:
    module = torch.nn.Module()
    for number in range(400):
        kind = (torch.float32, torch.float16, torch.int64)[number % 3]
        module.register_buffer(f"b{number}", torch.ones(1 + number % sizes, 1000, dtype=kind))
    with loadspan.load("model"):
        module.half()
    there = sum(2 * buffer.numel() for number, buffer in enumerate(module.buffers()) if number % 3 == 0)
    assert the(spans.load(), "convert")["loadspan.size"] == there


def test_a_cast_of_everything_casts_buffers_too(spans: Spans) -> None:
    with loadspan.load("model"):
        deep().type(torch.float64)
    assert the(spans.load(), "convert")["loadspan.size"] == 8 * (DEPTH * 500_000 + 1000)


NOTHING: dict[str, Callable[[Any], Any]] = {
    "float": lambda module: module.float(),
    "to cpu": lambda module: module.to("cpu"),
    "cpu": lambda module: module.cpu(),
    "to float": lambda module: module.to(torch.float32),
    "to like": lambda module: module.to(torch.zeros(1)),
    "to nothing": lambda module: module.to(),
    "share": lambda module: module.share_memory(),
    "channels last": lambda module: module.to(memory_format=torch.contiguous_format),
    "to meta": lambda module: module.to("meta"),
    "apply": lambda module: module.apply(lambda _: None),
    "requires grad": lambda module: module.requires_grad_(requires_grad=False),
}


@pytest.mark.parametrize("how", NOTHING)
def test_a_call_that_moves_nothing_is_no_stage(recording: Callable[..., Spans], how: str) -> None:
    bare = NOTHING[how](deep())
    spans, module = recording(), deep()
    with loadspan.load("model"):
        assert NOTHING[how](module) is module
    assert equal(module, bare)
    assert [tensor.is_shared() for tensor in module.parameters()] == [tensor.is_shared() for tensor in bare.parameters()]
    assert outline(spans.load()) == ([{"load model": ["cache"]}] if how == "share" else ["load model"])


@pytest.mark.parametrize("module", [torch.nn.ReLU(), torch.nn.Sequential(), torch.nn.ModuleList([torch.nn.ReLU()])], ids=repr)
def test_modules_without_tensors_are_left_alone(spans: Spans, module: Any) -> None:
    with loadspan.load("model"):
        assert module.half() is module
    assert outline(spans.load()) == ["load model"]


def test_calls_that_move_nothing_are_no_load_however_long_they_take(spans: Spans) -> None:
    module = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(3000)])
    assert module.to("cpu") is module
    assert module.float() is module
    assert spans.loads() == []


def test_memory_for_a_module_built_on_meta_is_initialize_without_bytes(spans: Spans) -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(1000, 500)
    with loadspan.load("model"):
        module.to_empty(device="cpu")
    assert {tensor.device.type for tensor in module.parameters()} == {"cpu"}
    tree = spans.load()
    assert outline(tree) == [{"load model": ["initialize"]}]
    assert "loadspan.size" not in the(tree, "initialize")


FAILURES: dict[str, Callable[[Any], Any]] = {
    "cuda": lambda module: module.cuda(),
    "to cuda": lambda module: module.to("cuda:0", torch.float16),
    "xpu": lambda module: module.xpu(),
    "integers": lambda module: module.to(torch.int32),
    "unknown": lambda module: module.to("nonsense"),
    "type": lambda module: module.type("nonsense"),
    "no device": lambda module: module.to_empty(),
}
CALLED = [["to_device", "initialize"], [{"to_device": ["initialize"]}]]  # short calls are tallied side by side
STAGES: dict[str, list[Any]] = dict.fromkeys(("cuda", "to cuda", "xpu"), CALLED) | {"type": [["convert"]]}


@pytest.mark.skipif(torch.cuda.is_available() or torch.xpu.is_available(), reason="what fails here works on this machine")
@pytest.mark.parametrize("how", FAILURES)
def test_a_move_that_fails_fails_as_it_did_and_is_told_once(recording: Callable[..., Spans], how: str) -> None:
    def call() -> Any:
        return FAILURES[how](layer())

    expected = failure(call)
    spans = recording()

    def recorded_call() -> None:
        with loadspan.load("model"):
            call()

    with pytest.raises(expected[0]):
        recorded_call()
    assert failure(call) == expected
    tree = spans.loads()[0]
    assert [name for name, _ in told(tree)] == [[span["name"] for span in walk(tree)][-1]]
    assert [error for _, error in told(tree)] == [expected[0].__name__]
    assert outline(tree["children"]) in STAGES.get(how, [[]])
    assert not any("loadspan.size" in span["attributes"] for span in walk(tree))


def test_what_is_on_meta_cannot_be_moved_with_or_without_us(recording: Callable[..., Spans]) -> None:
    def call() -> Any:
        with torch.device("meta"):
            module = torch.nn.Linear(1000, 500)
        return module.to("cpu")

    expected = failure(call)
    spans = recording()
    assert failure(call) == expected
    assert expected[0] is NotImplementedError
    with loadspan.load("next"):
        layer().half()
    assert outline(spans.loads()[-1]) == [{"load model": ["convert"]}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="what fails here works on this machine")
def test_a_device_that_cannot_be_set_up_fails_as_it_did_and_is_no_load_of_its_own(recording: Callable[..., Spans]) -> None:
    def initialize() -> None:
        torch.cuda._lazy_init()  # noqa: SLF001 - what is patched

    expected = failure(initialize)
    spans = recording()
    assert failure(initialize) == expected
    assert failure(torch.cuda.init)[:2] == expected[:2]
    assert failure(lambda: torch.zeros(1).cuda())[:2] == expected[:2]
    assert spans.loads() == []
    with pytest.raises(expected[0]), loadspan.load("model"):
        initialize()
    tree = spans.load()
    assert the(tree, "initialize")["loadspan.device.type"] == "cuda"
    assert told(tree) == [("initialize", expected[0].__name__)]


def test_parameters_can_be_swapped_whatever_we_know_of_them(recording: Callable[..., Spans], tmp_path: Path) -> None:
    torch.save(layer(), tmp_path / "module.pt")
    spans = recording()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module = torch.load(tmp_path / "module.pt", weights_only=False)
        module.half()
        module.load_state_dict(dict(layer().named_parameters()), assign=True)
        module.bfloat16()
        layer().load_state_dict(dict(module.named_parameters()))
        module.float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    first = spans.loads()[0]
    assert {"deserialize", "convert"} <= set(outline(first)[0]["load model"])


# Other kinds of modules


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # hosts still use it
def test_scripted_modules_are_cast_and_counted(recording: Callable[..., Spans]) -> None:
    bare = torch.jit.script(deep().layers).half()
    spans = recording()
    module = torch.jit.script(deep().layers)
    with loadspan.load("model"):
        module.to(torch.float16)
    assert equal(dict(module.state_dict()), dict(bare.state_dict()))
    assert the(spans.load(), "convert")["loadspan.size"] == DEPTH * 1_000_000


def test_parallel_optimized_and_averaged_modules_are_cast_and_counted(spans: Spans) -> None:
    wrappers = (torch.nn.DataParallel(deep()), torch.compile(deep(), backend="eager"), torch.optim.swa_utils.AveragedModel(deep()))
    for wrapper in wrappers:
        with loadspan.load("model"):
            assert wrapper.half() is wrapper
    assert [the(tree, "convert")["loadspan.size"] for tree in spans.loads()] == [DEPTH * 1_000_000] * len(wrappers)


def test_modules_that_are_not_initialized_are_left_to_be(spans: Spans) -> None:
    module = torch.nn.Sequential(torch.nn.LazyLinear(500), layer())
    with loadspan.load("model"):
        module.half()
    assert the(spans.load(), "convert")["loadspan.size"] == SIZE // 2
    assert module(torch.zeros(1, 1000, dtype=torch.float16)).shape == (1, 500) if module[1].in_features == 500 else True


def test_copies_and_pickles_of_modules_and_of_their_methods_work(spans: Spans) -> None:
    module = layer()
    with loadspan.load("model"):
        assert equal(copy.deepcopy(module), module)
        assert equal(pickle.loads(pickle.dumps(module)), module)  # noqa: S301 - our own
        for method in (module.to, module.load_state_dict, module._apply, module.half):  # noqa: SLF001 - what is patched
            twin = pickle.loads(pickle.dumps(method))  # noqa: S301 - our own
            assert twin.__func__ is method.__func__
            assert copy.deepcopy(method).__self__ is not module
        copy.deepcopy(module).half()
    assert the(spans.load(), "convert")["loadspan.size"] == SIZE // 2


def test_methods_come_back(recording: Callable[..., Spans]) -> None:
    before = vars(torch.nn.Module)["_apply"], vars(torch.nn.Module)["load_state_dict"], torch.cuda._lazy_init  # noqa: SLF001 - what is patched
    recording()
    now = vars(torch.nn.Module)["_apply"], vars(torch.nn.Module)["load_state_dict"], torch.cuda._lazy_init  # noqa: SLF001 - as above
    assert not any(ours is original for ours, original in zip(now, before, strict=True))
    LoadspanInstrumentor().uninstrument()
    after = vars(torch.nn.Module)["_apply"], vars(torch.nn.Module)["load_state_dict"], torch.cuda._lazy_init  # noqa: SLF001 - as above
    assert after == before


def test_modules_are_cast_from_many_threads_each_in_its_own_stage(spans: Spans) -> None:
    barrier = threading.Barrier(8)
    modules = [deep() for _ in range(8)]

    def work(module: Any) -> None:
        barrier.wait()
        with loadspan.load("model"):
            module.half()

    threads = [threading.Thread(target=work, args=(module,)) for module in modules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [the(tree, "convert")["loadspan.size"] for tree in spans.loads()] == [DEPTH * 1_000_000] * 8


@pytest.mark.swallowing
def test_a_module_whose_tensors_cannot_be_asked_is_cast_all_the_same(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_seen", set())
    module = layer()
    module._buffers = 5  # noqa: SLF001 - nothing that the survey could look through
    with loadspan.load("model"), pytest.raises(AttributeError):
        module.half()  # as it would without us
    with loadspan.load("next"):
        layer().half()
    assert the(spans.loads()[-1], "convert")["loadspan.size"] == SIZE // 2


def test_nothing_of_a_module_is_kept(spans: Spans) -> None:
    import weakref

    module = deep()
    gone = [weakref.ref(module), weakref.ref(module.tied.weight), weakref.ref(module.positions)]
    module.half()
    module.load_state_dict(module.state_dict())
    spans.finish()
    del module
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


# Compilers


class Moving(torch.nn.Module):
    """Moves a submodule in its forward, as models that keep a part in another precision do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, value: Any) -> Any:
        """Move, then compute."""
        self.linear.to(torch.float32)
        self.linear.to("cpu")
        return self.linear(value)


def test_a_compiler_finds_nothing_of_ours_in_the_graph(recording: Callable[..., Spans]) -> None:
    torch.manual_seed(0)
    module, value = Moving(), torch.ones(2, 4)
    bare = module(value)
    plain = torch.export.export(module, (value,), strict=True).graph_module.code
    spans = recording()
    torch._dynamo.reset()  # noqa: SLF001 - what was compiled before
    explained = torch._dynamo.explain(module)(value)  # noqa: SLF001 - has no public name
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with loadspan.load("model"):
        assert torch.equal(compiled(value), bare)
        assert torch.equal(compiled(value), bare)
        exported = torch.export.export(module, (value,), strict=True)
        assert exported.graph_module.code == plain
    assert outline(spans.loads()[-1]) == [{"load model": ["compile"]}]  # once, not at each call
