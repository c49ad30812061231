"""
Adapters in a model, as peft puts them there: their layers, bytes and deltas. What the rows of peft and of diffusers have in common.

A LoRA switch is up to three works that take very different times: reading (`deserialize`), injecting the layers (`initialize`) and
merging, of which computing the deltas is one part. Nothing is imported: a layer is whatever is marked as peft marks its own.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import observed
from loadspan.instrument.calls import RowRecording
from loadspan.instrument.frames import OpenStage, current
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Target, patch_method
from loadspan.instrument.targets import moves, tensors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadspan.instrument.frames import OpenLoad
    from loadspan.instrument.patching import Args, Kwargs

LOAD, SWAP, MERGE, UNMERGE = "load", "swap", "merge", "unmerge"
ACTIVATE, COMBINE, REMOVE = "activate", "combine", "remove"

_DELTA = "get_delta_weight"
_ROW = Target(
    module="peft.tuners.tuners_utils",
    attribute=f"BaseTunerLayer.{_DELTA}",
    stage=names.MERGE_LORA,
    why="computes the delta of a layer; each kind of layer has its own, which is patched when one is about to be merged",
)


def layers(model: Any) -> list[Any]:
    """Adapter layers of a model: what peft marks as such, whatever the kind of adapter."""
    # Asked of the type first: an attribute that a module lacks is looked for in three dictionaries.
    found = (module for module in _modules(model) if getattr(type(module), "adapter_layer_names", None) is not None)
    return [module for module in found if hasattr(module, "merged_adapters")]


def _modules(model: Any) -> list[Any]:
    """A model and all modules in it, each once. What torch has for it takes three times as long, and there are thousands."""
    found, known = [model], {id(model)}
    for module in found:
        for child in module._modules.values():  # noqa: SLF001 - as said
            if child is not None and id(child) not in known:
                known.add(id(child))
                found.append(child)
    return found


def parts(layer: Any, adapter: str) -> list[Any]:
    """Modules and parameters of one adapter in a layer."""
    holders: Iterable[Any] = (getattr(layer, name, None) for name in layer.adapter_layer_names)
    return [holder[adapter] for holder in holders if hasattr(holder, "keys") and adapter in holder]


def size(part: Any) -> int:
    """Bytes of a part of an adapter."""
    if not hasattr(part, "_parameters"):
        return tensors.size(part)
    found = (value for module in _modules(part) for value in module._parameters.values())  # noqa: SLF001 - as above
    return sum(tensors.size(value) for value in found if value is not None)


def listed(adapters: Any) -> list[str]:
    """Names of adapters, of which a library takes one or several, or has a method that tells them."""
    told = adapters() if callable(adapters) else adapters
    return [told] if isinstance(told, str) else list(told or ())


def outermost(args: Args, kwargs: Kwargs) -> bool:
    """A row's `when`: the call is not part of another that is recorded as a merge. What it would tell is told there."""
    return recorder.active and recorder.same(current.get(), names.MERGE_LORA) is None


def called(stage: OpenStage | OpenLoad, adapters: Iterable[Any], action: str) -> None:
    """Say which adapters a stage is about, where that is known, and what is done with them."""
    stage.attributes[names.ADAPTER_ACTION] = action
    if name := ", ".join(map(str, adapters)):
        stage.attributes[names.ADAPTER_NAME] = name


def merging(stage: OpenStage | OpenLoad, models: Iterable[Any], adapters: Any) -> None:
    """
    Say what a merge will do; None for the active adapters.

    Counted before: merging and unloading replaces the layers.
    """
    wanted = None if adapters is None else listed(adapters)
    found, changes, repeated = _layers_of(models), [], 0
    named = dict.fromkeys(wanted or ())
    for layer in found:
        asked = listed(layer.active_adapters) if wanted is None else wanted
        merged = layer.merged_adapters
        repeated += any(adapter in merged for adapter in asked)
        changes.append((layer, [adapter for adapter in asked if adapter not in merged]))
        named.update(dict.fromkeys(asked))
    called(stage, named, MERGE)
    if repeated:
        stage.attributes[names.MERGE_REPEATED] = repeated
    _changing(stage, changes)


def unmerging(stage: OpenStage | OpenLoad, models: Iterable[Any]) -> None:
    """Say what is about to be taken out of the base weights: all that was merged."""
    merged = [(layer, list(layer.merged_adapters)) for layer in _layers_of(models) if layer.merged_adapters]
    called(stage, sorted({str(adapter) for _, adapters in merged for adapter in adapters}), UNMERGE)
    _changing(stage, merged)


def _layers_of(models: Iterable[Any]) -> list[Any]:
    return [layer for model in models if hasattr(model, "modules") for layer in layers(model)]


def _changing(stage: OpenStage | OpenLoad, changes: Iterable[tuple[Any, list[str]]]) -> None:
    """Layers and bytes of the adapters that go into or out of the base weights; of each layer, only those that it has."""
    changes = list(changes)
    found = [[part for adapter in those for part in parts(layer, adapter)] for layer, those in changes]
    stage.attributes[names.MERGED_LAYERS] = sum(map(bool, found))
    stage.size = sum(size(part) for those in found for part in those)
    count_deltas(layer for layer, _ in changes)


# Deltas: as big as the base weights, computed layer by layer


class _Inside(threading.local):
    delta = False


_inside = _Inside()


def count_deltas(found: Iterable[Any]) -> None:
    """From now on, count the deltas that layers of these kinds compute in a merge."""
    for kind in set(map(type, found)):
        patch_method(kind, _DELTA, lambda original: observed(original, _begin, _end, _fail), _ROW)


def _begin(args: Args, kwargs: Kwargs) -> tuple[OpenStage, int] | None:
    stage = recorder.same(current.get(), names.MERGE_LORA) if recorder.active and not _inside.delta else None
    if stage is None:
        return None
    _inside.delta = True
    return stage, time.perf_counter_ns()


def _end(call: tuple[OpenStage, int], result: Any, args: Args, kwargs: Kwargs) -> None:
    stage, begun = call
    took, _inside.delta = time.perf_counter_ns() - begun, False
    found = stage.attributes
    found[names.DELTA_SIZE] = found.get(names.DELTA_SIZE, 0) + tensors.size(result)
    if result.device.type == "cpu":
        found[names.DELTA_TIME] = found.get(names.DELTA_TIME, 0.0) + took / 1e9


def _fail(call: tuple[OpenStage, int], error: BaseException) -> None:
    _inside.delta = False


# Injection: the layers of an adapter are made and moved to where the base layers are


class LayerByLayer:
    """Recording of a function that moves each of an adapter's thousand modules by itself: that is part of its work."""

    def __init__(self, row: Target) -> None:
        self._row = RowRecording(row)

    def open(self, args: Args, kwargs: Kwargs) -> Any:
        """Open the stage, if there is to be one; a new adapter that is to be trained is moved as well."""
        if not recorder.active:
            return None
        stage = self._row.open(args, kwargs)
        moves.within.calls += 1
        return (stage,)

    def close(self, frame: Any, result: Any, error: BaseException | None, args: Args, kwargs: Kwargs) -> None:
        """Close it."""
        moves.within.calls -= 1
        if frame[0] is not None:
            self._row.close(frame[0], result, error, args, kwargs)


def injected(stage: OpenStage | OpenLoad, model: Any, adapter: str) -> None:
    """Count the layers that an adapter was put into, and tell the merge around."""
    found = [layer for layer in layers(model) if parts(layer, adapter)]
    count_deltas(found)  # whatever merges them
    count = len(found)
    stage.attributes[names.INJECTED_LAYERS] = count
    outer = recorder.same(stage.parent, names.MERGE_LORA)
    if outer is not None:
        outer.attributes[names.INJECTED_LAYERS] = outer.attributes.get(names.INJECTED_LAYERS, 0) + count
        outer.attributes.setdefault(names.ADAPTER_NAME, adapter)
