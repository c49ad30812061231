"""
A move to the fake accelerator on each of several recorded machines; prints the attributes of the load and of the move as JSON.

    on_machines.py FOLDER       recorded machines, a folder each

The accelerator says of itself, as `torch.cuda` does, which PCI device it is. What its link does is what the recorded files say at that
moment: a link that wakes up when bytes move is one whose files are rewritten while they do.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakegpu
import torch
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import loadspan
import loadspan.guard
from loadspan import LoadspanInstrumentor
from loadspan.facts.tree import Tree
from loadspan.instrument import sampler, topology
from loadspan.instrument.destination import Destination
from recorded import provider_of, tree_of

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICE = fakegpu.register()
ADDRESSES = {"fakegpu:0": "", "fakegpu:1": ""}


def properties(index: int) -> Any:
    """What `torch.cuda.get_device_properties` tells, of the machine that is being played."""
    address = ADDRESSES[f"fakegpu:{index}"]
    domain, bus, rest = address.split(":")
    return types.SimpleNamespace(
        name=f"Fake {index}",
        total_memory=1 << 34,
        pci_domain_id=int(domain, 16),
        pci_bus_id=int(bus, 16),
        pci_device_id=int(rest.split(".")[0], 16),
    )


def links(folder: Path, **values: str) -> None:
    """Rewrite what the links of a machine do now."""
    for name, value in values.items():
        for path in folder.glob(f"sys/devices/pci*/**/current_link_{name}"):
            path.write_text(value + "\n")


def module(size: int) -> torch.nn.Module:
    """A module of so many bytes, in ten tensors."""
    made = torch.nn.Module()
    for number in range(10):
        made.register_parameter(f"p{number}", torch.nn.Parameter(torch.zeros(size // 40)))
    return made


def play(folder: Path, address: str) -> None:
    """Be the machine in *folder*, the accelerator the device at *address*."""
    ADDRESSES[DEVICE] = address
    topology.tree = Tree(str(folder))
    topology._known.clear()  # noqa: SLF001 - another machine


def move(folder: Path, address: str, during: Callable[[Path], None] | None = None, size: int = 40_000_000) -> dict[str, Any]:
    """Move a module to the device at *address* of the machine in *folder*."""
    play(folder, address)
    exporter.clear()
    work = threading.Thread(target=during, args=(folder,)) if during is not None else None
    moved = module(size)
    if work is not None:
        work.start()
    with loadspan.load("model"):
        moved.to(DEVICE)
    if work is not None:
        work.join()
    (load,) = tree_of(exporter.get_finished_spans())
    return {"load": load["attributes"], "to_device": load["children"][0]["attributes"]}


def current(folder: Path, address: str, other: str) -> dict[str, Any]:
    """Move to the current device, which in this thread is the one at *address*, and in all others the one at *other*."""
    play(folder, address)
    ADDRESSES["fakegpu:1"] = other
    exporter.clear()
    here = threading.get_ident()
    torch.fakegpu.current_device = lambda: 0 if threading.get_ident() == here else 1  # type: ignore[attr-defined] # as torch.cuda
    moved = module(800_000_000)
    with loadspan.load("model"):
        moved.to("fakegpu")
    torch.fakegpu.current_device = lambda: 0  # type: ignore[attr-defined] # as before
    (load,) = tree_of(exporter.get_finished_spans())
    return {"load": load["attributes"], "to_device": load["children"][0]["attributes"]}


def fast(folder: Path, address: str) -> dict[str, Any]:
    """What is said of a way over which a gigabyte a second was measured to pass, however fast this machine copies."""
    play(folder, address)
    there = Destination("fakegpu", 0)
    for _ in range(3):
        topology.look(there)
    there.end(time.perf_counter_ns(), 1e9)
    return topology.attributes([there])


def declared(folder: Path, address: str) -> dict[str, Any]:
    """A copy that only the program knows of: it says to which device."""
    play(folder, address)
    exporter.clear()
    with loadspan.load("model"), loadspan.stage("to_device", device=DEVICE, size=40_000_000):
        time.sleep(0.5)
    (load,) = tree_of(exporter.get_finished_spans())
    return {"load": load["attributes"], "to_device": load["children"][0]["attributes"]}


def wakes(folder: Path) -> None:
    """The link goes up, and is back down long before anybody looks at it in peace."""
    links(folder, speed="32.0 GT/s PCIe")
    time.sleep(0.3)
    links(folder, speed="2.5 GT/s PCIe")


def main() -> None:
    """Play every machine."""
    machines = Path(sys.argv[1])
    loadspan.guard.raising = True
    sampler.TICK = 0.02  # a machine that copies fast has moved everything before three tenths of a second are over
    torch.fakegpu = types.SimpleNamespace(  # type: ignore[attr-defined] # as torch.cuda
        is_initialized=lambda: True, get_device_properties=properties, current_device=lambda: 0
    )
    LoadspanInstrumentor().instrument(tracer_provider=provider_of(exporter))
    found = {
        "trained down": move(machines / "trained-down", "0000:01:00.0", size=800_000_000),
        "idle": move(machines / "idle-link", "0000:01:00.0", wakes, 800_000_000),
        "narrow": move(machines / "narrow-slot", "0000:01:00.0"),
        "local": move(machines / "two-sockets", "0000:18:00.0"),
        "remote": move(machines / "two-sockets", "0000:8c:00.0"),
        "virtual": move(machines / "vm-emulated", "0000:01:00.0"),
        "no sysfs": move(machines / "container-no-pci", "0000:01:00.0"),
    }
    found["current"] = current(machines / "two-sockets", "0000:18:00.0", "0000:8c:00.0")
    found["declared"] = declared(machines / "trained-down", "0000:01:00.0")
    sampler.TICK = 60  # a moment is one in which nobody looks three times, however busy the machine
    time.sleep(0.1)  # until the sampler has waited as long as it meant to before
    found["a moment"] = move(machines / "trained-down", "0000:01:00.0", size=4_000_000)
    links(machines / "trained-down", speed="2.5 GT/s PCIe", width="1")
    found["stale"] = {"to_device": fast(machines / "trained-down", "0000:01:00.0")}
    play(machines / "two-sockets", "0000:18:00.0")
    ADDRESSES["fakegpu:1"] = "0000:8c:00.0"
    found["two"] = {"load": topology.attributes([Destination("fakegpu", index) for index in (0, 1)])}
    LoadspanInstrumentor().uninstrument()
    json.dump(found, sys.stdout)


exporter = InMemorySpanExporter()

if __name__ == "__main__":
    main()
