"""
Every accelerator of the machine, without torch and without initializing one: PCI devices, named by their kernel drivers.

torch's type and index are told where they are certain; an accelerator that no index leads to may be hidden by a variable.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadspan.facts import kfd, nvidia, nvml, pci, visible
from loadspan.facts.pci import AMD, DISPLAY, PciDevice
from loadspan.facts.tree import HERE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadspan.facts.tree import Tree
    from loadspan.facts.visible import Visible

NVIDIA: Final = 0x10DE
INTEL: Final = 0x8086
_VENDORS: Final = {NVIDIA: "nvidia", AMD: "amd", INTEL: "intel"}
_TYPES: Final = {NVIDIA: "cuda", AMD: "hip", INTEL: "xpu"}
_MEMORY: Final = 1 << 50


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One accelerator; what is not certain is None."""

    address: str
    vendor: str | None = None
    """`nvidia`, `amd`, `intel`, or the vendor's PCI number as `0x1234`."""
    type: str | None = None
    """As `DeviceFacts.type`; None for a vendor whose torch device is not known."""
    name: str | None = None
    memory: int | None = None
    numa_node: int | None = None
    driver: str | None = None
    """Kernel driver that has it: `nvidia`, `amdgpu`, `vfio-pci` (given to a virtual machine), ..."""
    index: int | None = None
    """By which torch finds it in a process with this environment."""
    visible: bool | None = None
    """Whether such a process may use it: a variable, a container or another kernel driver may keep it from that."""
    c2c: int | None = None
    """Links to the CPU that are not PCIe: its PCIe link is then not the main path."""
    uuid: str | None = None
    """For matching only: it identifies the user's hardware and goes into no output."""


def nvidia_gpus(tree: Tree) -> list[nvidia.Gpu]:
    """NVIDIA's GPUs that this process may use, in the order of the PCI bus; out of `/sys` where their driver does not list them."""
    listed = nvidia.gpus(tree)
    if listed or tree.exists("proc/driver/nvidia"):
        return [gpu for gpu in listed if gpu.usable]
    # Another kernel driver, as nouveau or vfio-pci, keeps CUDA from it.
    found = [device.address for device in pci.accelerators(tree) if device.vendor == NVIDIA and device.driver in (None, "nvidia")]
    return [nvidia.Gpu(address) for address in sorted(found, key=nvidia.order)]


def is_xpu(device: PciDevice) -> bool:
    """Whether *device* is an Intel GPU: their laptops have another accelerator, which torch does not know, beside it."""
    return device.vendor == INTEL and device.class_code is not None and device.class_code >> 16 == DISPLAY


def visible_nvidia(
    gpus: list[nvidia.Gpu], tree: Tree, environment: Mapping[str, str], instances: Mapping[str, int] | None = None
) -> Visible:
    """Which of *gpus* CUDA's indices lead to."""
    return visible.cuda([gpu.uuid for gpu in gpus], environment, instances, partitioned=nvidia.is_partitioned(tree))


def amd_memory(tree: Tree, address: str) -> int | None:
    """Bytes of memory of the AMD GPU at *address*."""
    size = tree.number(f"{pci.DEVICES}/{address}/mem_info_vram_total")
    return size if size is not None and 0 < size < _MEMORY else None


def amd_name(tree: Tree, address: str) -> str | None:
    """Product name of the AMD GPU at *address*; only accelerators' boards carry one."""
    return nvidia.clean_name(tree.text(f"{pci.DEVICES}/{address}/product_name"))


class _Nvidia:
    """What is known of NVIDIA's GPUs, by address."""

    def __init__(self, tree: Tree, environment: Mapping[str, str], managed: list[nvml.NvmlGpu]) -> None:
        self.listed = {gpu.address: gpu for gpu in nvidia.gpus(tree)}
        self.managed = {gpu.address: gpu for gpu in managed}
        self.usable = nvidia_gpus(tree)
        places = {gpu.address: place for place, gpu in enumerate(self.usable)}
        instances = {uuid: places[gpu.address] for gpu in managed if gpu.address in places for uuid in gpu.instances}
        self._visible = visible_nvidia(self.usable, tree, environment, instances)
        self._places = places

    def addresses(self) -> set[str]:
        """Every GPU that the driver or its library told of."""
        return {*self.listed, *self.managed}

    def fill(self, device: PciDevice) -> Accelerator:
        """The accelerator that *device* is."""
        listed, managed = self.listed.get(device.address), self.managed.get(device.address)
        place = self._places.get(device.address)
        return Accelerator(
            device.address,
            _VENDORS[NVIDIA],
            _TYPES[NVIDIA],
            (listed.name if listed is not None else None) or (managed.name if managed is not None else None),
            managed.memory if managed is not None else None,
            device.numa_node,
            device.driver,
            self._visible.index_of(place) if place is not None else None,
            self._visible.shows(place) if place is not None else False,
            c2c=managed.c2c if managed is not None else None,
            uuid=(listed.uuid if listed is not None else None) or (managed.uuid if managed is not None else None),
        )


class _Amd:
    """What is known of AMD's GPUs. A card in partitions is several devices at one address: its index is that of the first."""

    def __init__(self, tree: Tree, environment: Mapping[str, str]) -> None:
        self._tree = tree
        self._nodes = kfd.gpus(tree)
        self._visible = visible.hip([kfd.uuid(node) for node in self._nodes], environment)
        self._listed = tree.exists(kfd.NODES)

    def _shows(self, places: list[int]) -> bool | None:
        if not places:
            # Where compute nodes are listed, a card that is none of them does not compute for this process.
            return False if self._listed else None
        shown = [self._visible.shows(place) for place in places]
        return True if True in shown else None if None in shown else False

    def fill(self, device: PciDevice) -> Accelerator:
        """The accelerator that *device* is."""
        places = [place for place, node in enumerate(self._nodes) if node.address == device.address]
        indices = [index for place in places if (index := self._visible.index_of(place)) is not None]
        return Accelerator(
            device.address,
            _VENDORS[AMD],
            _TYPES[AMD],
            amd_name(self._tree, device.address),
            amd_memory(self._tree, device.address),
            device.numa_node,
            device.driver,
            min(indices, default=None),
            self._shows(places),
            uuid=next((kfd.uuid(node) for node in self._nodes if node.address == device.address), None),
        )


def _other(device: PciDevice, intel: Visible) -> Accelerator:
    if device.vendor is None:
        return Accelerator(device.address, numa_node=device.numa_node, driver=device.driver)
    vendor = _VENDORS.get(device.vendor, f"{device.vendor:#06x}")
    kind = _TYPES[INTEL] if is_xpu(device) else None
    # Graphics in the processor are on bus 0; torch leaves out most of them.
    card = kind is not None and nvidia.order(device.address)[1] != 0
    index, shown = (intel.position(0), intel.shows(0)) if card else (None, None)
    return Accelerator(device.address, vendor, kind, numa_node=device.numa_node, driver=device.driver, index=index, visible=shown)


def matrix(tree: Tree, addresses: Sequence[str], nvlinks: Mapping[tuple[str, str], int]) -> tuple[tuple[str | None, ...], ...]:
    """`pci.matrix` of accelerators at normalized *addresses*, `XGMI` where AMD's own links join two: it says more than `SYS`."""
    joined = kfd.xgmi(tree, kfd.gpus(tree))
    rows = zip(addresses, pci.matrix(tree, addresses, nvlinks), strict=True)
    return tuple(
        tuple("XGMI" if (min(one, other), max(one, other)) in joined else cell for other, cell in zip(addresses, row, strict=True))
        for one, row in rows
    )


def machine_devices(
    tree: Tree = HERE, environment: Mapping[str, str] | None = None, managed: list[nvml.NvmlGpu] | None = None
) -> list[Accelerator]:
    """
    Accelerators of the machine in the order of the PCI bus; a variable of *environment* may hide some.

    *managed* is what `nvml.gpus()` answered, where somebody has asked: memory of NVIDIA's GPUs and their MIG instances come from there.
    """
    environment = os.environ if environment is None else environment
    by_nvidia, by_amd = _Nvidia(tree, environment, managed or []), _Amd(tree, environment)
    seen = {device.address: device for device in pci.accelerators(tree)}
    # A container without `/sys/bus/pci` may still have the driver's own list.
    seen |= {address: PciDevice(address, vendor=NVIDIA) for address in by_nvidia.addresses() if address not in seen}
    devices = sorted(seen.values(), key=lambda device: nvidia.order(device.address))
    intel = visible.xpu(sum(is_xpu(device) for device in devices), environment)
    found = []
    for device in devices:
        if device.vendor == NVIDIA:
            found.append(by_nvidia.fill(device))
        elif device.vendor == AMD:
            found.append(by_amd.fill(device))
        else:
            found.append(_other(device, intel))
    return found
