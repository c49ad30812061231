"""A checkup out of a machine's kernel files and of what they do not say: the same for this machine and for a captured one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loadspan.checkup import remarks, schema
from loadspan.facts import accelerators, links, machine, memory, numa, nvidia, pci, storage
from loadspan.facts.nvml import NvmlGpu
from loadspan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from loadspan.checkup.answers import Answers, Group, Place, Told
    from loadspan.checkup.schema import Checkup, Device, Storage
    from loadspan.facts.accelerators import Accelerator
    from loadspan.facts.links import Link
    from loadspan.facts.tree import Tree


def make(tree: Tree, answers: Answers) -> Checkup:
    """Everything that is known of the machine that *tree* and *answers* are of."""
    devices = _devices(tree, answers)
    seen = machine.of(tree)
    found = schema.Checkup(
        version=schema.VERSION,
        loadspan=__version__,
        captured=not tree.here,
        machine=_machine(seen, answers),
        memory=_memory(seen, memory.read(tree)),
        nodes=_nodes(tree),
        devices=devices,
        paths=tuple(_place(place, tree) for place in answers.places),
        measured=answers.measured,
    )
    return replace(found, remarks=remarks.find(found))


def _machine(found: machine.Machine, answers: Answers) -> schema.Machine:
    allowed = answers.cpus or (numa.cpulist(found.cpus_allowed) if found.cpus_allowed else None)
    return schema.Machine(
        kernel=found.kernel,
        architecture=found.architecture,
        processor=found.processor,
        cpus=found.cpus,
        cpus_allowed=allowed,
        cpu_limit=found.cpu_limit,
        numa_nodes=found.numa_nodes,
        virtual=found.virtual,
        hypervisor=found.hypervisor,
        container=found.container,
        wsl=found.wsl or None,
        huge_pages=found.huge_pages,
    )


def _memory(found: machine.Machine, group: memory.Memory) -> schema.Memory:
    return schema.Memory(
        total=found.memory,
        available=found.memory_available,
        limit=group.limit if group.limit is not None and group.limit < (found.memory or group.limit + 1) else None,
        used=group.usage,
        swap=found.swap,
        swap_used=found.swap - found.swap_free if found.swap is not None and found.swap_free is not None else None,
    )


def _nodes(tree: Tree) -> tuple[schema.Node, ...]:
    cpus, distances = numa.nodes(tree), numa.distances(tree)
    return tuple(
        schema.Node(
            number=node,
            cpus=numa.cpulist(cpus[node]) if node in cpus else None,
            distances={str(other): distance for other, distance in distances.get(node, {}).items()},
        )
        for node in numa.numbers(tree)
    )


def _devices(tree: Tree, answers: Answers) -> tuple[Device, ...]:
    told = {one.address: one for one in answers.accelerators}
    managed = [NvmlGpu(one.address, one.name, None, one.memory, (), one.c2c) for one in answers.accelerators if one.memory or one.c2c]
    found = accelerators.machine_devices(tree, answers.environment, [gpu for gpu in managed if _is_nvidia(tree, gpu.address)])
    found.sort(key=lambda device: nvidia.order(device.address))
    addresses = [device.address for device in found]
    table = accelerators.matrix(tree, addresses, {(one, other): count for one, other, count in answers.nvlinks})
    labels = [f"GPU{number}" for number in range(len(found))]
    devices = []
    for label, device, row in zip(labels, found, table, strict=True):
        relations = {other: relation for other, relation in zip(labels, row, strict=True) if relation and other != label}
        devices.append(_device(tree, label, device, told.get(device.address), relations))
    return tuple(devices)


def _is_nvidia(tree: Tree, address: str) -> bool:
    device = pci.device(tree, address)
    return device is None or device.vendor == accelerators.NVIDIA


def _device(tree: Tree, label: str, device: Accelerator, told: Told | None, relations: Mapping[str, str]) -> Device:
    hops = links.links(tree, device.address)
    narrowest = links.narrowest(hops, possible=True)
    near = pci.local_cpus(tree, device.address)
    return schema.Device(
        label=label,
        type=device.type,
        # Whether a device file may be opened is no kernel file's to say.
        index=told.index if told is not None else device.index,
        visible=told.visible if told is not None else device.visible,
        name=device.name or (told.name if told is not None else None),
        driver=device.driver,
        vendor=device.vendor,
        pci_address=device.address,
        memory=device.memory or (told.memory if told is not None else None),
        numa_node=device.numa_node,
        cpus=numa.cpulist(near) if near else None,
        links=tuple(_link(hop) for hop in hops),
        narrowest=_link(narrowest) if narrowest is not None else None,
        c2c=device.c2c,
        relations=relations,
    )


def _link(link: Link) -> schema.Link:
    bandwidth = link.bandwidth_max
    return schema.Link(
        upper=link.parent,
        lower=link.child,
        generation=link.generation,
        width=link.width,
        generation_possible=link.generation_max,
        width_possible=link.width_max,
        generation_device=link.child_max.generation,
        width_device=link.child_max.width,
        bandwidth=None if bandwidth is None else round(bandwidth),
    )


def _place(place: Place, tree: Tree) -> schema.Place:
    return schema.Place(
        path=place.path,
        resolved=place.resolved,
        folder=place.folder,
        files=_sum(group.files for group in place.groups),
        size=_sum(group.size for group in place.groups),
        formats=dict(place.formats),
        unreadable=place.unreadable or None,
        broken=place.broken or None,
        complete=place.complete,
        storage=tuple(found for group in place.groups if (found := _storage(group, tree)) is not None),
    )


def _sum(numbers: Iterable[int | None]) -> int | None:
    found = [number for number in numbers if number is not None]
    return sum(found) if found else None


def _storage(group: Group, tree: Tree) -> Storage | None:
    facts = storage.of_file(group.file, tree)
    if facts is None:
        return None
    lower = storage.of_file(group.below, tree) if group.below is not None and not tree.here else None
    if lower is not None:
        # Which layer of an overlay a file is in is found on the machine itself.
        stack = lower.stack or (lower.filesystem,)
        facts = replace(facts, device=lower.device, stack=stack, disks=lower.disks, encrypted=lower.encrypted, read_ahead=lower.read_ahead)
    return schema.Storage(
        filesystem=facts.filesystem,
        mountpoint=facts.mountpoint,
        root=facts.root if facts.root != "/" else None,
        source=facts.source,
        subtype=facts.subtype,
        options=dict(facts.options),
        server=facts.server,
        kind=facts.kind,
        device=facts.device,
        stack=facts.stack,
        disks=tuple(
            schema.Disk(name=disk.name, number=disk.number, kind=disk.kind, model=disk.model, pci_address=disk.pci_address)
            for disk in facts.disks
        ),
        encrypted=facts.encrypted or None,
        read_ahead=facts.read_ahead,
        files=group.files,
        size=group.size,
        cached=group.cached,
        evicted=group.evicted,
        cached_method=group.method,
        cached_sampled=group.sampled,
        cached_of=group.cached_of,
    )


def choose(found: Checkup, labels: Sequence[str]) -> Checkup:
    """*found* with only those devices."""
    kept = tuple(device for device in found.devices if device.label in labels)
    return replace(found, devices=kept, remarks=remarks.find(replace(found, devices=kept)))
