"""A variable makes visible what its driver would, in that order; where that is not certain, nothing is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadspan.facts import visible
from loadspan.facts.visible import Visible

ONE = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
TWO = "GPU-89aa0000-1111-2222-3333-444444444444"
THREE = "GPU-9221d5d1-b60b-a624-bf14-0a1819cfda3b"
GPUS = [ONE, TWO, THREE]
BY_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("0", (0,)),
        ("2,1", (2, 1)),
        ("2,0,1", (2, 0, 1)),
        (" 1 , 0", (1, 0)),
        ("01", (1,)),
        ("0,2,-1,1", (0, 2)),  # the example of NVIDIA's programming guide
        ("-1", ()),
        ("-1,0", ()),
        ("", ()),
        (" ", ()),
        (",0", ()),
        ("0,,1", (0,)),
        ("0,3,1", (0,)),  # there is no fourth
        ("3", ()),
        ("0,1,0", ()),  # repeated: none
        ("none", ()),
        ("void", ()),
        ("NoDevFiles", ()),  # Slurm, for a job without GPUs
        ("0,x,1", (0,)),
    ],
)
def test_indices_are_of_the_bus_order_up_to_the_first_that_is_none(text: str, order: tuple[int, ...]) -> None:
    assert visible.cuda(GPUS, {**BY_BUS, "CUDA_VISIBLE_DEVICES": text}) == Visible(order, complete=True)


@pytest.mark.parametrize(
    ("text", "order"), [("1gpu2,2", ()), ("0,1gpu", (0,)), ("+1", ()), (f"0,{TWO}", (0,)), (ONE.lower(), ()), ("0x1", ()), ("9" * 30, ())]
)
def test_what_a_driver_might_read_either_way_is_not_certain(text: str, order: tuple[int, ...]) -> None:
    assert visible.cuda(GPUS, {**BY_BUS, "CUDA_VISIBLE_DEVICES": text}) == Visible(order, complete=False)


def test_by_default_the_fastest_is_first_so_that_no_index_is_certain() -> None:
    assert visible.cuda(GPUS, {}) == Visible((), complete=False, everything=True)
    assert visible.cuda(GPUS, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}) == Visible((), complete=False, everything=True)
    assert visible.cuda(GPUS, {"CUDA_VISIBLE_DEVICES": "0"}) == Visible((), complete=False)
    assert visible.cuda(GPUS, {"CUDA_VISIBLE_DEVICES": "-1"}) == Visible((), complete=True)
    assert visible.cuda(GPUS, BY_BUS) == Visible((0, 1, 2), complete=True, everything=True)


def test_of_one_gpu_the_order_is_certain() -> None:
    assert visible.cuda([None], {}) == Visible((0,), complete=True, everything=True)
    assert visible.cuda([ONE], {"CUDA_VISIBLE_DEVICES": "0"}) == Visible((0,), complete=True)
    assert visible.cuda([ONE], {"CUDA_VISIBLE_DEVICES": "1"}) == Visible((), complete=True)


def test_a_server_of_mps_numbers_the_gpus_itself() -> None:
    environment = {**BY_BUS, "CUDA_VISIBLE_DEVICES": "1", "CUDA_MPS_PIPE_DIRECTORY": "/tmp/mps"}  # noqa: S108 - never opened
    assert visible.cuda(GPUS, environment) == Visible((), complete=False)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        (ONE, (0,)),
        (f"{THREE},{ONE}", (2, 0)),
        ("GPU-8932", (0,)),
        ("GPU-9,GPU-89aa", (2, 1)),
        ("GPU-89", ()),  # two begin with it
        ("GPU-9,GPU-89,GPU-8932", (2,)),
        ("GPU-7", ()),
        (f"{ONE},GPU-7,{TWO}", (0,)),
        (f"{ONE},GPU-8932", ()),  # repeated: none
    ],
)
def test_uuids_may_be_shortened_and_need_no_order(text: str, order: tuple[int, ...]) -> None:
    assert visible.cuda(GPUS, {"CUDA_VISIBLE_DEVICES": text}) == Visible(order, complete=True)


def test_an_index_or_a_space_among_uuids_is_not_certain_nor_is_a_gpu_without_one() -> None:
    assert visible.cuda(GPUS, {"CUDA_VISIBLE_DEVICES": f"{ONE},2"}) == Visible((0,), complete=False)
    assert visible.cuda(GPUS, {"CUDA_VISIBLE_DEVICES": f"{ONE}, {TWO}"}) == Visible((0,), complete=False)
    assert visible.cuda([ONE, None], {"CUDA_VISIBLE_DEVICES": f"{ONE},{TWO}"}) == Visible((0,), complete=False)


def test_a_mig_instance_is_on_the_gpu_that_its_name_tells() -> None:
    new = "MIG-d9a47cfb-d1f2-d08c-b40e-0812b597ae69"
    instances = {new: 1}
    for text, gpus, order in [
        (f"MIG-{THREE}/1/0", GPUS, (2,)),
        (f"MIG-{THREE}/1/0,MIG-{ONE}/2/0", GPUS, (2,)),  # a process has one
        ("MIG-GPU-89/1/0", GPUS, ()),
        (new, GPUS, (1,)),
        (new.upper().replace("MIG", "MIG", 1), GPUS, (1,)),
        ("MIG-00000000-d1f2-d08c-b40e-0812b597ae69", GPUS, ()),
        ("MIG-00000000-d1f2-d08c-b40e-0812b597ae69", [ONE], (0,)),  # of the only GPU
        ("MIG-1g.5gb", [ONE], (0,)),
        (f"MIG-{TWO}/1/0", [ONE], ()),
    ]:
        assert visible.cuda(gpus, {"CUDA_VISIBLE_DEVICES": text}, instances) == Visible(order, complete=False), text


def test_indices_number_no_gpus_where_some_are_cut() -> None:
    assert visible.cuda(GPUS, BY_BUS, partitioned=True) == Visible((), complete=False)
    assert visible.cuda(GPUS, {**BY_BUS, "CUDA_VISIBLE_DEVICES": "1"}, partitioned=True) == Visible((), complete=False)
    assert visible.cuda([ONE], {}, partitioned=True).position(0) == 0


CARDS = ["GPU-00000000000000ff", "GPU-deadbeefdeadbeef", None, "GPU-deadbeef00000001"]


@pytest.mark.parametrize(
    ("environment", "order"),
    [
        ({}, (0, 1, 2, 3)),
        ({"ROCR_VISIBLE_DEVICES": "3,1"}, (3, 1)),
        ({"ROCR_VISIBLE_DEVICES": "0,GPU-DEADBEEFDEADBEEF"}, (0, 1)),  # the example of AMD's documentation
        ({"ROCR_VISIBLE_DEVICES": "gpu-deadbeef0, 2"}, (3, 2)),
        ({"ROCR_VISIBLE_DEVICES": "GPU-deadbeef,0"}, ()),  # two begin with it
        ({"ROCR_VISIBLE_DEVICES": "GPU-"}, ()),
        ({"ROCR_VISIBLE_DEVICES": ""}, ()),
        ({"ROCR_VISIBLE_DEVICES": "1,1,2"}, (1,)),
        ({"ROCR_VISIBLE_DEVICES": "1,9,2"}, (1,)),
        ({"ROCR_VISIBLE_DEVICES": "1,-1,2"}, (1,)),
        ({"ROCR_VISIBLE_DEVICES": "1,2x"}, (1,)),
        ({"ROCR_VISIBLE_DEVICES": "0x3,02"}, (3, 2)),
        ({"ROCR_VISIBLE_DEVICES": "08"}, ()),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, (2, 0)),
        ({"CUDA_VISIBLE_DEVICES": "2,0"}, (2, 0)),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "2,0"}, (1,)),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "2"}, (2,)),
        ({"HIP_VISIBLE_DEVICES": ""}, (0, 1, 2, 3)),
        ({"HIP_VISIBLE_DEVICES": "-1"}, ()),
        ({"HIP_VISIBLE_DEVICES": "1,1,0"}, (1, 0)),
        ({"HIP_VISIBLE_DEVICES": "1, 0"}, (1,)),
        ({"HIP_VISIBLE_DEVICES": "1,01"}, (1,)),
        ({"HIP_VISIBLE_DEVICES": "GPU-deadbeef00000001,0"}, (3, 0)),
        ({"HIP_VISIBLE_DEVICES": "GPU-0123456789abcdef,0"}, ()),
        # The second variable numbers what the first has left.
        ({"ROCR_VISIBLE_DEVICES": "3,1,0", "HIP_VISIBLE_DEVICES": "2,0"}, (0, 3)),
        ({"ROCR_VISIBLE_DEVICES": "3,1", "HIP_VISIBLE_DEVICES": "3"}, ()),
        ({"ROCR_VISIBLE_DEVICES": "3", "CUDA_VISIBLE_DEVICES": "0"}, (3,)),
    ],
)
def test_rocm_applies_one_variable_after_the_other(environment: dict[str, str], order: tuple[int, ...]) -> None:
    found = visible.hip(CARDS, environment)
    assert (found.order, found.complete) == (order, True)


def test_a_variable_of_rocm_that_may_or_may_not_be_read_leaves_nothing_certain() -> None:
    assert visible.hip(CARDS, {"GPU_DEVICE_ORDINAL": "0"}) == Visible((), complete=False)
    assert visible.hip(CARDS, {"ROCR_VISIBLE_DEVICES": "1,,2"}) == Visible((1,), complete=False)
    assert visible.hip(CARDS, {"ROCR_VISIBLE_DEVICES": "1,,2", "HIP_VISIBLE_DEVICES": "0"}) == Visible((), complete=False)


def test_of_intel_gpus_an_index_is_certain_for_one_that_no_variable_is_about() -> None:
    assert visible.xpu(1, {}) == Visible((0,), complete=False, everything=True)
    assert visible.xpu(2, {}) == Visible((), complete=False, everything=True)
    for variable in ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"):
        assert visible.xpu(1, {variable: "0"}) == Visible((), complete=False)


def test_a_position_is_shown_hidden_or_not_certain() -> None:
    chosen = visible.cuda(GPUS, {**BY_BUS, "CUDA_VISIBLE_DEVICES": "2,0"})
    assert [chosen.shows(place) for place in range(3)] == [True, False, True]
    assert [chosen.index_of(place) for place in range(3)] == [1, None, 0]
    assert [chosen.position(index) for index in (-1, 0, 1, 2)] == [None, 2, 0, None]
    unsure = visible.cuda(GPUS, {"CUDA_VISIBLE_DEVICES": "2,0"})
    assert [unsure.shows(place) for place in range(3)] == [None, None, None]


TEXTS = st.text(st.sampled_from("0123456789,-+ xGPUMIGgpu/abcdef\n\u0661"), max_size=40) | st.text(max_size=20)
NAMES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "CUDA_DEVICE_ORDER")


@given(
    st.dictionaries(st.sampled_from(NAMES), TEXTS | st.just("PCI_BUS_ID")),
    st.lists(st.sampled_from([None, *GPUS, *CARDS]), max_size=6, unique=True),
    st.booleans(),
)
def test_whatever_is_written_no_position_is_repeated_or_out_of_range(
    environment: dict[str, str],
    uuids: list[str | None],
    partitioned: bool,  # noqa: FBT001 - hypothesis passes by position
) -> None:
    for found in (visible.cuda(uuids, environment, partitioned=partitioned), visible.hip(uuids, environment)):
        assert len(set(found.order)) == len(found.order)
        assert all(0 <= place < len(uuids) for place in found.order)
