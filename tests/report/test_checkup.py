"""What `loadspan check` prints: whole outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadspan.checkup.schema import Checkup, Device, Disk, Link, Machine, Measured, Memory, Node, Place, Remark, Storage
from loadspan.report import checkup
from loadspan.report.terminal import Look
from loadspan.report.text import cells

MACHINE = Machine(kernel="6.8.0", architecture="x86_64", processor="AMD EPYC 9654", cpus=64, cpus_allowed="0-31", numa_nodes=2)
MEMORY = Memory(total=512 << 30, available=400 << 30, limit=64 << 30, used=8 << 30, swap=0)
NODES = (Node(number=0, cpus="0-31", distances={"0": 10, "1": 21}), Node(number=1, cpus="32-63", distances={"0": 21, "1": 10}))
STORAGE = Storage(
    filesystem="xfs",
    mountpoint="/models",
    source="/dev/mapper/vg-models",
    kind="nvme",
    device="/dev/dm-1",
    stack=("nvme0n1p2", "dm-crypt", "dm-lvm"),
    disks=(Disk(name="nvme0n1", model="Samsung PM9A3"),),
    encrypted=True,
    read_ahead=128 << 10,
    files=4,
    size=20_000_000_000,
    cached=0.25,
    cached_sampled=True,
    cached_of=20_000_000_000,
)
PLACE = Place(
    path="/models/llama",
    resolved="/mnt/a/llama",
    folder=True,
    files=4,
    size=20_000_000_000,
    formats={"safetensors": 3, "other": 1},
    complete=True,
    storage=(STORAGE,),
)


def link(number: int, now: int = 1) -> Link:
    return Link(
        upper=f"0000:0{number}:01.0",
        lower=f"0000:1{number}:00.0",
        generation=now,
        width=16,
        generation_possible=4,
        width_possible=16,
        bandwidth=31_507_692_308,
    )


def gpu(number: int, relations: dict[str, str]) -> Device:
    return Device(
        label=f"GPU{number}",
        type="cuda",
        index=number,
        name="NVIDIA A100",
        driver="nvidia",
        pci_address=f"0000:1{number}:00.0",
        memory=85_000_000_000,
        numa_node=number,
        cpus="0-31" if number == 0 else "32-63",
        narrowest=link(number),
        relations=relations,
    )


FULL = Checkup(
    version=1,
    loadspan="1.0",
    captured=False,
    machine=MACHINE,
    memory=MEMORY,
    nodes=NODES,
    devices=(gpu(0, {"GPU1": "SYS"}), gpu(1, {"GPU0": "SYS"})),
    paths=(PLACE,),
    remarks=(Remark(id="encrypted", about="/models/llama", text="xfs on /models lies on dm-crypt: decrypted below the program."),),
)
EMPTY = Checkup(version=1, loadspan="1.0", captured=False, machine=Machine(), memory=Memory())

WIDE = """\
machine       Linux 6.8.0 x86_64  AMD EPYC 9654  64 CPUs, this process may use 0-31  2 NUMA nodes
memory        550 GB  429 GB available  limit 68.7 GB, 8.59 GB of it in use  no swap
numa          node 0: CPUs 0-31  node 1: CPUs 32-63  distance 21
devices
  GPU0  cuda:0  NVIDIA A100  85.0 GB  0000:10:00.0  driver nvidia
  GPU1  cuda:1  NVIDIA A100  85.0 GB  0000:11:00.0  driver nvidia

        GPU0  GPU1  CPUs   NUMA  idle link  possible  at most    narrowest link
  GPU0  X     SYS   0-31   0     Gen1 x16   Gen4 x16  31.5 GB/s  00:01.0 - 10:00.0
  GPU1  SYS   X     32-63  1     Gen1 x16   Gen4 x16  31.5 GB/s  01:01.0 - 11:00.0
  X itself  SYS between NUMA nodes  idle link: as it is now; under load it may be faster
  possible: what both ends of the narrowest link support

/models/llama
  path        /mnt/a/llama
  files       20.0 GB  4 files: 3 safetensors, 1 other
  storage     xfs on /models  NVMe  /dev/dm-1  read-ahead 128 KiB
  disk        nvme0n1p2 > dm-crypt > dm-lvm  Samsung PM9A3  encrypted
  page cache  25 % of 20.0 GB  sampled

suspicious
  ! /models/llama: xfs on /models lies on dm-crypt: decrypted below the program."""

NARROW = """\
machine       Linux 6.8.0 x86_64  AMD EPYC 9654
              64 CPUs, this process may use 0-31
              2 NUMA nodes
memory        550 GB  429 GB available
              limit 68.7 GB, 8.59 GB of it in use  no swap
numa          node 0: CPUs 0-31  node 1: CPUs 32-63
              distance 21
devices
  GPU0  cuda:0  NVIDIA A100  85.0 GB  0000:10:00.0
        driver nvidia
  GPU1  cuda:1  NVIDIA A100  85.0 GB  0000:11:00.0
        driver nvidia

        GPU0  GPU1  CPUs   NUMA  idle link  possible
  GPU0  X     SYS   0-31   0     Gen1 x16   Gen4 x16
  GPU1  SYS   X     32-63  1     Gen1 x16   Gen4 x16

        at most    narrowest link
  GPU0  31.5 GB/s  00:01.0 - 10:00.0
  GPU1  31.5 GB/s  01:01.0 - 11:00.0
  X itself  SYS between NUMA nodes
"""


def text(found: Checkup, width: int = 100) -> str:
    return "\n".join(checkup.lines(found, Look(width=width, color=False)))


def test_everything_is_said_in_few_lines() -> None:
    assert text(FULL) == WIDE


def test_on_a_narrow_terminal_the_matrix_is_cut_between_columns() -> None:
    found = text(FULL, 60)
    assert found.startswith(NARROW)
    assert all(cells(line) <= 60 for line in found.splitlines())


def test_what_is_not_known_has_no_line_and_no_cell() -> None:
    assert text(EMPTY) == "devices       no accelerator found\n\nNothing suspicious."
    bare = replace(EMPTY, devices=(Device(label="GPU0"), Device(label="GPU1", relations={"GPU0": "PIX"})))
    assert text(bare) == (
        "devices\n  GPU0\n  GPU1\n\n        GPU0  GPU1\n  GPU0  X\n  GPU1  PIX   X\n"
        "  X itself  PIX at most one PCIe bridge  blank: not known\n\nNothing suspicious."
    )
    for word in ("None", "N/A", " 0 B"):
        assert word not in text(bare) + text(EMPTY)


def test_one_device_needs_no_matrix_and_an_unknown_link_no_columns() -> None:
    found = text(replace(EMPTY, devices=(replace(gpu(0, {}), narrowest=None),)))
    assert "X itself" not in found
    assert "idle link" not in found
    assert "  GPU0  0-31  0" in found


@pytest.mark.parametrize("devices", [4, 8, 16])
def test_a_large_matrix_stays_within_the_width(devices: int) -> None:
    labels = [f"GPU{number}" for number in range(devices)]
    many = tuple(replace(gpu(0, dict.fromkeys(labels, "NV18")), label=label) for label in labels)
    for width in (60, 80, 120, 200):
        lines = checkup.lines(replace(EMPTY, devices=many), Look(width=width))
        assert all(cells(line) <= width for line in lines)
        assert sum(line.count("NV18") for line in lines) == devices * (devices - 1)


def test_a_hidden_device_is_said_to_be_hidden_and_torch_numbers_are_told_only_where_they_are_certain() -> None:
    hidden = replace(gpu(0, {}), index=None, visible=False)
    unsure = replace(gpu(1, {}), index=None)
    assert "this process may not use it" in text(replace(EMPTY, devices=(hidden,)))
    assert "cuda:N" not in text(replace(EMPTY, devices=(hidden, unsure)))
    assert "cuda:N" in text(replace(EMPTY, devices=(unsure, replace(unsure, label="GPU2"))))
    amd = replace(gpu(0, {}), type="hip")
    assert "  GPU0  cuda:0  " in text(replace(EMPTY, devices=(amd,)))


@pytest.mark.parametrize(
    ("cached", "said"),
    [
        (1.0, "all of 20.0 GB"),
        (0.0, "none of 20.0 GB"),
        (0.001, "0.1 % of"),
        (0.00001, "0.1 % of"),
        (0.999, "99.9 % of"),
        (0.99999, "99.9 % of"),
    ],
)
def test_nearly_all_is_not_all_and_hardly_any_is_not_none(cached: float, said: str) -> None:
    assert said in text(replace(EMPTY, paths=(replace(PLACE, storage=(replace(STORAGE, cached=cached),)),)))


def test_hostile_names_cannot_touch_the_terminal() -> None:
    evil = "a\x1b[31m\n\u202eb"
    storage = replace(STORAGE, source=evil, mountpoint=evil, filesystem=evil, stack=(evil,), options={evil: evil})
    place = replace(PLACE, path=evil, resolved=evil, formats={evil: 1}, storage=(storage,))
    found = text(
        replace(
            EMPTY,
            machine=Machine(processor=evil, container=evil, hypervisor=evil, virtual=True),
            devices=(replace(gpu(0, {}), name=evil, pci_address=evil, cpus=evil),),
            paths=(place,),
            measured=(Measured(probe=evil, about=evil, skipped=evil, note=evil),),
            remarks=(Remark(id="x", about=evil, text=evil),),
        )
    )
    assert "\x1b" not in found
    assert "\u202e" not in found


def test_measured_ceilings_are_shown_by_what_they_are_of_with_their_notes_once() -> None:
    one = Measured(probe="read direct", about="/models", rate=2.5e9, size=5_000_000_000, duration=2.0, note="shaky")
    found = (
        one,
        replace(one, rate=5e9, depth=16),
        Measured(probe="decrypt AES", rate=1e9, size=1, duration=1e-9, source="memory"),
        Measured(probe="decrypt X", skipped="not installed"),
    )
    assert text(replace(EMPTY, measured=found)).splitlines()[2:-2] == [
        "measured",
        "  /models",
        "    read direct              2.50 GB/s  5.00 GB in 2.00 s  note 1",
        "    read direct, 16 at once  5.00 GB/s  5.00 GB in 2.00 s  note 1",
        "  one core",
        "    decrypt AES              1.00 GB/s  1 B in 0.00 us",
        "    decrypt X                           not installed",
        "    note 1  shaky",
    ]


def test_color_is_escape_sequences_around_the_same_text() -> None:
    import re

    colored = "\n".join(checkup.lines(FULL, Look(width=100, color=True)))
    assert "\x1b[1m" in colored
    assert re.sub(r"\x1b\[[\d;]*m", "", colored).replace(" \n", "\n") == WIDE
