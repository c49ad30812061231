"""Every accelerator of a machine is listed, with the index by which torch would find it where that is certain."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import machines
from loadspan.facts import kfd, nvidia, pci
from loadspan.facts.accelerators import Accelerator, machine_devices
from loadspan.facts.device import of_torch
from loadspan.facts.kfd import Node
from loadspan.facts.nvidia import Gpu
from loadspan.facts.nvml import NvmlGpu
from loadspan.facts.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    Machine = Callable[[str], Tree]

A4000 = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
H100 = "GPU-9221d5d1-b60b-a624-bf14-0a1819cfda3b"
IN_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def seen(tree: Tree, environment: dict[str, str], managed: list[NvmlGpu] | None = None) -> list[tuple[str, int | None, bool | None]]:
    return [(found.address, found.index, found.visible) for found in machine_devices(tree, environment, managed)]


def test_gpus_are_named_by_their_kernel_driver(machine: Machine) -> None:
    assert machine_devices(machine("nvidia-mixed"), IN_ORDER) == [
        Accelerator("0000:01:00.0", "nvidia", "cuda", "NVIDIA RTX A4000", None, 0, "nvidia", 0, visible=True, uuid=A4000),
        Accelerator("0000:81:00.0", "nvidia", "cuda", "NVIDIA H100 PCIe", None, 1, "nvidia", 1, visible=True, uuid=H100),
    ]


@pytest.mark.parametrize(
    ("environment", "first", "second"),
    [
        ({}, (None, True), (None, True)),
        ({"CUDA_VISIBLE_DEVICES": "0"}, (None, None), (None, None)),
        ({**IN_ORDER, "CUDA_VISIBLE_DEVICES": "1"}, (None, False), (0, True)),
        ({**IN_ORDER, "CUDA_VISIBLE_DEVICES": "1,0"}, (1, True), (0, True)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-9221"}, (None, False), (0, True)),
        ({"CUDA_VISIBLE_DEVICES": ""}, (None, False), (None, False)),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, (None, False), (None, False)),
    ],
)
def test_a_variable_hides_or_renumbers(
    environment: dict[str, str], first: tuple[int | None, bool | None], second: tuple[int | None, bool | None], machine: Machine
) -> None:
    assert seen(machine("nvidia-mixed"), environment) == [("0000:01:00.0", *first), ("0000:81:00.0", *second)]


def test_a_container_may_not_use_what_it_was_not_given(machine: Machine) -> None:
    assert seen(machine("nvidia-container"), {}) == [
        ("0000:41:00.0", None, False),
        ("0000:61:00.0", None, False),
        ("0000:a1:00.0", None, False),
        ("0000:c1:00.0", 0, True),
    ]


def test_the_management_library_adds_memory_and_finds_mig_instances(machine: Machine) -> None:
    instance = "MIG-d9a47cfb-d1f2-d08c-b40e-0812b597ae69"
    managed = [
        NvmlGpu("0000:02:00.0", "Other name", memory=40 << 30),
        NvmlGpu("0000:03:00.0", memory=40 << 30, c2c=2, instances=(instance,)),
    ]
    tree = machine("nvidia-mig")
    found = machine_devices(tree, {"CUDA_VISIBLE_DEVICES": instance}, managed)
    assert [(one.name, one.memory, one.c2c, one.index, one.visible) for one in found] == [
        ("NVIDIA A100-PCIE-40GB", 40 << 30, None, None, None),
        ("NVIDIA A100-PCIE-40GB", 40 << 30, 2, 0, True),
    ]
    assert seen(tree, IN_ORDER) == [("0000:02:00.0", None, None), ("0000:03:00.0", None, None)]


def test_another_kernel_driver_keeps_cuda_from_a_gpu(tmp_path: Path) -> None:
    text = """
    sys/bus/pci/drivers/vfio-pci/
    sys/bus/pci/devices/0000:01:00.0 -> ../../../devices/pci0000:00/0000:00:01.0/0000:01:00.0
    sys/bus/pci/devices/0000:02:00.0 -> ../../../devices/pci0000:00/0000:00:02.0/0000:02:00.0
    sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/class = 0x030000
    sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/vendor = 0x10de
    sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/driver -> ../../../../bus/pci/drivers/vfio-pci
    sys/devices/pci0000:00/0000:00:02.0/0000:02:00.0/class = 0x030000
    sys/devices/pci0000:00/0000:00:02.0/0000:02:00.0/vendor = 0x10de
    """
    assert seen(machines.unpack_text(text, tmp_path), {}) == [("0000:01:00.0", None, False), ("0000:02:00.0", 0, True)]


def test_where_no_pci_device_is_shown_the_drivers_list_stands(tmp_path: Path) -> None:
    name = "proc/driver/nvidia/gpus/0000:c1:00.0/information"
    tree = machines.unpack_text(f"{name} = Model: \t NVIDIA L4\\nGPU UUID: \t {H100}", tmp_path)
    assert machine_devices(tree, {}) == [
        Accelerator("0000:c1:00.0", "nvidia", "cuda", "NVIDIA L4", index=0, visible=True, uuid=H100),
    ]


def test_amd_cards_are_named_by_sysfs_and_numbered_by_kfd(machine: Machine) -> None:
    memory = 206_141_652_992
    assert machine_devices(machine("partitioned-and-whole"), {}) == [
        Accelerator(
            "0000:05:00.0", "amd", "hip", "AMD Instinct MI300X OAM", memory, 0, "amdgpu", 0, visible=True, uuid="GPU-123456789abcdef0"
        ),
        Accelerator("0000:09:00.0", "amd", "hip", numa_node=0, visible=False),
        Accelerator("0000:85:00.0", "amd", "hip", None, memory, 1, "amdgpu", 4, visible=True, uuid="GPU-00000000000000ff"),
    ]
    assert seen(machine("partitioned-and-whole"), {"ROCR_VISIBLE_DEVICES": "4"}) == [
        ("0000:05:00.0", None, False),
        ("0000:09:00.0", None, False),
        ("0000:85:00.0", 0, True),
    ]
    assert seen(machine("partitioned-and-whole"), {"GPU_DEVICE_ORDINAL": "0"})[0] == ("0000:05:00.0", None, None)


EIGHT = [f"0000:{bus}:00.0" for bus in ("05", "26", "46", "65", "85", "a6", "c6", "e5")]


@pytest.mark.parametrize(
    ("name", "environment", "expected"),
    [
        ("desktop", {}, [(None, None), (0, True)]),  # the first is in the processor
        ("instinct", {}, [(place, True) for place in range(8)]),
        ("instinct", {"ROCR_VISIBLE_DEVICES": "7,0", "HIP_VISIBLE_DEVICES": "1"}, [(0, True)] + [(None, False)] * 7),
        ("instinct", {"HIP_VISIBLE_DEVICES": "3,2"}, [(None, False)] * 2 + [(1, True), (0, True)] + [(None, False)] * 4),
        ("instinct-partitions", {}, [(0, True)]),
        ("instinct-partitions", {"HIP_VISIBLE_DEVICES": "6,2"}, [(0, True)]),
        ("more-gpus-than-visible", {}, [(None, False), (None, True), (None, False), (None, True)]),
        ("more-gpus-than-visible", {**IN_ORDER}, [(None, False), (0, True), (None, False), (1, True)]),
        ("more-gpus-than-visible", {**IN_ORDER, "CUDA_VISIBLE_DEVICES": "1"}, [(None, False), (None, False), (None, False), (0, True)]),
        ("more-gpus-than-visible", {"CUDA_VISIBLE_DEVICES": "GPU-b2c8,GPU-6f1d"}, [(None, False), (1, True), (None, False), (0, True)]),
    ],
)
def test_indices_and_what_is_hidden_on_other_machines(
    name: str, environment: dict[str, str], expected: list[tuple[int | None, bool | None]], machine: Machine
) -> None:
    assert [(index, visible) for _, index, visible in seen(machine(name), environment)] == expected


def test_eight_cards_are_joined_each_with_each(machine: Machine) -> None:
    tree = machine("instinct")
    assert [found.address for found in machine_devices(tree, {})] == EIGHT
    joined = kfd.xgmi(tree, kfd.gpus(tree))
    assert sorted(joined) == [(one, other) for place, one in enumerate(EIGHT) for other in EIGHT[place + 1 :]]
    assert set(joined.values()) == {64_000_000_000}


def test_xgmi_joins_cards(machine: Machine) -> None:
    tree = machine("partitioned-and-whole")
    assert kfd.xgmi(tree, kfd.gpus(tree)) == {("0000:05:00.0", "0000:85:00.0"): 64_000_000_000}


def test_a_partition_is_at_its_cards_address_and_a_virtual_function_at_its_own(machine: Machine, tmp_path: Path) -> None:
    partition = kfd.gpus(machine("partitioned-and-whole"))[3]
    assert partition == Node(5, "0000:05:00.0", 1_311_768_467_463_790_323)
    text = """
    sys/bus/pci/devices/10002:05:02.3 -> ../../../devices/pci10002:00/10002:05:02.3
    sys/devices/pci10002:00/10002:05:02.3/class = 0x120000
    sys/class/kfd/kfd/topology/nodes/1/gpu_id = 7
    sys/class/kfd/kfd/topology/nodes/1/properties = simd_count 4\\nlocation_id 1299\\ndomain 65538
    sys/class/kfd/kfd/topology/nodes/10/gpu_id = 8
    sys/class/kfd/kfd/topology/nodes/10/properties = simd_count 4\\nlocation_id 70000\\nunique_id 0
    sys/class/kfd/kfd/topology/nodes/9/gpu_id = 9
    sys/class/kfd/kfd/topology/nodes/9/properties = simd_count 4\\nlocation_id 1536\\nunique_id 18446744073709551616
    """
    assert kfd.gpus(machines.unpack_text(text, tmp_path)) == [Node(1, "10002:05:02.3", None), Node(9, None, None), Node(10, None, None)]


PROCESSOR = """
sys/bus/pci/devices/0000:00:02.0 -> ../../../devices/pci0000:00/0000:00:02.0
sys/bus/pci/devices/0000:00:0b.0 -> ../../../devices/pci0000:00/0000:00:0b.0
sys/devices/pci0000:00/0000:00:02.0/class = 0x030000
sys/devices/pci0000:00/0000:00:02.0/vendor = 0x8086
sys/devices/pci0000:00/0000:00:0b.0/class = 0x120000
sys/devices/pci0000:00/0000:00:0b.0/vendor = 0x8086
"""
CARD = """
sys/bus/pci/devices/0000:01:00.0 -> ../../../devices/pci0000:00/0000:00:01.0/0000:01:00.0
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/class = 0x120000
sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/vendor = 0x1da3
"""
INTEL_CARD = CARD.replace("0x120000", "0x038000").replace("0x1da3", "0x8086")


def test_graphics_of_the_processor_may_be_none_for_torch(tmp_path: Path) -> None:
    tree = machines.unpack_text(PROCESSOR + CARD, tmp_path)
    assert machine_devices(tree, {}) == [
        Accelerator("0000:00:02.0", "intel", "xpu"),
        Accelerator("0000:00:0b.0", "intel"),  # no GPU
        Accelerator("0000:01:00.0", "0x1da3"),
    ]
    assert of_torch("xpu", 0, tree, {}).pci_address == "0000:00:02.0"


def test_an_index_is_certain_for_one_intel_card(tmp_path: Path) -> None:
    tree = machines.unpack_text(INTEL_CARD, tmp_path / "one")
    assert seen(tree, {}) == [("0000:01:00.0", 0, True)]
    assert seen(tree, {"ZE_AFFINITY_MASK": "0"}) == [("0000:01:00.0", None, None)]
    several = machines.unpack_text(PROCESSOR + INTEL_CARD, tmp_path / "several")
    assert seen(several, {}) == [("0000:00:02.0", None, None), ("0000:00:0b.0", None, None), ("0000:01:00.0", None, True)]
    assert of_torch("xpu", 0, several, {}).pci_address is None


@pytest.mark.parametrize(
    ("text", "gpu"),
    [
        (
            b"Model: \t\t NVIDIA H100\nGPU UUID: \t GPU-????????-????-????-????-????????????\nDevice Minor: \t 5\n",
            Gpu("a", "NVIDIA H100", None, 5),
        ),
        (b"Model: \t\t Unknown\nDevice Minor: \t -1\n", Gpu("a")),
        (b"Model: \t\t NVIDIA\xff\nGPU Excluded:\t Yes\n", Gpu("a", "NVIDIA\ufffd", usable=False)),
        (b"Model: \t\t Tesla K80\nBlacklisted:\t Yes\n", Gpu("a", "Tesla K80", usable=False)),
        (b"Model: \x1b[31m\nDevice Minor: 99999\nGPU UUID: GPU-00000000-0000-0000-0000-000000000000", Gpu("a")),
        (b"", Gpu("a")),
        (b":::\n\n:", Gpu("a")),
    ],
)
def test_what_the_driver_does_not_know_is_absent(text: bytes, gpu: Gpu) -> None:
    assert nvidia.parse_information("a", text) == gpu


def test_the_order_of_the_bus_is_that_of_numbers() -> None:
    addresses = ["10000:01:00.0", "0000:0a:00.0", "0000:09:1f.7", "fff0:01:00.0"]
    assert sorted(addresses, key=nvidia.order) == ["0000:09:1f.7", "0000:0a:00.0", "fff0:01:00.0", "10000:01:00.0"]


@given(st.binary(max_size=400))
def test_no_content_of_a_file_breaks_its_parser(text: bytes) -> None:
    found = nvidia.parse_information("a", text)
    assert found.minor is None or 0 <= found.minor < 256
    assert all(0 <= value < 1 << 64 for value in kfd.parse_properties(text).values())


FILES = ["gpus/0000:01:00.0/information", "gpus/x/information", "capabilities/gpu0/mig/gi1/access", "capabilities/x"]
NAMES = [
    "0/gpu_id",
    "0/properties",
    "-1/gpu_id",
    "00/properties",
    "99999999999/gpu_id",
    "1/io_links/0/properties",
    "1/properties",
    "1/gpu_id",
]


@given(
    st.dictionaries(
        st.sampled_from([f"proc/driver/nvidia/{name}" for name in FILES] + [f"{kfd.NODES}/{name}" for name in NAMES]),
        st.binary(max_size=60) | st.just(b"simd_count 4\nlocation_id 256\n") | st.just(b"1\n"),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_no_tree_breaks_the_list(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            place = Path(folder, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        assert all(found.address == pci.normalized(found.address) for found in machine_devices(Tree(folder), {}))
