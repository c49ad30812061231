"""
The device that torch means: name, PCI address, NUMA node, memory.

torch is asked only where it has been imported and has initialized that device already: nothing is imported, initialized or made here.
Each answer is absent where it is not certain; the address above all, since a wrong one would blame the wrong link.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from loadspan.facts import accelerators, drivers, kfd, nvidia, pci, visible
from loadspan.facts.accelerators import INTEL
from loadspan.facts.tree import HERE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadspan.facts.tree import Tree

# What a host's device module may raise for a device that it does not have, or while another thread initializes it.
_HOST_ERRORS: Final = (RuntimeError, AssertionError, AttributeError, TypeError, ValueError, OSError, ImportError, LookupError)
_MEMORY: Final = 1 << 50
_UUID: Final = 16  # bytes
_PLAIN: Final = ("cpu", "mps", "meta")  # nothing to ask: no PCI device, and no memory but the machine's
_KNOWN: Final = ("cuda", "hip", "xpu")


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device of torch; what is not certain is None."""

    type: str
    """`cuda`, `hip` (which torch calls cuda), `xpu`, `npu`, `mps`, `cpu`, or another accelerator's name in torch."""
    index: int | None = None
    """As torch numbers it."""
    name: str | None = None
    pci_address: str | None = None
    numa_node: int | None = None
    memory: int | None = None
    """Bytes in all; of a MIG instance, its own."""
    uuid: str | None = None
    """For matching only: it identifies the user's hardware and goes into no span."""
    source: str | None = None
    """What told the address: `torch`, `driver`, `uuid`, `order` (variables and the order of the bus), `only` (one GPU of its vendor)."""
    final: bool = field(default=False, compare=False)
    """Whether asking again tells no more: before torch has initialized the device, less is known."""


@dataclass(frozen=True, slots=True)
class _Properties:
    """What torch's device module tells."""

    name: str | None = None
    memory: int | None = None
    address: str | None = None
    uuid: bytes | None = None


def _module(kind: str) -> Any:
    """The module of device type *kind* in torch, where that has been imported."""
    # Out of its dictionary: torch imports some of its attributes when they are asked for.
    return getattr(sys.modules.get("torch"), "__dict__", {}).get(kind)


def _kind(kind: str, tree: Tree) -> str:
    """Torch built for ROCm says cuda of what is hip; without torch the machine tells, where it has GPUs of one of the two only."""
    if kind != "cuda":
        return kind
    if "torch" in sys.modules:
        return "hip" if getattr(_module("version"), "hip", None) else kind
    return "hip" if not accelerators.nvidia_gpus(tree) and kfd.gpus(tree) else kind


def _initialized(module: Any) -> bool:
    ask = getattr(module, "is_initialized", None)
    try:
        return bool(ask()) if callable(ask) else False
    except _HOST_ERRORS:
        return False


def _whole(value: Any, least: int, limit: int) -> int | None:
    return int(value) if isinstance(value, int) and not isinstance(value, bool) and least <= value < limit else None


def _current(module: Any) -> int | None:
    try:
        return _whole(module.current_device(), 0, 1 << 16)
    except _HOST_ERRORS:
        return None


def _uuid(value: Any) -> bytes | None:
    """The 16 bytes of a UUID: torch gives an object that holds them, bytes, or text."""
    raw = getattr(value, "bytes", value)
    if isinstance(raw, str):
        try:
            raw = bytes.fromhex(raw.lower().removeprefix("gpu-").replace("-", ""))
        except ValueError:
            return None
    return raw if isinstance(raw, bytes) and len(raw) == _UUID and any(raw) else None


def _properties(module: Any, index: int) -> _Properties:
    try:
        told = module.get_device_properties(index)
        fields = {name: getattr(told, f"pci_{name}_id", None) for name in ("domain", "bus", "device")}
        name, memory, uuid = (getattr(told, attribute, None) for attribute in ("name", "total_memory", "uuid"))
    except _HOST_ERRORS:
        return _Properties()
    domain, bus, device = _whole(fields["domain"], 0, 1 << 32), _whole(fields["bus"], 0, 256), _whole(fields["device"], 0, 32)
    # All zeros is a module that does not know: the machine's host bridge is there.
    known = domain is not None and bus is not None and device is not None and (domain, bus, device) != (0, 0, 0)
    return _Properties(
        nvidia.clean_name(name) if isinstance(name, str) else None,
        _whole(memory, 1, _MEMORY),
        f"{domain:04x}:{bus:02x}:{device:02x}.0" if known else None,
        _uuid(uuid),
    )


def _function(tree: Tree, address: str) -> str | None:
    """*address*, whose function number torch does not tell: where the kernel has no function 0 there, the only one that it has."""
    if tree.exists(f"{pci.DEVICES}/{address}"):
        return address
    others = [name for name in tree.names(pci.DEVICES) if name[:-1] == address[:-1]]
    # Not there at all: a container that hides devices, or WSL. The driver knows better.
    return others[0] if len(others) == 1 else None if others else address


def _by_uuid(kind: str, uuid: bytes, tree: Tree) -> str | None:
    if kind == "cuda":
        return _only([gpu.address for gpu in nvidia.gpus(tree) if gpu.uuid == _dashed(uuid)])
    if kind == "hip":
        # ROCm writes the card's unique number as sixteen letters.
        told = f"GPU-{uuid.decode('ascii', 'replace').lower()}"
        return _only(list({node.address for node in kfd.gpus(tree) if kfd.uuid(node) == told}))
    return _intel(uuid, tree) if kind == "xpu" else None


def _dashed(uuid: bytes) -> str:
    text = uuid.hex()
    return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _intel(uuid: bytes, tree: Tree) -> str | None:
    """Intel's driver makes most UUIDs of vendor, device, revision and PCI address; believed where that very device is at the address."""
    vendor, model, domain = (int.from_bytes(uuid[at : at + 2], "little") for at in (0, 2, 6))
    if vendor != INTEL or uuid[9] > 31 or uuid[10] > 7:  # noqa: PLR2004 - devices of a bus, functions of a device
        return None
    address = f"{domain:04x}:{uuid[8]:02x}:{uuid[9]:02x}.{uuid[10]}"
    found = next((device for device in pci.accelerators(tree) if device.address == address), None)
    return address if found is not None and accelerators.is_xpu(found) and found.device == model else None


def _only(found: list[Any]) -> str | None:
    return found[0] if len(found) == 1 else None


def _by_order(kind: str, index: int, tree: Tree, environment: Mapping[str, str]) -> str | None:
    if kind == "cuda":
        gpus = accelerators.nvidia_gpus(tree)
        place = accelerators.visible_nvidia(gpus, tree, environment).position(index)
        return gpus[place].address if place is not None else None
    if kind == "hip":
        nodes = kfd.gpus(tree)
        place = visible.hip([kfd.uuid(node) for node in nodes], environment).position(index)
        return nodes[place].address if place is not None else None
    return None


def _by_vendor(kind: str, index: int | None, tree: Tree) -> str | None:
    """The machine's only GPU of the vendor. A later index may be a part of it: a MIG instance, a partition, a tile."""
    if kind == "cuda":
        gpus = accelerators.nvidia_gpus(tree)
        return gpus[0].address if len(gpus) == 1 and (not index or nvidia.is_partitioned(tree)) else None
    if kind == "hip" and (nodes := kfd.gpus(tree)):
        return _only(list({node.address for node in nodes})) if not index or index < len(nodes) else None
    return _only([device.address for device in pci.accelerators(tree) if accelerators.is_xpu(device)]) if kind == "xpu" else None


def _address(
    kind: str, index: int | None, told: _Properties, tree: Tree, environment: Mapping[str, str], *, live: bool
) -> tuple[str | None, str | None]:
    """The address and what told it: the first that answers."""
    if told.address is not None:
        # Of a backend that nobody has read, the numbers are believed where the kernel has such a device.
        address = _function(tree, told.address) if kind in _KNOWN or pci.device(tree, told.address) is not None else None
        return address, "torch" if address is not None else None
    if kind not in _KNOWN:
        return None, None
    if live and tree.here and index is not None and kind != "xpu":
        address = drivers.cuda_address(index) if kind == "cuda" else drivers.hip_address(index)
        if address is not None:
            return address, "driver"
    if told.uuid is not None and (address := _by_uuid(kind, told.uuid, tree)) is not None:
        return address, "uuid"
    if index is not None and (address := _by_order(kind, index, tree, environment)) is not None:
        return address, "order"
    address = _by_vendor(kind, index, tree)
    return address, "only" if address is not None else None


def _named(kind: str, address: str | None, tree: Tree) -> tuple[str | None, int | None, str | None]:
    """Name, memory and UUID that the kernel driver tells of the GPU at *address*."""
    if kind == "cuda" and address is not None:
        gpu = next((gpu for gpu in nvidia.gpus(tree) if gpu.address == address), nvidia.Gpu(address))
        return gpu.name, None, gpu.uuid
    if kind == "hip" and address is not None:
        return accelerators.amd_name(tree, address), accelerators.amd_memory(tree, address), None
    return None, None, None


def of_torch(kind: str, index: int | None, tree: Tree = HERE, environment: Mapping[str, str] | None = None) -> DeviceFacts:
    """
    Facts of the torch device *kind*, *index*; without an index, of the current one where torch has initialized it.

    Callable from any thread. It costs some milliseconds on a machine with many GPUs: ask once for each device.
    """
    if kind in _PLAIN:
        return DeviceFacts(kind, index, final=True)
    environment = os.environ if environment is None else environment
    module = _module("cuda" if kind == "hip" else kind)
    live = _initialized(module)
    kind = _kind(kind, tree)
    if index is None and live:
        index = _current(module)
    told = _properties(module, index) if live and index is not None else _Properties()
    address, source = _address(kind, index, told, tree, environment, live=live)
    name, memory, uuid = (None, None, None) if told.name and told.memory else _named(kind, address, tree)
    return DeviceFacts(
        kind,
        index,
        told.name or name,
        address,
        pci.numa_node(tree, address) if address is not None else None,
        told.memory or memory,
        _dashed(told.uuid) if told.uuid is not None else uuid,
        source,
        final=live and index is not None,
    )
