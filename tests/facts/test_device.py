"""What torch means by a device is found by the first source that is certain, and left out where none is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import machines
from loadspan.facts import device
from loadspan.facts.device import DeviceFacts, of_torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadspan.facts.tree import Tree

    Machine = Callable[[str], Tree]

EXAMPLES = Path(__file__).parents[2] / "examples"
A4000 = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
H100 = "GPU-9221d5d1-b60b-a624-bf14-0a1819cfda3b"


class Backend(ModuleType):
    """Torch's module of a device type, as far as it is asked: nothing else may be, so nothing else is there."""

    def __init__(self, *properties: Any, initialized: bool = True, current: int = 0) -> None:
        super().__init__("backend")
        self._properties, self._initialized, self._current = properties, initialized, current

    def is_initialized(self) -> bool:
        """Never initializes."""
        return self._initialized

    def current_device(self) -> int:
        """Initializes."""
        assert self._initialized, "asking for the current device initializes it"
        return self._current

    def get_device_properties(self, index: int) -> Any:
        """Initializes."""
        assert self._initialized, "asking for properties initializes the device"
        if not 0 <= index < len(self._properties):
            raise AssertionError("Invalid device id")
        return self._properties[index]


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`torch(cuda=Backend(...))` puts such a torch in place of the real one; `hip="6.4"` makes it one for ROCm."""

    def put(hip: str | None = None, **backends: Any) -> None:
        module = ModuleType("torch")
        vars(module).update(backends, version=SimpleNamespace(hip=hip))
        monkeypatch.setitem(sys.modules, "torch", module)

    return put


def h100(**more: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"name": "NVIDIA H100 PCIe", "total_memory": 85_017_755_648, "uuid": H100.removeprefix("GPU-"), **more})


def test_torch_tells_the_pci_address_in_decimal_numbers(machine: Machine, torch: Callable[..., None]) -> None:
    torch(cuda=Backend(h100(pci_domain_id=0, pci_bus_id=129, pci_device_id=0)))
    assert of_torch("cuda", 0, machine("nvidia-mixed"), {}) == DeviceFacts(
        "cuda", 0, "NVIDIA H100 PCIe", "0000:81:00.0", 1, 85_017_755_648, H100, "torch"
    )


def test_without_an_index_it_is_the_current_device(machine: Machine, torch: Callable[..., None]) -> None:
    torch(cuda=Backend(h100(), h100(name="NVIDIA RTX A4000", uuid=A4000), current=1))
    facts = of_torch("cuda", None, machine("nvidia-mixed"), {})
    assert (facts.index, facts.name, facts.pci_address, facts.numa_node, facts.source) == (1, "NVIDIA RTX A4000", "0000:01:00.0", 0, "uuid")


def test_an_older_torch_has_a_uuid_that_the_kernel_driver_knows(machine: Machine, torch: Callable[..., None]) -> None:
    raw = SimpleNamespace(bytes=bytes.fromhex(H100.removeprefix("GPU-").replace("-", "")))
    torch(cuda=Backend(h100(uuid=raw)))
    facts = of_torch("cuda", 0, machine("nvidia-mixed"), {})
    assert (facts.pci_address, facts.numa_node, facts.uuid, facts.source) == ("0000:81:00.0", 1, H100, "uuid")


def test_a_uuid_that_nobody_knows_is_no_address(machine: Machine, torch: Callable[..., None]) -> None:
    torch(cuda=Backend(h100(uuid=H100.replace("9221", "9222"))))
    facts = of_torch("cuda", 0, machine("nvidia-mixed"), {})
    assert (facts.name, facts.pci_address, facts.numa_node, facts.source) == ("NVIDIA H100 PCIe", None, None, None)


def test_a_torch_that_tells_no_identity_leaves_the_order_of_the_bus(machine: Machine, torch: Callable[..., None]) -> None:
    tree = machine("nvidia-mixed")
    torch(cuda=Backend(SimpleNamespace(name="NVIDIA H100 PCIe", total_memory=85_017_755_648)))
    assert of_torch("cuda", 0, tree, {}).pci_address is None
    chosen = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}
    facts = of_torch("cuda", 0, tree, chosen)
    assert (facts.pci_address, facts.numa_node, facts.source) == ("0000:81:00.0", 1, "order")
    assert of_torch("cuda", 1, tree, chosen).pci_address is None


def test_a_device_that_is_not_initialized_is_not_asked(machine: Machine, torch: Callable[..., None]) -> None:
    torch(cuda=Backend(h100(), initialized=False))
    tree = machine("nvidia-mixed")
    assert of_torch("cuda", 0, tree, {}) == DeviceFacts("cuda", 0)
    assert of_torch("cuda", None, tree, {}) == DeviceFacts("cuda")
    assert of_torch("cuda", 0, tree, {"CUDA_VISIBLE_DEVICES": H100}) == DeviceFacts(
        "cuda", 0, "NVIDIA H100 PCIe", "0000:81:00.0", 1, None, H100, "order"
    )


def test_facts_are_final_once_torch_was_asked(machine: Machine, torch: Callable[..., None]) -> None:
    tree = machine("nvidia-mixed")
    torch(cuda=Backend(h100(), initialized=False))
    assert [of_torch("cuda", 0, tree, {}).final, of_torch("cpu", None, tree, {}).final] == [False, True]
    torch(cuda=Backend(h100()))
    assert of_torch("cuda", 0, tree, {}).final


def test_the_only_gpu_that_a_container_was_given_is_the_device(machine: Machine, torch: Callable[..., None]) -> None:
    torch(cuda=Backend(SimpleNamespace(name="NVIDIA A100-SXM4-80GB", total_memory=1 << 36)))
    for environment, source in [({}, "order"), ({"CUDA_VISIBLE_DEVICES": "3"}, "only")]:
        facts = of_torch("cuda", 0, machine("nvidia-container"), environment)
        assert (facts.pci_address, facts.numa_node, facts.source) == ("0000:c1:00.0", 1, source)
        assert of_torch("cuda", 1, machine("nvidia-container"), environment).pci_address is None


def test_a_mig_instance_has_its_own_name_and_memory_and_the_address_of_its_gpu(machine: Machine, torch: Callable[..., None]) -> None:
    told = SimpleNamespace(
        name="NVIDIA A100-PCIE-40GB MIG 1g.5gb", total_memory=5_000_000_000, pci_domain_id=0, pci_bus_id=3, pci_device_id=0
    )
    torch(cuda=Backend(told))
    facts = of_torch("cuda", 0, machine("nvidia-mig"), {"CUDA_VISIBLE_DEVICES": "MIG-d9a47cfb-d1f2-d08c-b40e-0812b597ae69"})
    assert (facts.name, facts.memory, facts.pci_address) == ("NVIDIA A100-PCIE-40GB MIG 1g.5gb", 5_000_000_000, "0000:03:00.0")
    torch(cuda=Backend(SimpleNamespace(name="NVIDIA A100-PCIE-40GB MIG 1g.5gb", total_memory=5_000_000_000)))
    old = {"CUDA_VISIBLE_DEVICES": "MIG-GPU-bbbbbbbb-0000-1111-2222-333333333333/1/0"}
    assert of_torch("cuda", 0, machine("nvidia-mig"), old).pci_address == "0000:03:00.0"
    assert of_torch("cuda", 0, machine("nvidia-mig"), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).pci_address is None


def test_torch_for_rocm_says_cuda_and_means_hip(machine: Machine, torch: Callable[..., None]) -> None:
    tree = machine("partitioned-and-whole")
    torch(hip="6.4.1", cuda=Backend(SimpleNamespace(name="AMD Instinct MI300X", pci_domain_id=0, pci_bus_id=133, pci_device_id=0)))
    # torch did not tell the memory: the kernel driver does.
    assert of_torch("cuda", 0, tree, {}) == DeviceFacts("hip", 0, "AMD Instinct MI300X", "0000:85:00.0", 1, 206_141_652_992, None, "torch")


def test_rocm_tells_the_cards_number_as_letters(machine: Machine, torch: Callable[..., None]) -> None:
    torch(hip="6.4.1", cuda=Backend(SimpleNamespace(name="AMD", uuid=SimpleNamespace(bytes=b"123456789abcdef2"))))
    facts = of_torch("cuda", 0, machine("partitioned-and-whole"), {"HIP_VISIBLE_DEVICES": "2"})
    assert (facts.pci_address, facts.source) == ("0000:05:00.0", "uuid")


def test_a_card_without_a_number_is_not_found_by_zeros(tmp_path: Path, torch: Callable[..., None]) -> None:
    text = """
    sys/bus/pci/devices/0000:05:00.0 -> ../../../devices/pci0000:00/0000:05:00.0
    sys/devices/pci0000:00/0000:05:00.0/vendor = 0x1002
    sys/class/kfd/kfd/topology/nodes/1/gpu_id = 7
    sys/class/kfd/kfd/topology/nodes/1/properties = simd_count 4\\nlocation_id 1280\\nunique_id 0
    """
    torch(hip="6.4.1", cuda=Backend(SimpleNamespace(name="AMD", uuid=SimpleNamespace(bytes=b"0" * 16))))
    facts = of_torch("cuda", 0, machines.unpack_text(text, tmp_path), {})
    assert (facts.pci_address, facts.source) == ("0000:05:00.0", "order")


def test_rocm_numbers_partitions_in_the_order_of_their_nodes(machine: Machine, torch: Callable[..., None]) -> None:
    tree = machine("partitioned-and-whole")
    torch(hip="6.4.1", cuda=Backend(initialized=False))
    assert [of_torch("cuda", index, tree, {}).pci_address for index in range(6)] == ["0000:05:00.0"] * 4 + ["0000:85:00.0", None]
    assert of_torch("cuda", 0, tree, {"ROCR_VISIBLE_DEVICES": "4,0"}).pci_address == "0000:85:00.0"
    assert of_torch("cuda", 0, tree, {"GPU_DEVICE_ORDINAL": "0"}).pci_address is None


def test_without_torch_the_machine_tells_whose_devices_cuda_are(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    facts = of_torch("cuda", 4, machine("partitioned-and-whole"), {})
    assert (facts.type, facts.pci_address, facts.memory) == ("hip", "0000:85:00.0", 206_141_652_992)
    assert of_torch("cuda", 0, machine("nvidia-container"), {}).name == "NVIDIA A100-SXM4-80GB"


TWO_INTEL = """
sys/bus/pci/devices/0000:03:00.0 -> ../../../devices/pci0000:00/0000:00:01.0/0000:03:00.0
sys/bus/pci/devices/0000:03:00.2 -> ../../../devices/pci0000:00/0000:00:01.0/0000:03:00.2
sys/devices/pci0000:00/0000:00:01.0/0000:03:00.0/class = 0x030000
sys/devices/pci0000:00/0000:00:01.0/0000:03:00.0/vendor = 0x8086
sys/devices/pci0000:00/0000:00:01.0/0000:03:00.0/device = 0xe20b
sys/devices/pci0000:00/0000:00:01.0/0000:03:00.0/numa_node = 0
sys/devices/pci0000:00/0000:00:01.0/0000:03:00.2/class = 0x038000
sys/devices/pci0000:00/0000:00:01.0/0000:03:00.2/vendor = 0x8086
sys/devices/pci0000:00/0000:00:01.0/0000:03:00.2/device = 0xe20c
"""


def test_an_intel_uuid_is_believed_where_that_very_device_is(tmp_path: Path, torch: Callable[..., None]) -> None:
    tree = machines.unpack_text(TWO_INTEL, tmp_path)
    uuid = bytes.fromhex("8680 0be2 0000 0000 03 00 00 00000000 00")
    for raw, address in [
        (uuid, "0000:03:00.0"),
        (uuid[:2] + b"\x0c\xe2" + uuid[4:10] + b"\x02" + uuid[11:], "0000:03:00.2"),
        (uuid[:2] + b"\x0c\xe2" + uuid[4:], None),  # another model than is there
        (b"\x86\x81" + uuid[2:], None),
        (uuid[:8] + b"\x04" + uuid[9:], None),
        (uuid[:10] + b"\x09" + uuid[11:], None),
    ]:
        torch(xpu=Backend(SimpleNamespace(name="Intel(R) Arc(TM) B580 Graphics", total_memory=12_168_933_376, uuid=raw)))
        facts = of_torch("xpu", 0, tree, {})
        assert (facts.type, facts.memory, facts.pci_address) == ("xpu", 12_168_933_376, address)


def test_the_only_intel_display_is_the_device(tmp_path: Path, torch: Callable[..., None]) -> None:
    text = "\n".join(line for line in TWO_INTEL.splitlines() if "00.2" not in line)
    torch(xpu=Backend(SimpleNamespace(name="Intel(R) Arc(TM) B580 Graphics")))
    facts = of_torch("xpu", 0, machines.unpack_text(text, tmp_path), {})
    assert (facts.pci_address, facts.numa_node, facts.source) == ("0000:03:00.0", 0, "only")


def test_devices_that_are_no_pci_device_are_a_type_and_an_index(machine: Machine, torch: Callable[..., None]) -> None:
    torch(cpu=Backend(h100()), mps=Backend(h100()), npu=Backend(SimpleNamespace(name="Ascend910B3", total_memory=1 << 36)))
    tree = machine("nvidia-mixed")
    assert of_torch("cpu", None, tree, {}) == DeviceFacts("cpu")
    assert of_torch("mps", 0, tree, {}) == DeviceFacts("mps", 0)
    assert of_torch("npu", 0, tree, {}) == DeviceFacts("npu", 0, "Ascend910B3", memory=1 << 36)
    assert of_torch("hpu", 3, tree, {}) == DeviceFacts("hpu", 3)


def test_an_unknown_backend_is_believed_where_the_kernel_has_the_device(machine: Machine, torch: Callable[..., None]) -> None:
    told = {"name": "Maker X1", "total_memory": 1 << 34}
    torch(
        maker=Backend(
            SimpleNamespace(**told, pci_domain_id=0, pci_bus_id=129, pci_device_id=0),
            SimpleNamespace(**told, pci_domain_id=0, pci_bus_id=130, pci_device_id=0),
        )
    )
    tree = machine("nvidia-mixed")
    assert of_torch("maker", 0, tree, {}) == DeviceFacts("maker", 0, "Maker X1", "0000:81:00.0", 1, 1 << 34, None, "torch")
    assert of_torch("maker", 1, tree, {}) == DeviceFacts("maker", 1, "Maker X1", None, None, 1 << 34)


def test_a_virtual_function_is_found_by_what_the_kernel_has(tmp_path: Path, torch: Callable[..., None]) -> None:
    torch(cuda=Backend(h100(pci_domain_id=0, pci_bus_id=5, pci_device_id=2)))
    one = "sys/bus/pci/devices/0000:05:02.1 -> ../../../devices/pci0000:00/0000:00:01.0/0000:05:02.1\n"
    two = "sys/bus/pci/devices/0000:05:02.3 -> ../../../devices/pci0000:00/0000:00:01.0/0000:05:02.3\n"
    expected = [(one, "0000:05:02.1"), (one + two, None), ("sys/bus/pci/devices/", "0000:05:02.0"), ("proc/", "0000:05:02.0")]
    for number, (text, address) in enumerate(expected):
        tree = machines.unpack_text(text, tmp_path / f"{number}")
        assert of_torch("cuda", 0, tree, {}).pci_address == address


@pytest.mark.parametrize(
    "told",
    [
        {"pci_domain_id": 0, "pci_bus_id": 0, "pci_device_id": 0},
        {"pci_domain_id": 0, "pci_bus_id": 256, "pci_device_id": 0},
        {"pci_domain_id": -1, "pci_bus_id": 1, "pci_device_id": 0},
        {"pci_domain_id": 0, "pci_bus_id": "1", "pci_device_id": 0},
        {"pci_domain_id": 0, "pci_bus_id": True, "pci_device_id": 0},
        {"pci_bus_id": 1},
        {"uuid": 17},
        {"uuid": b"short"},
        {"uuid": "GPU-words"},
        {"uuid": "\udcff" * 32},
        {"uuid": bytes(16)},
        {"name": 3, "total_memory": "much"},
        {"name": "\x1b[31mred", "total_memory": -1},
        {"total_memory": 1 << 60},
        {"total_memory": float("nan")},
    ],
)
def test_properties_that_make_no_sense_are_left_out(told: dict[str, Any], machine: Machine, torch: Callable[..., None]) -> None:
    torch(cuda=Backend(SimpleNamespace(**told)))
    assert of_torch("cuda", 0, machine("nvidia-mixed"), {}) == DeviceFacts("cuda", 0)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), AssertionError(), AttributeError("name"), OSError(), KeyError("x")])
def test_a_backend_that_fails_leaves_type_and_index(error: Exception, torch: Callable[..., None], machine: Machine) -> None:
    class Failing(Backend):
        def get_device_properties(self, index: int) -> Any:  # noqa: ARG002 - fails whatever it is asked
            raise error

        current_device = get_device_properties

    torch(cuda=Failing())
    assert of_torch("cuda", 0, machine("nvidia-mixed"), {}) == DeviceFacts("cuda", 0)
    assert of_torch("cuda", None, machine("nvidia-mixed"), {}) == DeviceFacts("cuda")


def test_a_torch_that_is_being_imported_or_forbidden_is_no_torch(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    for value in (None, ModuleType("torch"), object()):
        monkeypatch.setitem(sys.modules, "torch", value)  # type: ignore[arg-type] # programs do put such things there
        assert of_torch("cuda", 0, machine("nvidia-mixed"), {}) == DeviceFacts("cuda", 0)


def test_on_this_machine_it_needs_no_torch_and_imports_none() -> None:
    program = """
import sys, threading
from loadspan.facts.accelerators import machine_devices
from loadspan.facts.device import of_torch
machine_devices()
for kind in ("cuda", "hip", "xpu", "npu", "mps", "cpu", "unheard"):
    for index in (None, 0, 7):
        of_torch(kind, index)
thread = threading.Thread(target=of_torch, args=("cuda", 0))
thread.start(); thread.join()
print(sorted({"torch", "numpy", "ctypes.util"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_device_that_torch_was_taught_is_asked_only_what_it_has() -> None:
    program = """
import fakegpu, torch
from types import SimpleNamespace
from loadspan.facts.device import of_torch
fakegpu.register()
print(of_torch("fakegpu", 0))
backend = torch.fakegpu
backend.get_device_properties = lambda index: SimpleNamespace(name="Fake GPU", total_memory=1 << 30)
backend.current_device = lambda: 0
print(of_torch("fakegpu", None))
print(torch.cuda.is_initialized(), torch.xpu.is_initialized())
"""
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120, env={"PYTHONPATH": str(EXAMPLES)}
    )
    assert done.stdout.splitlines() == [
        str(DeviceFacts("fakegpu", 0, final=True)),
        str(DeviceFacts("fakegpu", 0, "Fake GPU", memory=1 << 30, final=True)),
        "False False",
    ], done.stderr


@given(st.binary(min_size=16, max_size=16))
def test_no_uuid_makes_an_address_of_a_machine_without_devices(uuid: bytes) -> None:
    tree = device.HERE.__class__("/nonexistent")
    for kind in ("cuda", "hip", "xpu"):
        assert device._by_uuid(kind, uuid, tree) is None  # noqa: SLF001 - the parser itself
