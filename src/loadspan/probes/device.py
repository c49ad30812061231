"""
How fast memory is copied to a device: out of pageable memory, and out of pinned memory.

Through torch, on any type of device that it knows. Without torch or the device there is nothing to measure.
"""

from __future__ import annotations

import time
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from loadspan.facts import numa
from loadspan.facts.rates import MEMORY, Outcome, Rate, Skipped
from loadspan.probes import Bounds, Plan, Progress, Step, first_line, installed
from loadspan.units import seconds as seconds_text
from loadspan.units import size as size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGEABLE, PINNED = "copy to device, pageable", "copy to device, pinned"
BLOCK = 256 << 20
"""Bytes of one copy: a large tensor, beyond the processor's caches."""
_SECONDS = 1.0
_HOST = ("cpu", "meta")


def plan(device: str, bounds: Bounds | None = None) -> Plan:
    """What will be copied to *device*, a torch device such as `cuda:0`. torch is imported when it runs."""
    bounds = bounds or Bounds()
    block = min(BLOCK, bounds.size)
    steps = (Step(PAGEABLE, bounds.size), Step(PINNED, bounds.size))
    limit = f"at most {size_text(bounds.size)} and {seconds_text(bounds.seconds)} each"
    line = f"copies {size_text(block)} again and again to {device}, out of pageable and of pinned memory; {limit}"

    def run(progress: Progress) -> Iterator[Outcome]:
        for step in steps:
            yield _measured(step.probe, device, block, bounds, progress)

    return Plan((line,), steps, run)


def _measured(probe: str, device: str, block: int, bounds: Bounds, progress: Progress) -> Outcome:
    if not installed("torch"):
        return Skipped(probe, "torch is not installed")
    torch: Any = import_module("torch")
    try:
        target_device = torch.device(device)
        if target_device.type in _HOST:
            return Skipped(probe, f"{device} is no accelerator")
        backend = _backend(torch, target_device.type)
        block = min(block, _fitting(backend, target_device))
        # Filled: memory that nobody wrote to is one page of zeros, and no copy of it is like that of a tensor.
        source = torch.zeros(block, dtype=torch.uint8, pin_memory=probe == PINNED).fill_(1)
        target = torch.empty(block, dtype=torch.uint8, device=target_device)
    except (RuntimeError, ImportError, AttributeError, AssertionError, MemoryError) as error:
        return Skipped(probe, f"not possible on {device}: {first_line(error)}")
    if target.device.type in _HOST or (probe == PINNED and not source.is_pinned()):
        return Skipped(probe, f"not possible on {device}: the memory is not what was asked for")

    def copy() -> None:
        target.copy_(source, non_blocking=probe == PINNED)

    try:
        outcome = _timed(probe, copy, _waiting(backend, target_device), block, bounds, progress)
    except RuntimeError as error:
        return Skipped(probe, f"failed on {device}: {first_line(error)}")
    return replace(outcome, note=_origin(source)) if isinstance(outcome, Rate) else outcome


def _origin(source: Any) -> str | None:
    """On which NUMA node the memory was: what another node would give is another rate."""
    nodes = None if numa.single() else numa.node_of_pages(source.data_ptr(), source.nbytes)
    return f"from memory of NUMA node {', '.join(map(str, sorted(nodes)))}" if nodes else None


def _timed(probe: str, copy: Callable[[], None], wait: Callable[[], None], block: int, bounds: Bounds, progress: Progress) -> Outcome:
    copy()  # the device starts, buffers are made
    wait()
    done, most, wanted = 0, max(bounds.size // block, 1) * block, min(_SECONDS, bounds.seconds)
    seconds = 0.0
    while seconds < wanted and done < most:
        began = time.perf_counter()
        copy()
        wait()
        seconds += time.perf_counter() - began
        done += block
        progress(probe, done, most)
    return Rate(probe, done, seconds, block=block, verified=True, source=MEMORY) if seconds > 0 else Skipped(probe, "took no time")


def _backend(torch: Any, kind: str) -> Any:
    """The module of torch for devices of *kind*: `torch.cuda`, `torch.npu`; None where it has none."""
    return getattr(torch, kind, None)


def _waiting(backend: Any, device: Any) -> Callable[[], None]:
    """What returns when the copies are done; a device without it has no copies that return early."""
    synchronize = getattr(backend, "synchronize", None)
    if synchronize is None:
        return lambda: None
    return synchronize if device.type == "mps" else lambda: synchronize(device)


def _fitting(backend: Any, device: Any) -> int:
    """Half of the memory that is free on the device, where it tells."""
    tell = getattr(backend, "mem_get_info", None)
    return max(int(tell(device)[0]) // 2, 1) if tell is not None else BLOCK
