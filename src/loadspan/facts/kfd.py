"""
AMD's compute GPUs as the kernel's kfd lists them, in the order in which ROCm numbers them.

ROCm asks `/sys/class/kfd/kfd/topology/nodes` in the order of the numbers and leaves out nodes whose files or render device it may not open.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadspan.facts import pci
from loadspan.facts.tree import HERE, whole

if TYPE_CHECKING:
    from loadspan.facts.tree import Tree

NODES = "sys/class/kfd/kfd/topology/nodes"
_MOST = 512  # nodes of one machine: eight cards in eight partitions are 64 and some CPUs
_XGMI = 11
_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Node:
    """A GPU, or the partition of one."""

    number: int
    address: str | None
    """PCI address; of a partition, that of its card."""
    unique_id: int | None


def parse_properties(text: bytes) -> dict[str, int]:
    """Names and whole numbers in the text of a `properties` file; other lines are skipped."""
    found = {}
    for line in text.split(b"\n")[:1000]:
        name, _, value = line.partition(b" ")
        number = whole(value.decode("ascii", "replace").strip())
        if number is not None and 0 <= number < 1 << 64:
            found[name.decode("ascii", "replace")] = number
    return found


def _address(tree: Tree, properties: dict[str, int]) -> str | None:
    """PCI address of the card: the function bits of `location_id` count partitions where there is no such function."""
    location, domain = properties.get("location_id", 0), properties.get("domain", 0)
    if not 0 < location < 1 << 16 or domain >= 1 << 32:
        return None
    bus, device, function = location >> 8, location >> 3 & 31, location & 7
    candidates = [f"{domain:04x}:{bus:02x}:{device:02x}.{number}" for number in dict.fromkeys((function, 0))]
    return next((address for address in candidates if tree.exists(f"{pci.DEVICES}/{address}")), None)


def _openable(tree: Tree, properties: dict[str, int]) -> bool:
    minor = properties.get("drm_render_minor", 0)
    # Containers are given some of the machine's render devices; a recorded machine has no devices to open.
    return not tree.here or (0 < minor < 1 << 20 and os.access(f"/dev/dri/renderD{minor}", os.R_OK | os.W_OK))


def _numbers(tree: Tree) -> list[int]:
    numbers = (whole(name) for name in tree.names(NODES))
    return sorted(number for number in numbers if number is not None and number >= 0)[:_MOST]


def gpus(tree: Tree = HERE) -> list[Node]:
    """GPUs that this process may use, as ROCm numbers them before any variable is applied."""
    found = []
    for number in _numbers(tree):
        if not tree.number(f"{NODES}/{number}/gpu_id"):
            continue  # a CPU, or a GPU that this container was not given
        properties = parse_properties(tree.bytes(f"{NODES}/{number}/properties"))
        if properties.get("simd_count") and _openable(tree, properties):
            found.append(Node(number, _address(tree, properties), properties.get("unique_id") or None))
    return found


def uuid(node: Node) -> str | None:
    """The UUID that ROCm makes of the node's unique number."""
    return f"GPU-{node.unique_id:016x}" if node.unique_id is not None else None


def xgmi(tree: Tree, nodes: list[Node]) -> dict[tuple[str, str], int | None]:
    """Cards of *nodes* that XGMI joins, by their addresses, and its bandwidth one way in By/s where it is known."""
    addresses = {node.number: node.address for node in nodes}
    found: dict[tuple[str, str], int | None] = {}
    for node in nodes:
        folder = f"{NODES}/{node.number}/io_links"
        for name in tree.names(folder)[:_MOST]:
            properties = parse_properties(tree.bytes(f"{folder}/{name}/properties"))
            other = addresses.get(properties.get("node_to", -1))
            if properties.get("type") != _XGMI or node.address is None or other is None or other == node.address:
                continue
            megabytes = properties.get("max_bandwidth", 0)
            pair = (node.address, other) if node.address < other else (other, node.address)
            found[pair] = megabytes * _MEGABYTE if 0 < megabytes < 1 << 24 else found.get(pair)
    return found
