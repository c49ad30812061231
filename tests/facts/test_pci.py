"""Addresses, ways and relations of PCI devices. What is expected was read off the drawing at the head of each machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import machines
from loadspan.facts import pci
from loadspan.facts.pci import PciDevice
from loadspan.facts.tree import HERE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadspan.facts.tree import Tree

    Machine = Callable[[str], Tree]


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("0000:1b:00.0", "0000:1b:00.0"),
        ("00000000:1B:00.0", "0000:1b:00.0"),
        ("0000:1B:00.0\n", "0000:1b:00.0"),
        ("1b:00.0", "0000:1b:00.0"),
        ("00010000:E1:00.0", "10000:e1:00.0"),
        ("10000:e1:1f.7", "10000:e1:1f.7"),
        ("0000:1b:20.0", None),
        ("0000:1b:00.8", None),
        ("0000:1b:00", None),
        ("pci0000:00", None),
        ("../../etc", None),
        ("\u0660000:1b:00.0", None),
        ("", None),
    ],
)
def test_an_address_is_written_as_the_kernel_writes_it(written: str, address: str | None) -> None:
    assert pci.normalized(written) == address


def test_the_way_to_a_device_begins_at_the_host_bridge(machine: Machine) -> None:
    assert pci.path(machine("desktop"), "00000000:01:00.0") == ("pci0000:00", "0000:00:01.0", "0000:01:00.0")
    cascaded = ("pci0000:40", "0000:40:01.1", "0000:41:00.0", "0000:42:02.0", "0000:45:00.0", "0000:46:01.0", "0000:48:00.0")
    assert pci.path(machine("cascaded"), "0000:48:00.0") == cascaded


def test_the_way_is_known_although_bridges_have_no_link_of_their_own(machine: Machine) -> None:
    tree = machine("missing-bridge")
    assert pci.path(tree, "0000:1a:00.0") == ("pci0000:17", "0000:17:00.0", "0000:18:00.0", "0000:19:00.0", "0000:1a:00.0")
    assert pci.path(tree, "0000:18:00.0") == ()


def test_a_domain_may_have_five_digits_and_lie_below_another_or_below_what_is_not_pci(machine: Machine) -> None:
    tree = machine("long-domain")
    assert pci.path(tree, "00010000:E1:00.0") == ("pci0000:00", "0000:00:0e.0", "pci10000:e0", "10000:e0:06.0", "10000:e1:00.0")
    assert pci.path(tree, "1000a:00:00.0") == ("pci1000a:00", "1000a:00:00.0")


def test_a_partition_of_an_amd_card_is_reached_as_the_card_is(machine: Machine) -> None:
    tree = machine("instinct-partitions")
    assert pci.path(tree, "0000:05:00.3") == ("pci0000:00", "0000:00:01.1", "0000:05:00.0")
    assert pci.numa_node(tree, "0000:05:00.7") == 0
    assert pci.path(machine("desktop"), "0000:01:00.3") == ()


@pytest.mark.parametrize("address", ["0000:77:00.0", "no address", ""])
def test_a_device_that_is_not_there_has_no_way_and_no_node(address: str, machine: Machine) -> None:
    tree = machine("desktop")
    assert (pci.path(tree, address), pci.device(tree, address)) == ((), None)
    assert (pci.numa_node(tree, address), pci.local_cpus(tree, address), pci.relation(tree, address, "0000:01:00.0")) == (None, None, None)


def test_without_the_pci_folder_nothing_is_known(machine: Machine) -> None:
    tree = machine("container-no-pci")
    assert (pci.devices(tree), pci.accelerators(tree), pci.path(tree, "0000:16:00.0")) == ([], [], ())
    assert pci.relation(tree, "0000:16:00.0", "0000:17:00.0") is None


def test_a_device_says_what_it_is(machine: Machine) -> None:
    assert pci.device(machine("two-sockets"), "0000:8c:00.0") == PciDevice("0000:8c:00.0", 0x030200, 0x10DE, 0x2330, 1, "nvidia")
    assert pci.device(machine("strange-links"), "0000:04:00.0") == PciDevice("0000:04:00.0", 0x030200, 0x10DE, 0x2204, None, None)
    assert len(pci.devices(machine("desktop"))) == 6


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("desktop", ["0000:00:02.0", "0000:01:00.0"]),
        ("two-sockets", [f"0000:{bus}:00.0" for bus in ("18", "19", "3a", "3b", "8c", "8d", "bd", "be")]),
        ("vm-emulated", ["0000:01:00.0"]),
        ("card-with-switch", ["0000:45:00.0"]),
        ("instinct", [f"0000:{bus}:00.0" for bus in ("05", "26", "46", "65", "85", "a6", "c6", "e5")]),
        ("more-gpus-than-visible", [f"0000:{bus}:00.0" for bus in ("01", "02", "81", "82")]),
        ("gh200", ["0009:01:00.0"]),
        ("long-domain", ["0000:01:00.0", "1000a:00:00.0"]),
    ],
)
def test_accelerators_are_what_computes_and_no_emulated_or_remote_screen(name: str, addresses: list[str], machine: Machine) -> None:
    assert [found.address for found in pci.accelerators(machine(name))] == addresses


@pytest.mark.parametrize("vendor", ["0x1d0f", "0xfb5d", "0x1a03", "0x1234"])
def test_the_screen_of_a_virtual_machine_or_a_management_controller_does_not_compute(vendor: str, tmp_path: Path) -> None:
    screen, folder = "0000:00:03.0", "sys/devices/pci0000:00/0000:00:03.0"
    tree = machines.unpack_text(
        f"sys/bus/pci/devices/{screen} -> ../../../{folder[4:]}\n{folder}/class = 0x030000\n{folder}/vendor = {vendor}", tmp_path
    )
    assert [device.address for device in pci.devices(tree)] == [screen]
    assert pci.accelerators(tree) == []


def test_the_node_of_a_device_is_absent_where_the_kernel_says_minus_one(machine: Machine) -> None:
    tree = machine("numa-unknown")
    assert [pci.numa_node(tree, f"0000:{bus}:00.0") for bus in ("01", "41", "81")] == [0, None, None]
    # With -1 the kernel names all CPUs as near.
    assert [pci.local_cpus(tree, f"0000:{bus}:00.0") for bus in ("01", "41")] == [frozenset(range(8)), None]
    assert pci.numa_node(machine("gh200"), "0009:01:00.0") == 0
    assert pci.local_cpus(machine("two-sockets"), "0000:bd:00.0") == frozenset(range(32, 64))


# As `nvidia-smi topo -m` prints it, without NVLink.
TWO_SOCKETS = """
X    PIX  NODE NODE SYS  SYS  SYS  SYS
PIX  X    NODE NODE SYS  SYS  SYS  SYS
NODE NODE X    PIX  SYS  SYS  SYS  SYS
NODE NODE PIX  X    SYS  SYS  SYS  SYS
SYS  SYS  SYS  SYS  X    PIX  NODE NODE
SYS  SYS  SYS  SYS  PIX  X    NODE NODE
SYS  SYS  SYS  SYS  NODE NODE X    PIX
SYS  SYS  SYS  SYS  NODE NODE PIX  X
"""
INSTINCT = """
X    NODE NODE NODE SYS  SYS  SYS  SYS
NODE X    NODE NODE SYS  SYS  SYS  SYS
NODE NODE X    NODE SYS  SYS  SYS  SYS
NODE NODE NODE X    SYS  SYS  SYS  SYS
SYS  SYS  SYS  SYS  X    NODE NODE NODE
SYS  SYS  SYS  SYS  NODE X    NODE NODE
SYS  SYS  SYS  SYS  NODE NODE X    NODE
SYS  SYS  SYS  SYS  NODE NODE NODE X
"""
CASCADED = """
X    PIX  PXB  PXB
PIX  X    PXB  PXB
PXB  PXB  X    PIX
PXB  PXB  PIX  X
"""
# One side unknown is SYS; both unknown on a machine of two nodes is not known.
NUMA_UNKNOWN = """
X    SYS  SYS
SYS  X    -
SYS  -    X
"""
MORE_GPUS = """
X    PHB  SYS  SYS
PHB  X    SYS  SYS
SYS  SYS  X    PHB
SYS  SYS  PHB  X
"""


def rows(text: str) -> tuple[tuple[str | None, ...], ...]:
    return tuple(tuple(None if word == "-" else word for word in line.split()) for line in text.strip().splitlines())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("two-sockets", TWO_SOCKETS),
        ("instinct", INSTINCT),
        ("cascaded", CASCADED),
        ("numa-unknown", NUMA_UNKNOWN),
        ("more-gpus-than-visible", MORE_GPUS),
        ("two-cards", "X PHB\nPHB X"),
        ("missing-bridge", "X PIX\nPIX X"),
        ("gh200", "X"),
    ],
)
def test_the_matrix_is_that_of_the_drawing(name: str, expected: str, machine: Machine) -> None:
    tree = machine(name)
    addresses = [found.address for found in pci.accelerators(tree)]
    assert pci.matrix(tree, addresses) == rows(expected)
    assert tuple(tuple(pci.relation(tree, one, other) for other in addresses) for one in addresses) == rows(expected)


def test_nvlinks_are_written_over_the_relation(machine: Machine) -> None:
    tree = machine("two-sockets")
    found = pci.matrix(tree, ["0000:18:00.0", "0000:19:00.0", "0000:8c:00.0"], {("00000000:8C:00.0", "0000:18:00.0"): 18})
    assert found == rows("X PIX NV18\nPIX X SYS\nNV18 SYS X")


def test_a_network_card_at_the_switch_of_a_gpu_is_nearer_than_one_at_another(machine: Machine) -> None:
    tree = machine("two-sockets")
    assert [pci.relation(tree, "0000:18:00.0", f"0000:{bus}:00.0") for bus in ("1a", "3c", "8e")] == ["PIX", "NODE", "SYS"]


def test_disks_below_two_ports_of_a_hidden_domain_meet_in_its_host_bridge(machine: Machine) -> None:
    tree = machine("long-domain")
    assert pci.relation(tree, "10000:e1:00.0", "10000:e2:00.0") == "PHB"
    assert pci.relation(tree, "10000:e1:00.0", "0000:01:00.0") == "PHB"


def test_devices_of_unknown_node_below_two_host_bridges_are_of_one_node_where_the_machine_has_one(machine: Machine) -> None:
    assert pci.relation(machine("long-domain"), "1000a:00:00.0", "0000:01:00.0") == "NODE"


def test_functions_of_one_device_are_as_near_as_can_be(machine: Machine) -> None:
    tree = machine("desktop")
    assert pci.relation(tree, "0000:01:00.0", "0000:01:00.1") == "PIX"
    assert pci.relation(tree, "0000:01:00.0", "00000000:01:00.0") == "X"


def test_on_this_machine_every_way_ends_at_its_device_and_relations_are_symmetric() -> None:
    addresses = [found.address for found in pci.devices()]
    for address in addresses:
        way = pci.path(HERE, address)
        assert way[0].startswith("pci")
        assert way[-1] == address
    table = pci.matrix(HERE, addresses)
    assert [table[index][index] for index in range(len(table))] == ["X"] * len(table)
    assert table == tuple(zip(*table, strict=True))
