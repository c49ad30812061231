"""
NVIDIA's GPUs as their kernel driver lists them in `/proc/driver/nvidia`.

A container sees only the GPUs it was given there, where `/sys` shows all of the machine.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadspan.facts import pci
from loadspan.facts.tree import HERE, whole

if TYPE_CHECKING:
    from loadspan.facts.tree import Tree

_GPUS = "proc/driver/nvidia/gpus"
_CAPABILITIES = "proc/driver/nvidia/capabilities"
_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST = 256
_LONGEST_NAME = 96  # NVML's own limit


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; what the driver does not tell, as of a GPU that was never initialized, is None."""

    address: str
    name: str | None = None
    uuid: str | None = None
    minor: int | None = None
    """Number of its device file `/dev/nvidiaN`."""
    usable: bool = True
    """False where the driver was told to leave it alone, or this process may not open its device file."""


def order(address: str) -> tuple[int, ...]:
    """Sort key of a normalized address: the order of the PCI bus."""
    return tuple(int(part, 16) for part in re.split("[:.]", address))


def clean_name(text: str | None) -> str | None:
    """A device's name fit to be shown; None where the source says that it does not know."""
    name = " ".join(text.split()) if text else ""
    return name[:_LONGEST_NAME] if name.isprintable() and name.lower() not in ("", "unknown", "n/a") else None


def parse_uuid(text: str | None) -> str | None:
    """A UUID as `nvidia-smi -L` writes it, with or without `GPU-`; None where it is none, or all zeros."""
    plain = (text or "").strip().lower().removeprefix("gpu-")
    uuid = f"GPU-{plain}"
    return uuid if _UUID.fullmatch(uuid) and plain.strip("0-") else None


def parse_information(address: str, text: bytes) -> Gpu:
    """The GPU at *address* out of the text of its `information` file."""
    fields = {}
    for line in text.decode("utf-8", "replace").split("\n")[:100]:
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    minor = whole(fields.get("Device Minor"))
    excluded = fields.get("GPU Excluded", fields.get("Blacklisted", "No")).lower() == "yes"
    return Gpu(
        address,
        clean_name(fields.get("Model")),
        parse_uuid(fields.get("GPU UUID")),
        minor if minor is not None and 0 <= minor < _MOST else None,
        usable=not excluded,
    )


def gpus(tree: Tree = HERE) -> list[Gpu]:
    """GPUs of the driver in the order of the PCI bus, usable or not."""
    addresses = {name: address for name in tree.names(_GPUS)[:_MOST] if (address := pci.normalized(name)) is not None}
    found = []
    for name in sorted(addresses, key=lambda name: order(addresses[name])):
        gpu = parse_information(addresses[name], tree.bytes(f"{_GPUS}/{name}/information"))
        if tree.here and gpu.minor is not None and not os.access(f"/dev/nvidia{gpu.minor}", os.R_OK | os.W_OK):
            gpu = Gpu(gpu.address, gpu.name, gpu.uuid, gpu.minor, usable=False)
        found.append(gpu)
    return found


def is_partitioned(tree: Tree = HERE) -> bool:
    """Whether some GPU is cut into MIG instances: indices then no longer number GPUs."""
    names = [name for name in tree.names(_CAPABILITIES)[:_MOST] if name.startswith("gpu")]
    return any(entry.startswith("gi") for name in names for entry in tree.names(f"{_CAPABILITIES}/{name}/mig"))
