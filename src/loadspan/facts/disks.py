"""What a block device without others below it is: a disk, or what poses as one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadspan.facts.tree import Tree

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
NUMBER = re.compile(r"\d{1,4}:\d{1,7}")
_WORD = 128
_CONTROLLERS = 64
_BY_NAME = (
    (re.compile(r"(zram|pmem|ram)\d"), "memory"),
    (re.compile(r"(nbd|rbd|drbd|rnbd)\d"), "network"),
    (re.compile(r"(vd[a-z]|xvd[a-z]|loop\d|dm-\d)"), "virtual"),
    (re.compile(r"(sr|md|fd)\d"), None),
)
# A SCSI disk of a hypervisor says so, and its `rotational` means nothing.
_EMULATED = re.compile(r"QEMU|VMware|Msft|Google|VBOX|Microsoft|Virtual Disk|Xen\b", re.IGNORECASE)
_REMOTE_SCSI = re.compile(r"session\d+|rport-\d+.*")  # iSCSI and Fibre Channel: the disks are the server's
# Behind a USB bridge or a RAID controller, where "rotational" is what a disk says that does not know.
_USB = re.compile(r"usb\d+")
_RAID = re.compile(r"RAID|PERC|LOGICAL VOLUME|MR9\d", re.IGNORECASE)
_REMOTE_NVME = ("tcp", "rdma", "fc", "loop")


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device that has none below it."""

    name: str
    number: str | None = None
    """Major and minor, to read its counters by."""
    kind: str | None = None
    """nvme, ssd, hdd, virtual, network, memory; None where it cannot be known."""
    model: str | None = None
    """What it calls itself: a cloud's block store that poses as an NVMe disk tells it here."""
    rotational: bool | None = None
    """As the kernel says, which is True of virtual disks too: `kind` knows when not to believe it."""
    pci_address: str | None = None


def word(tree: Tree, path: str) -> str | None:
    """First line of a small text file, printable and short; None where there is none."""
    text = tree.text(path)
    if text is None:
        return None
    line = text.splitlines()[0][:_WORD] if text.splitlines() else ""
    return " ".join(part for part in line.split() if part.isprintable()) or None


def display(folder: str) -> str:
    """Name of the device at *folder* of sysfs; its kernel writes / as !."""
    name = folder.rpartition("/")[2].replace("!", "/")
    return name if name.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in name)


def number(tree: Tree, folder: str) -> str | None:
    """Major and minor of the device at *folder*."""
    text = word(tree, f"{folder}/dev")
    return text if text is not None and NUMBER.fullmatch(text) else None


def _address(path: str) -> str | None:
    found = [part for part in path.split("/") if _ADDRESS.fullmatch(part)]
    return found[-1] if found else None


def disk(tree: Tree, folder: str) -> Disk:
    """What is known of the disk at *folder*, its real path below `sys`."""
    name = display(folder)
    vendor, model = word(tree, f"{folder}/device/vendor"), word(tree, f"{folder}/device/model")
    flag = word(tree, f"{folder}/queue/rotational")
    rotational = {"0": False, "1": True}.get(flag or "")
    address = _address(folder)
    kind: str | None
    if name.startswith("nvme"):
        kind, address = _nvme(tree, folder, address)
    else:
        kind = _kind(folder, name, f"{vendor} {model}", rotational=rotational)
    # A SCSI vendor is of use; that of a virtio disk is a PCI number.
    maker = vendor if vendor and not vendor.startswith("0x") and vendor != "ATA" else None
    full = " ".join(filter(None, (maker, model))) or None
    return Disk(name, number(tree, folder), kind, full, rotational, address)


def _kind(folder: str, name: str, model: str, *, rotational: bool | None) -> str | None:
    for pattern, kind in _BY_NAME:
        if pattern.match(name):
            return kind
    if _EMULATED.search(model):
        return "virtual"
    parts = folder.split("/")
    if any(_REMOTE_SCSI.fullmatch(part) for part in parts):
        return "network"
    if rotational is None or folder.startswith("sys/devices/virtual/"):
        return None  # a driver of no hardware that is none of those above: nothing is known of what it reads from
    if rotational and (_RAID.search(model) or any(_USB.fullmatch(part) for part in parts)):
        return None
    return "hdd" if rotational else "ssd"


def _nvme(tree: Tree, folder: str, address: str | None) -> tuple[str, str | None]:
    """Kind and PCI address. A disk with several controllers hangs below none of them but below their subsystem, which links to them."""
    if address is not None:
        return "nvme", address
    holder = folder.rpartition("/")[0]
    controllers = [holder, f"{folder}/device"]
    if holder.rpartition("/")[2].startswith("nvme-subsys"):
        controllers += [f"{holder}/{name}" for name in tree.names(holder)[:_CONTROLLERS] if re.fullmatch(r"nvme\d+", name)]
    transports = set()
    for controller in controllers:
        found = tree.real(controller)
        address = address or (_address(found) if found else None)
        transports.add(word(tree, f"{controller}/transport"))
    transports.discard(None)
    local = address is not None or (transports and not transports & set(_REMOTE_NVME))
    return ("nvme" if local else "network"), address
