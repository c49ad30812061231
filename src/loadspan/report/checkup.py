"""What `loadspan check` found as lines of text, for a given width, with or without color."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import units
from loadspan.report.text import BOLD, DIM, Piece, cells, clean, join, left, right, wrap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadspan.checkup.schema import Checkup, Device, Link, Machine, Measured, Memory, Node, Place, Remark, Storage
    from loadspan.report.terminal import Look

_LABEL = 14  # columns of the names on the left
_NARROWEST = 60
_YELLOW = "33"
_ITSELF = "X"
_KINDS = {"nvme": "NVMe", "ssd": "SSD", "hdd": "spinning disk", "virtual": "virtual disk", "network": "over the network"}
"""What the type of the filesystem does not say by itself."""
_VENDORS = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}
_LEGEND = {
    _ITSELF: "itself",
    "NV": "NV# that many NVLinks",
    "XGMI": "XGMI between AMD devices",
    "PIX": "PIX at most one PCIe bridge",
    "PXB": "PXB several PCIe bridges",
    "PHB": "PHB through a PCIe host bridge",
    "NODE": "NODE between host bridges of one NUMA node",
    "SYS": "SYS between NUMA nodes",
}

Line = list[Piece]


def lines(checkup: Checkup, look: Look) -> list[str]:
    """All of it: machine, devices, paths, measured ceilings, remarks."""
    width = max(look.width, _NARROWEST)
    found: list[Line] = []
    if checkup.captured:
        found += [[("captured machine: nothing was asked of this one", DIM)]]
    found += [*_facts("machine", _machine(checkup.machine), width), *_facts("memory", _memory(checkup.memory), width)]
    if len(checkup.nodes) > 1:
        found += _facts("numa", _nodes(checkup.nodes), width)
    found += _devices(checkup.devices, width)
    for place in checkup.paths:
        found += [[], *_place(place, width)]
    if checkup.measured:
        found += [[], *_measured(checkup.measured, width)]
    found += [[], *_remarks(checkup.remarks, width)]
    return [join(line, color=look.color) for line in found]


def _facts(label: str, facts: Sequence[str], width: int, style: str = BOLD) -> Iterator[Line]:
    """*facts* beside *label*, on as few lines as they need; no fact, no line."""
    for index, line in enumerate(wrap([(clean(fact), "") for fact in facts if fact], width - _LABEL)):
        yield [(left(label if index == 0 else "", _LABEL - 2), style), ("  ", ""), *line]


def _machine(machine: Machine) -> list[str]:
    cpus = "" if machine.cpus is None else _count(machine.cpus, "CPU")
    everything = machine.cpus is not None and machine.cpus_allowed in ("0", f"0-{machine.cpus - 1}")
    if cpus and machine.cpus_allowed is not None and not everything:
        cpus += f", this process may use {machine.cpus_allowed}"
    return [
        " ".join(text for text in ("Linux" if machine.kernel else "", machine.kernel, machine.architecture) if text),
        machine.processor or "",
        cpus,
        "" if machine.cpu_limit is None else f"limited to {machine.cpu_limit:g} of them",
        "" if machine.numa_nodes is None else _count(machine.numa_nodes, "NUMA node"),
        " ".join(text for text in ("virtual machine", machine.hypervisor) if text) if machine.virtual else "",
        "Windows' Linux (WSL)" if machine.wsl else "",
        f"in a {machine.container} container" if machine.container else "",
    ]


def _memory(memory: Memory) -> list[str]:
    limit = "" if memory.limit is None else f"limit {units.size(memory.limit)}"
    if limit and memory.used is not None:
        limit += f", {units.size(memory.used)} of it in use"
    swap = ""
    if memory.swap is not None:
        swap = f"swap {units.size(memory.swap)}" if memory.swap else "no swap"
        if memory.swap and memory.swap_used is not None:
            swap += f", {units.size(memory.swap_used)} of it in use"
    return [
        "" if memory.total is None else units.size(memory.total),
        "" if memory.available is None else f"{units.size(memory.available)} available",
        limit,
        swap,
    ]


def _nodes(nodes: Sequence[Node]) -> list[str]:
    found = [f"node {node.number}: {'memory alone' if node.cpus == '' else f'CPUs {node.cpus}'}" for node in nodes if node.cpus is not None]
    far = {distance for node in nodes for number, distance in node.distances.items() if number != str(node.number)}
    return [*found, f"distance {' to '.join(map(str, sorted({min(far), max(far)})))}"] if far else found


def _devices(devices: Sequence[Device], width: int) -> Iterator[Line]:
    if not devices:
        yield from _facts("devices", ["no accelerator found"], width)
        return
    yield [("devices", BOLD)]
    label = max(len(device.label) for device in devices)
    for device in devices:
        identity: list[Piece] = [(clean(fact), "") for fact in _identity(device) if fact]
        for index, line in enumerate(wrap(identity, width - label - 4) or [[]]):
            yield [("  ", ""), (left(device.label if index == 0 else "", label), BOLD), ("  ", ""), *line]
    if sum(device.type == "cuda" and device.index is None and device.visible is not False for device in devices) > 1:
        yield [("  ", ""), ("as cuda:N torch may number them in another order, unless CUDA_DEVICE_ORDER=PCI_BUS_ID", DIM)]
    tables = _tables(devices, width)
    for table in tables:
        yield []
        for number, row in enumerate(table):
            yield [("  ", ""), (row[0], BOLD), ("  ", ""), ("  ".join(row[1:]).rstrip(), DIM if number == 0 else "")]
    if tables:
        for line in wrap([(text, DIM) for text in _legend(devices)], width - 2):
            yield [("  ", ""), *line]


def _identity(device: Device) -> list[str]:
    return [
        device.torch_name if device.torch_name and device.torch_name != device.label else "",
        device.name or _VENDORS.get(device.vendor or "", device.vendor) or "",
        "" if device.memory is None else units.size(device.memory),
        device.pci_address or "",
        f"driver {device.driver}" if device.driver else "",
        f"{_count(device.c2c, 'C2C link')} to the CPU" if device.c2c else "",
        "this process may not use it" if device.visible is False else "",
    ]


def _legend(devices: Sequence[Device]) -> list[str]:
    found = []
    if len(devices) > 1:
        shown = {relation.rstrip("0123456789") for device in devices for relation in device.relations.values()}
        found += [f"{name} {text}" if name == _ITSELF else text for name, text in _LEGEND.items() if name in shown or name == _ITSELF]
        if any(other.label not in device.relations for device in devices for other in devices if other is not device):
            found.append("blank: not known")
    if any(_lanes(device.narrowest, now=True) for device in devices):
        found.append("idle link: as it is now; under load it may be faster")
    if any(_lanes(device.narrowest, now=False) for device in devices):
        found.append("possible: what both ends of the narrowest link support")
    return found


def _tables(devices: Sequence[Device], width: int) -> list[list[list[str]]]:
    """The matrix and the columns beside it: in one table where it fits, else in several."""
    labels = [device.label for device in devices]
    relations = [
        [other, *(_ITSELF if device.label == other else device.relations.get(other, "") for device in devices)]
        for other in labels
        if len(devices) > 1
    ]
    facts = [column for column in _columns(devices) if any(column[1:])]
    head = ["", *labels]
    found: list[list[list[str]]] = []
    room = width - 2 - max(map(len, labels))
    group: list[list[str]] = []
    for column in (*relations, *facts):
        if group and sum(_width(one) + 2 for one in (*group, column)) > room:
            found.append([head, *group])
            group = []
        group.append(column)
    if group:
        found.append([head, *group])
    return [_rows(table) for table in found]


def _width(column: Sequence[str]) -> int:
    return max(map(cells, column))


def _rows(columns: Sequence[Sequence[str]]) -> list[list[str]]:
    padded = [[left(cell, _width(column)) for cell in column] for column in columns]
    return [list(row) for row in zip(*padded, strict=True)]


def _columns(devices: Sequence[Device]) -> list[list[str]]:
    """Each column: its head, then a cell for every device."""
    speeds = [device.narrowest.bandwidth if device.narrowest else None for device in devices]
    return [
        ["CPUs", *(clean(device.cpus or "") for device in devices)],
        ["NUMA", *("" if device.numa_node is None else str(device.numa_node) for device in devices)],
        ["idle link", *(_lanes(device.narrowest, now=True) for device in devices)],
        ["possible", *(_lanes(device.narrowest, now=False) for device in devices)],
        ["at most", *("" if speed is None else units.throughput(speed) for speed in speeds)],
        ["narrowest link", *(_ends(device.narrowest) if device.narrowest else "" for device in devices)],
    ]


def _ends(link: Link) -> str:
    # As lspci shows them: without the domain that most machines have alone.
    return clean(f"{link.upper.removeprefix('0000:')} - {link.lower.removeprefix('0000:')}")


def _lanes(link: Link | None, *, now: bool) -> str:
    if link is None:
        return ""
    generation, width = (link.generation, link.width) if now else (link.generation_possible, link.width_possible)
    return " ".join(text for text in ("" if generation is None else f"Gen{generation}", "" if width is None else f"x{width}") if text)


def _place(place: Place, width: int) -> Iterator[Line]:
    name = clean(place.path)
    yield [(name, BOLD)]
    if place.resolved != (place.path.rstrip("/") or "/"):
        yield from _indented("path", [place.resolved], width)
    if place.folder is False and place.size is not None:
        yield from _indented("file", [units.size(place.size), *place.formats], width)
    elif place.files is not None and place.size is not None:
        kinds = ", ".join(f"{count} {name}" for name, count in place.formats.items())
        more = "" if place.complete else "there are more, not looked at"
        yield from _indented("files", [units.size(place.size), f"{_count(place.files, 'file')}: {kinds}" if kinds else "none", more], width)
    for storage in place.storage:
        several = len(place.storage) > 1
        here = f"{units.size(storage.size)} in {_count(storage.files, 'file')}" if several and storage.size and storage.files else ""
        yield from _indented("storage", [here, *_storage(storage)], width)
        yield from _indented("disk", _disks(storage), width)
        yield from _indented("page cache", _cache(storage), width)


def _indented(label: str, facts: Sequence[str], width: int) -> Iterator[Line]:
    yield from _facts(f"  {label}", facts, width, style=DIM)


def _storage(storage: Storage) -> list[str]:
    mounted = " on ".join(text for text in (storage.filesystem, storage.mountpoint) if text)
    if storage.root is not None and "subvol" not in storage.options:
        mounted += f" ({storage.root} of it)"
    return [
        mounted,
        _KINDS.get(storage.kind or "", ""),
        f"server {storage.server}" if storage.server else "",
        storage.device or (storage.source if storage.source and storage.source not in (storage.filesystem or "") else "") or "",
        storage.subtype if storage.subtype and storage.subtype not in (storage.filesystem or "") else "",
        *(f"{name}={value}" if value else name for name, value in storage.options.items() if not name.endswith("dir")),
        "" if storage.read_ahead is None else f"read-ahead {units.binary(storage.read_ahead)}",
    ]


def _disks(storage: Storage) -> list[str]:
    names = {disk.name for disk in storage.disks}
    # Of several disks the stack has all that is on the way, and not which is on which.
    between = ", " if len(storage.disks) > 1 else " > "
    stack = between.join(storage.stack or [disk.name for disk in storage.disks])
    models = [f"{disk.name} {disk.model}" if len(names) > 1 else disk.model for disk in storage.disks if disk.model]
    return [stack if len(storage.stack) > 1 or models else "", *models, "encrypted" if storage.encrypted else ""]


def _cache(storage: Storage) -> list[str]:
    if storage.files == 0:
        return []
    if storage.kind == "memory":
        return ["the files are in memory"]
    asked = storage.size if storage.cached_of is None else storage.cached_of
    if storage.cached is None or asked is None:
        return []
    share = "all" if storage.cached >= 1 else "none" if storage.cached == 0 else f"{_percent(storage.cached)} %"
    if share == "none":
        found = f"none of {units.size(asked)}"
    elif share == "all":
        found = f"all of {units.size(asked)}"
    else:
        found = f"{share} of {units.size(asked)}"
    return [found, "sampled" if storage.cached_sampled else "", "" if asked >= (storage.size or 0) else "the rest could not be asked"]


def _percent(share: float) -> str:
    """Never 100 or 0 of what is not all or none."""
    return f"{min(max(100 * share, 0.1), 99.9):.0f}" if 0.01 <= share <= 0.99 else f"{min(max(100 * share, 0.1), 99.9):.1f}"  # noqa: PLR2004 - as said


def _measured(measured: Sequence[Measured], width: int) -> Iterator[Line]:
    yield [("measured", BOLD)]
    names = [clean(item.probe) + (f", {item.depth} at once" if item.depth is not None and item.depth > 1 else "") for item in measured]
    label = min(max(map(cells, names)), width // 2)
    notes = list(dict.fromkeys(item.note for item in measured if item.note))
    about: str | None = ""
    for name, item in zip(names, measured, strict=True):
        if item.about != about:
            about = item.about
            when = f"  measured {item.measured[:10]}" if item.measured else ""
            yield [("  ", ""), (clean(about or "one core"), BOLD), (clean(when), DIM)]
        facts = [] if item.size is None or item.duration is None else [f"{units.size(item.size)} in {units.seconds(item.duration)}"]
        facts += [f"from {item.source}"] if item.source in ("page cache", "storage and page cache") else []
        facts += [f"note {notes.index(item.note) + 1}"] if item.note else []
        facts += words(item.skipped, width - label - 17) if item.skipped else []
        rate = units.throughput(item.rate) if item.rate is not None else ""
        head: Line = [("    ", ""), (left(name, label), ""), ("  ", ""), (right(rate, 9), BOLD), ("  ", "")]
        for line in wrap([(clean(fact), DIM) for fact in facts], width - label - 17) or [[]]:
            yield [*head, *line]
            head = [(" " * (label + 17), "")]
    for number, note in enumerate(notes, 1):
        for index, text in enumerate(words(clean(note), width - 12)):
            yield [("    ", ""), (f"note {number}  " if index == 0 else "        ", DIM), (text, DIM)]


def _remarks(remarks: Sequence[Remark], width: int) -> Iterator[Line]:
    if not remarks:
        yield [("Nothing suspicious.", "")]
        return
    yield [("suspicious", BOLD)]
    for remark in remarks:
        about = f"{clean(remark.about)}: " if remark.about else ""
        for index, text in enumerate(words(about + clean(remark.text), width - 4)):
            yield [("  ", ""), ("! " if index == 0 else "  ", _YELLOW), (text, "")]


def listing(names: Sequence[str], width: int) -> list[str]:
    """Files by their folders: a line for each folder, or as many as its files need."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, []).append(file)
    found = []
    for folder, files in folders.items():
        head = f"{clean(folder)}/ " if folder else ""
        found += [f"  {'    ' if index else ''}{line}" for index, line in enumerate(words(head + " ".join(map(clean, files)), width - 6))]
    return found


def words(text: str, width: int) -> list[str]:
    """*text* broken between words into lines of *width* columns; a word that is longer has a line of its own."""
    found: list[str] = []
    for word in text.split(" "):
        if found and cells(found[-1]) + 1 + cells(word) <= width:
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
