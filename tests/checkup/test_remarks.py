"""Each remark where it belongs, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadspan.checkup import remarks
from loadspan.checkup.schema import Checkup, Device, Disk, Link, Machine, Memory, Node, Place, Storage

GOOD = Storage(
    filesystem="ext4",
    mountpoint="/m",
    kind="nvme",
    disks=(Disk(name="nvme0n1", model="X"),),
    read_ahead=128 << 10,
    files=1,
    size=10_000_000_000,
    cached=1.0,
    cached_of=10_000_000_000,
)
PLACE = Place(path="/m/x", resolved="/m/x", folder=True, files=1, size=10_000_000_000, formats={"safetensors": 1}, complete=True)
LINK = Link(
    upper="0000:00:01.0",
    lower="0000:01:00.0",
    generation=1,
    width=16,
    generation_possible=4,
    width_possible=16,
    generation_device=4,
    width_device=16,
    bandwidth=31_507_692_308,
)
GPU = Device(label="GPU0", type="cuda", numa_node=0, cpus="0-15", links=(LINK,), narrowest=LINK)
MACHINE = Machine(cpus=32, cpus_allowed="0-31")
MEMORY = Memory(total=64 << 30, swap=8 << 30, swap_used=1 << 20)
NODES = (Node(number=0, cpus="0-15"), Node(number=1, cpus="16-31"))


def said(
    storage: Storage | None = GOOD,
    place: Place = PLACE,
    device: Device | None = GPU,
    machine: Machine = MACHINE,
    memory: Memory = MEMORY,
    nodes: tuple[Node, ...] = NODES,
) -> dict[str, str]:
    place = replace(place, storage=(storage,) if storage is not None else ())
    devices = (device,) if device is not None else ()
    found = Checkup(version=1, loadspan="1", captured=False, machine=machine, memory=memory, nodes=nodes, devices=devices, paths=(place,))
    texts = {remark.id: remark.text for remark in remarks.find(found)}
    for text in texts.values():
        assert text.endswith((".", "?")) or "numactl" in text
        for word in ("degraded", "None", "N/A"):
            assert word not in text
    return texts


def test_a_good_machine_has_no_remark_and_one_of_which_nothing_is_known_neither() -> None:
    assert said() == {}
    assert said(Storage(), replace(PLACE, files=None, size=None), Device(label="GPU0"), Machine(), Memory(), ()) == {}


@pytest.mark.parametrize(
    ("change", "name", "evidence"),
    [
        ({"cached": 0.0}, "cold_cache", ["nothing of 10.0 GB", "nvme0n1"]),
        ({"cached": 0.02}, "cold_cache", ["200 MB of 10.0 GB"]),
        ({"cached": 0.4}, "partly_cached", ["4.00 GB of 10.0 GB", "6.00 GB"]),
        ({"cached": 0.4, "cached_sampled": True}, "partly_cached", ["about 4.00 GB of 10.0 GB", "6.00 GB"]),
        ({"cached": 0.4, "evicted": 0.3}, "partly_cached", ["3.00 GB had been there and was pushed out"]),
        ({"cached": 0.4, "cached_of": 5_000_000_000}, "partly_cached", ["2.00 GB of 5.00 GB"]),
        ({"kind": "hdd"}, "spinning_disk", ["ext4 on /m", "(X)"]),
        ({"kind": "overlay", "filesystem": "overlay", "disks": ()}, "overlay", ["overlay on /m", "cannot be seen"]),
        ({"encrypted": True, "stack": ("sda", "dm-crypt")}, "encrypted", ["dm-crypt"]),
        ({"encrypted": True}, "encrypted", ["is encrypted"]),
        ({"kind": "virtual"}, "read_ahead", ["128 KiB", "outside this virtual machine"]),
    ],
)
def test_storage(change: dict[str, object], name: str, evidence: list[str]) -> None:
    found = said(replace(GOOD, **change))  # type: ignore[arg-type]
    assert list(found) == [name]
    assert all(text in found[name] for text in evidence), found


def test_what_was_evicted_is_told_where_it_is_more_than_a_window_of_a_sample() -> None:
    cold = replace(GOOD, cached=0.0, evicted=0.02)
    assert "200 MB had been there" in said(cold)["cold_cache"]
    assert "had been there" not in said(replace(cold, cached_sampled=True))["cold_cache"]
    assert "1.00 GB had been there" in said(replace(cold, evicted=0.1, cached_sampled=True))["cold_cache"]


def test_a_mapped_file_on_a_network_or_fuse_filesystem_is_named_with_its_read_ahead() -> None:
    network = replace(GOOD, kind="network", filesystem="nfs4", cached=0.0)
    assert list(said(network)) == ["mapped_remote", "read_ahead"]
    assert "read-ahead of 128 KiB" in said(network)["mapped_remote"]
    assert list(said(replace(network, read_ahead=15 << 20))) == ["mapped_remote"]
    assert "15 MiB" in said(replace(network, read_ahead=15 << 20))["mapped_remote"]
    assert list(said(replace(network, read_ahead=None), replace(PLACE, formats={"bin": 1}))) == []
    assert list(said(replace(network, kind="fuse", filesystem="fuse.s3fs"))) == ["mapped_remote", "read_ahead"]
    assert "mapped_remote" in said(replace(network, kind=None, filesystem="9p", read_ahead=None))


def test_files_larger_than_the_memory_limit_or_the_memory_cannot_stay_cached() -> None:
    assert list(said(memory=replace(MEMORY, limit=8 << 30))) == ["memory_limit"]
    assert "limit of 8.59 GB" in said(memory=replace(MEMORY, limit=8 << 30))["memory_limit"]
    assert list(said(memory=replace(MEMORY, limit=16 << 30))) == []
    assert list(said(memory=Memory(total=8 << 30))) == ["memory_small"]
    assert list(said(replace(GOOD, kind="memory"), memory=replace(MEMORY, limit=8 << 30))) == []


def test_swap_in_use_and_little_cpu() -> None:
    assert list(said(memory=replace(MEMORY, swap_used=2 << 30))) == ["swap"]
    assert list(said(machine=replace(MACHINE, cpu_limit=0.5))) == ["cpu_limit"]
    assert list(said(machine=replace(MACHINE, cpu_limit=4.0))) == []


def test_files_that_cannot_be_read_links_that_lead_nowhere_and_no_files() -> None:
    assert list(said(place=replace(PLACE, unreadable=1))) == ["unreadable"]
    assert said(place=replace(PLACE, unreadable=2, files=3))["unreadable"].startswith("2 files of 3")
    assert said(place=replace(PLACE, broken=1))["broken_links"].startswith("1 link leads nowhere")
    assert list(said(None, replace(PLACE, files=0, size=0))) == ["no_files"]


def test_a_link_that_idles_at_its_lowest_speed_is_no_remark_and_one_with_fewer_lanes_a_careful_one() -> None:
    assert said(device=replace(GPU, links=(replace(LINK, generation=1),))) == {}
    few = replace(LINK, width=8)
    found = said(device=replace(GPU, links=(few,), narrowest=few))
    assert list(found) == ["link_width"]
    assert "x8, x16 is possible" in found["link_width"]
    assert "idle" in found["link_width"]


def test_a_slot_that_offers_less_than_the_device_could_use_is_named_with_both_numbers() -> None:
    narrow = replace(LINK, width=8, width_possible=8, bandwidth=15_753_846_154)
    found = said(device=replace(GPU, links=(narrow,), narrowest=narrow))
    assert list(found) == ["narrow_link"]
    assert "Gen4 x8" in found["narrow_link"]
    assert "15.8 GB/s" in found["narrow_link"]
    assert "Gen4 x16, 31.5 GB/s" in found["narrow_link"]
    assert said(device=replace(GPU, links=(narrow,), narrowest=narrow, visible=False)) == {}


def test_nothing_is_said_of_pcie_where_other_links_carry_the_bytes() -> None:
    few = replace(LINK, width=1)
    assert said(device=replace(GPU, links=(few,), narrowest=few, c2c=4)) == {}
    assert said(device=replace(GPU, links=(few,), narrowest=few), nodes=(NODES[0], Node(number=1, cpus=""))) == {}


def test_a_process_that_may_only_use_cpus_of_another_node_is_told_how_to_start() -> None:
    found = said(machine=replace(MACHINE, cpus_allowed="16-31"))
    assert list(found) == ["remote_cpus"]
    assert "may only use 16-31 of node 1" in found["remote_cpus"]
    assert "numactl --cpunodebind=0" in found["remote_cpus"]
    assert said(machine=replace(MACHINE, cpus_allowed="8-31")) == {}
    assert said(machine=replace(MACHINE, cpus_allowed="0-15")) == {}
