"""Whatever the kernel files of a machine hold, nothing raises, nothing hangs, and nothing absurd is said."""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest

import machines
from loadspan.facts import numa, pci
from loadspan.facts.links import Link, LinkReader, verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadspan.facts.tree import Tree

RELATIONS = {"X", "PIX", "PXB", "PHB", "NODE", "SYS", None}
CONTENTS = [
    b"",
    b"\n",
    b"\xff\xfe\x80\n",
    b"\x00\x00\x00",
    b"9" * 5000,
    b"99999999999999999999999999\n",
    b"18446744073709551615\n",
    b"-1\n",
    b"-9223372036854775808\n",
    b"0\n",
    b"63\n",
    b"255\n",
    b"1e9\n",
    b"0-999999999\n",
    b"0-16383," * 20000,
    b"nan GT/s PCIe\n",
    b"99999.0 GT/s PCIe\n",
    b"64.0 GT/s PCIe\n",
    b"Unknown\n",
    b"suspended\n",
    b"0xffffffffffffffff\n",
    b"0x030000\n",
    "\u0661\u0662\n".encode(),
]


def accounted(link: Link) -> None:
    for lanes in (link.now, link.parent_max, link.child_max, link.possible):
        assert lanes.generation in (None, 1, 2, 3, 4, 5, 6)
        assert lanes.width is None or 1 <= lanes.width <= 32
        assert lanes.bandwidth is None or 0 < lanes.bandwidth < 250e9
    assert pci.normalized(link.parent) == link.parent
    assert pci.normalized(link.child) == link.child


def judge(tree: Tree, address: str) -> None:
    way = pci.path(tree, address)
    assert len(way) == len(set(way)) <= 20
    reader = LinkReader(tree, address)
    for link in reader.read():
        accounted(link)
    sample = reader.sample()
    for moved in (True, False):
        found = verdict(reader.links, sample, moved=moved, achieved=1e9)
        if found is not None:
            assert found.degraded is None or moved
            assert found.sentence is None or ("None" not in found.sentence and "?" not in found.sentence)
            assert not found.degraded or (sample is not None and (sample.bandwidth or 0) < (sample.bandwidth_max or 0))
    node = pci.numa_node(tree, address)
    assert node is None or 0 <= node < 1024


def survey(tree: Tree) -> None:
    """Ask everything, of every device the machine has or had."""
    for cpus in numa.nodes(tree).values():
        assert all(0 <= cpu < 16384 for cpu in cpus)
    for row in numa.distances(tree).values():
        assert all(0 < distance < 256 for distance in row.values())
    found = pci.accelerators(tree)
    for device in found:
        assert device.class_code is not None
        assert all(value is None or 0 <= value <= 0xFFFF for value in (device.vendor, device.device))
        judge(tree, device.address)
    addresses = [device.address for device in found[:3]]
    table = pci.matrix(tree, addresses)
    assert {cell for row in table for cell in row} <= RELATIONS
    assert table == tuple(zip(*table, strict=True))


def replaced(place: Path, change: Callable[[], object]) -> None:
    place.unlink()
    change()


def corrupt(place: Path, chance: random.Random) -> None:
    """Make of a file or link something else, as a seed says."""
    if place.is_symlink():
        target = chance.choice(
            [place.name, "/", "..", "../../../..", "missing", "x" * 255, "/etc", "/proc/self/root/sys/bus/pci/devices", "."]
        )
        replaced(place, lambda: place.symlink_to(target))
        return
    text = place.read_bytes()
    kind = chance.randrange(8)
    if kind == 0:
        place.unlink()
    elif kind == 1:
        replaced(place, place.mkdir)
    elif kind == 2:
        replaced(place, lambda: place.symlink_to(place.name))
    elif kind == 3:
        replaced(place, lambda: os.mkfifo(place))
    elif kind == 4:
        place.write_bytes(text[: len(text) // 2])
    elif kind == 5:
        place.write_bytes(bytes(byte ^ (1 << chance.randrange(8)) if chance.random() < 0.2 else byte for byte in text))
    else:
        place.write_bytes(chance.choice(CONTENTS))


def entries(folder: Path) -> list[Path]:
    return sorted(place for place in folder.rglob("*") if place.is_symlink() or place.is_file())


@pytest.mark.parametrize("name", machines.names())
def test_a_machine_with_many_corrupt_files_breaks_nothing(name: str, tmp_path: Path) -> None:
    for seed in range(12):
        folder = tmp_path / str(seed)
        tree = machines.unpack(name, folder)
        chance = random.Random(f"{name} {seed}")  # noqa: S311 - a seed, no secret
        share = chance.choice([0.02, 0.1, 0.4, 1.0])
        for place in entries(folder):
            if chance.random() < share:
                corrupt(place, chance)
        survey(tree)
        shutil.rmtree(folder)  # tens of thousands of files, which pytest would keep


SMALL = [name for name in machines.names() if len(machines.FOLDER.joinpath(f"{name}.txt").read_text().splitlines()) < 110]


@pytest.mark.parametrize("name", SMALL)
def test_a_machine_with_one_corrupt_file_breaks_nothing(name: str, tmp_path: Path) -> None:
    tree = machines.unpack(name, tmp_path)
    chance = random.Random(name)  # noqa: S311 - as above
    for place in entries(tmp_path):
        link, text = place.is_symlink(), place.readlink() if place.is_symlink() else place.read_bytes()
        corrupt(place, chance)
        survey(tree)
        if place.is_dir() and not place.is_symlink():
            place.rmdir()
        else:
            place.unlink(missing_ok=True)
        if isinstance(text, bytes):
            place.write_bytes(text)
        else:
            assert link
            place.symlink_to(text)
