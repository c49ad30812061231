"""
Moves to the fake accelerator, each recorded alone; prints what happened as JSON.

A program of its own: a device that was registered stays for the rest of the process.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import fakegpu
import torch
from hosts import layer
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from packed import Packed

import loadspan
import loadspan.guard
from loadspan import LoadspanInstrumentor
from recorded import provider_of, tree_of

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICE = fakegpu.register()


class Mixed(torch.nn.Module):
    """Parameters, a buffer of integers, one of floats and one that is None."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(100, 50)
        self.register_buffer("positions", torch.arange(1000))
        self.register_buffer("scale", torch.ones(30))
        self.register_buffer("nothing", None)


class Tied(torch.nn.Module):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(50, 100), torch.nn.Linear(100, 50, bias=False)
        self.head.weight = self.embedding.weight


class Adapter(torch.nn.Module):
    """A layer with a low-rank adapter beside it, as peft makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = layer()
        self.adapters = torch.nn.ModuleDict({"a": torch.nn.Linear(1000, 8, bias=False), "b": torch.nn.Linear(8, 500, bias=False)})


def meta() -> Any:
    with torch.device("meta"):
        return Mixed()


def partial() -> Any:
    module = torch.nn.Sequential(layer(), layer())
    module[0].to(DEVICE)
    return module


def there() -> Any:
    return Mixed().to(DEVICE)


def viewed() -> Any:
    module, base = torch.nn.Module(), torch.zeros(1000)
    module.register_buffer("left", base[:600])
    module.register_buffer("right", base[300:])
    return module


def mixed_meta() -> Any:
    module = Mixed()
    module.linear.weight = torch.nn.Parameter(torch.empty(50, 100, device="meta"))
    return module


def quantized() -> Any:
    module = torch.nn.Linear(512, 256, bias=False)
    module.weight = torch.nn.Parameter(Packed(torch.ones(256, 512, dtype=torch.int8), torch.ones(256, 1)), requires_grad=False)
    return module


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "fresh": (Mixed, lambda module: module.to(DEVICE)),
    "without index": (Mixed, lambda module: module.to("fakegpu")),
    "like a tensor": (Mixed, lambda module: module.to(torch.empty(1, device=DEVICE))),
    "non-blocking": (Mixed, lambda module: module.to(DEVICE, non_blocking=True)),
    "deep": (lambda: torch.nn.Sequential(Mixed(), torch.nn.Sequential(layer(), Mixed())), lambda module: module.to(DEVICE)),
    "partial": (partial, lambda module: module.to(DEVICE)),
    "again": (there, lambda module: module.to(DEVICE)),
    "again without index": (there, lambda module: module.to("fakegpu")),
    "device and dtype": (Mixed, lambda module: module.to(DEVICE, torch.float16)),
    "device and wider dtype": (Mixed, lambda module: module.to(device=DEVICE, dtype=torch.float64)),
    "dtype there": (there, lambda module: module.half()),
    "tied": (Tied, lambda module: module.to(DEVICE)),
    "views": (viewed, lambda module: module.to(DEVICE)),
    "buffers": (lambda: torch.nn.BatchNorm1d(500, affine=False), lambda module: module.to(DEVICE)),
    "back": (there, lambda module: module.cpu()),
    "back without a copy": (there, lambda module: module.to_empty(device="cpu")),
    "memory only": (Mixed, lambda module: module.to_empty(device=DEVICE)),
    "memory from meta": (meta, lambda module: module.to_empty(device=DEVICE)),
    "meta": (meta, lambda module: module.to(DEVICE)),
    "partly meta": (mixed_meta, lambda module: module.to(DEVICE)),
    "adapter": (Adapter, lambda module: module.to(DEVICE)),
    "adapter alone": (lambda: Adapter().to(DEVICE), lambda module: module.adapters.update({"a": layer()}) or module.to(DEVICE)),
    "state dict": (there, lambda module: module.load_state_dict(Mixed().state_dict())),
    "quantized": (quantized, lambda module: module.to(DEVICE)),
    "training": (lambda: Mixed().train(), lambda module: module.to(DEVICE)),
}


def main() -> None:
    """Run each case bare and recorded."""
    loadspan.guard.raising = True
    exporter = InMemorySpanExporter()
    provider = provider_of(exporter)
    found = {name: {"bare": _run(*case)} for name, case in CASES.items()}
    LoadspanInstrumentor().instrument(tracer_provider=provider)
    for name, case in CASES.items():
        exporter.clear()
        found[name]["recorded"] = _run(*case)
        found[name]["tree"] = next(tree for tree in tree_of(exporter.get_finished_spans()) if tree["attributes"].get("loadspan.model.name"))
    LoadspanInstrumentor().uninstrument()
    json.dump(found, sys.stdout)


def _run(make: Callable[[], Any], move: Callable[[Any], Any]) -> list[Any]:
    """Bytes copied, what came of it, and where everything is afterwards."""
    torch.manual_seed(0)
    module = make()
    before, result = fakegpu.copied(), None
    try:
        with loadspan.load("model"):
            result = move(module)
    except NotImplementedError as error:
        result = repr(error)
    copied = fakegpu.copied() - before
    state = module.state_dict()
    places = {key: [str(tensor.device), str(tensor.dtype)] for key, tensor in state.items()}
    sums = {key: float(tensor.cpu().double().sum()) for key, tensor in state.items() if tensor.device.type != "meta"}
    return [copied, "itself" if result is module else str(result), places, sums]


if __name__ == "__main__":
    main()
