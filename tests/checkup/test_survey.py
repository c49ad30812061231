"""A checkup of a recorded machine, of that machine captured, and of nonsense."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import machines
from loadspan.checkup import capture, captured, manifest, schema, survey
from loadspan.checkup.answers import Answers, Group, Place, Told
from loadspan.checkup.scrub import Scrub
from loadspan.facts import mounts
from loadspan.facts.tree import Tree
from loadspan.report import checkup as report
from loadspan.report.terminal import Look

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def places_of(tree: Tree) -> tuple[Place, ...]:
    """Every mount point of a recorded machine, each said to hold a file."""
    found = [mounts.parse(line) for line in tree.bytes("proc/self/mountinfo").split(b"\n")]
    points = sorted({mount.point for mount in found if mount is not None and mount.point.isprintable()})
    return tuple(
        Place(point, point, folder=True, formats={"safetensors": 1}, groups=(Group(f"{point.rstrip('/')}/x", 1, 1 << 30),))
        for point in points
    )


@pytest.mark.parametrize("name", machines.names())
def test_a_captured_machine_says_what_the_machine_said(name: str, machine: Callable[[str], Tree], tmp_path: Path) -> None:
    tree = machine(name)
    told = Answers(environment={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, cpus="0", places=places_of(tree))
    before = schema.as_json(survey.make(tree, told))
    recorder = capture.Recorder(tree.root)
    assert schema.as_json(survey.make(recorder, told)) == before
    scrub = Scrub("no-such-host", [place.resolved for place in told.places])
    capture.write(str(tmp_path / "a.tar.gz"), recorder, manifest.as_json(told), scrub)
    archive = captured.read(str(tmp_path / "a.tar.gz"))
    again = manifest.parse(captured.manifest(archive))
    assert again == told
    assert without_servers(schema.as_json(survey.make(archive, again))) == without_servers(before)


def without_servers(found: dict[str, Any]) -> dict[str, Any]:
    """Names of servers and what contains them are replaced in a capture."""
    for place in found["paths"]:
        for storage in place["storage"]:
            remote = "server" in storage
            storage["server"] = remote
            if remote or storage["filesystem"] == "9p":
                storage.pop("source", None)
                storage.pop("device", None)
            storage["options"].pop("aname", None)
    found["remarks"] = [remark["id"] for remark in found["remarks"]]
    return found


def test_ids_and_host_names_in_paths_are_the_same_in_the_mounts_and_the_answers(tmp_path: Path) -> None:
    pod = "8932f937-d72c-4106-c12f-20bd9faed9f6"
    tree = machines.unpack_text(
        f"proc/self/mountinfo = 1 0 8:1 / / rw - ext4 /dev/sda1 rw\\n2 1 8:2 / /data/node-7/{pod}/v rw - xfs /dev/sdb1 rw", tmp_path / "m"
    )
    place = f"/data/node-7/{pod}/v/llama"
    told = Answers(places=(Place(place, place, groups=(Group(f"{place}/x", 1, 5),)),))
    recorder = capture.Recorder(tree.root)
    assert survey.make(recorder, told).paths[0].storage[0].filesystem == "xfs"
    scrub = Scrub("node-7.example", [place])
    capture.write(str(tmp_path / "a.tar.gz"), recorder, manifest.as_json(manifest.scrubbed(told, scrub)), scrub)
    archive = captured.read(str(tmp_path / "a.tar.gz"))
    (found,) = survey.make(archive, manifest.parse(captured.manifest(archive))).paths
    assert found.storage[0].filesystem == "xfs"
    assert found.path.startswith("/data/host/")
    assert pod not in found.path


def labels(found: schema.Checkup) -> list[tuple[str, int | None, bool | None]]:
    return [(device.label, device.index, device.visible) for device in found.devices]


def test_two_sockets_with_eight_gpus(machine: Callable[[str], Tree]) -> None:
    found = survey.make(machine("two-sockets"), Answers(cpus="0-31"))
    first, last = found.devices[0], found.devices[7]
    assert (first.pci_address, first.numa_node, first.cpus) == ("0000:18:00.0", 0, "0-31")
    assert [first.relations[f"GPU{number}"] for number in range(1, 8)] == ["PIX", "NODE", "NODE", "SYS", "SYS", "SYS", "SYS"]
    assert last.numa_node == 1
    # The process may only use the first socket: each of the other's GPUs is remote. Links that idle at Gen1 are no remark.
    assert [(remark.id, remark.about) for remark in found.remarks] == [("remote_cpus", f"GPU{number}") for number in (4, 5, 6, 7)]


def test_cards_that_xgmi_joins_are_not_said_to_be_far_apart(machine: Callable[[str], Tree]) -> None:
    found = survey.make(machine("instinct"), Answers())
    assert {relation for device in found.devices for relation in device.relations.values()} == {"XGMI"}
    first, old, second = survey.make(machine("partitioned-and-whole"), Answers()).devices
    assert (first.relations, old.relations) == ({"GPU1": "PHB", "GPU2": "XGMI"}, {"GPU0": "PHB", "GPU2": "SYS"})
    assert second.relations == {"GPU0": "XGMI", "GPU1": "SYS"}


@pytest.mark.parametrize(
    ("name", "remarked"),
    [
        ("desktop", []),
        ("idle-link", []),
        ("narrow-slot", ["narrow_link"]),
        ("trained-down", ["link_width"]),
        ("gh200", []),
        ("vm-emulated", []),
    ],
)
def test_remarks_on_a_machine(name: str, remarked: list[str], machine: Callable[[str], Tree]) -> None:
    assert [remark.id for remark in survey.make(machine(name), Answers()).remarks] == remarked


def test_what_libraries_told_completes_what_the_kernel_says(machine: Callable[[str], Tree]) -> None:
    told = (Told("0000:18:00.0", name="NVIDIA H100", memory=80 << 30, index=3, visible=True), Told("0000:19:00.0", visible=False))
    found = survey.make(machine("two-sockets"), Answers(accelerators=told, nvlinks=(("0000:18:00.0", "0000:8c:00.0", 18),)))
    first = found.devices[0]
    assert (first.name, first.memory, first.index, first.relations["GPU4"]) == ("NVIDIA H100", 80 << 30, 3, "NV18")
    assert labels(found)[:2] == [("GPU0", 3, True), ("GPU1", None, False)]


def test_an_encrypted_disk_is_said_to_be_one(machine: Callable[[str], Tree]) -> None:
    found = survey.make(machine("storage-luks"), Answers(places=(Place("/home", "/home", groups=(Group("/home/x", 1, 5),)),)))
    (storage,) = found.paths[0].storage
    assert (storage.encrypted, storage.kind, storage.stack) == (True, "nvme", ("nvme0n1p2", "dm-crypt", "dm-lvm"))
    assert [remark.id for remark in found.remarks] == ["encrypted"]


def test_a_place_of_an_unknown_mount_has_no_storage_and_an_empty_machine_nothing_at_all(tmp_path: Path) -> None:
    tree = machines.unpack_text("proc/x/", tmp_path)
    found = survey.make(tree, Answers(places=(Place("/a", "/a", groups=(Group("/a"),)),)))
    assert (found.paths[0].storage, found.paths[0].size, found.devices, found.nodes, found.remarks) == ((), None, (), (), ())
    assert found.machine == schema.Machine()
    assert found.memory == schema.Memory()


GOOD = Answers(
    environment={"CUDA_VISIBLE_DEVICES": "", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    cpus="0-3,8",
    accelerators=(Told("0000:18:00.0", "X", 5, 0, 1, visible=True), Told("0000:19:00.0")),
    nvlinks=(("0000:18:00.0", "0000:19:00.0", 4),),
    places=(
        Place(
            "m",
            "/m",
            folder=True,
            formats={"pt": 2},
            unreadable=1,
            broken=1,
            complete=False,
            groups=(Group("/m/a", 2, 100, 0.5, "cachestat", sampled=True, cached_of=90, evicted=0.25, below="/l/a"), Group("/n/b", 1, 1)),
        ),
        Place("x", "/x"),
    ),
    measured=(schema.Measured(probe="read", about="/m", rate=2.5, size=5, depth=1, verified=True, skipped="x"),),
)


def test_answers_survive_json() -> None:
    assert manifest.parse(json.loads(json.dumps(manifest.as_json(GOOD)))) == GOOD
    assert manifest.parse({}) == Answers()


def test_of_answers_that_were_tampered_with_the_rest_is_kept(machine: Callable[[str], Tree]) -> None:
    tree = machine("two-sockets")
    nowhere = Look(width=80)
    chance = random.Random(3)  # noqa: S311 - damage that is the same every time
    junk: list[Any] = [
        None,
        -1,
        1 << 80,
        1e308,
        float("nan"),
        "",
        "\0",
        "x" * 9000,
        "\x1b[2J",
        "../..",
        [],
        [[]] * 9,
        {},
        {"a": {}},
        True,
        "/",
    ]
    for _ in range(600):
        document = json.loads(json.dumps(manifest.as_json(GOOD)))
        for _ in range(chance.choice((1, 1, 3))):
            spoil(document, chance, junk)
        told = manifest.parse(document)
        text = json.dumps(schema.as_json(survey.make(tree, told)), allow_nan=False)
        assert "Infinity" not in text
        assert "\x1b" not in "\n".join(report.lines(survey.make(tree, told), nowhere))


def spoil(part: Any, chance: random.Random, junk: list[Any]) -> None:
    """Put something else in some place of *part*."""
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        if not keys:
            return
        key = chance.choice(keys)
        if isinstance(part[key], dict | list) and part[key] and chance.random() < 0.8:
            part = part[key]
            continue
        part[key] = chance.choice(junk)
        return


def test_choosing_a_device_keeps_its_remarks_alone(machine: Callable[[str], Tree]) -> None:
    found = survey.make(machine("two-sockets"), Answers(cpus="0-31"))
    one = survey.choose(found, ["GPU7"])
    assert labels(one) == [("GPU7", None, True)]
    assert [remark.about for remark in one.remarks] == ["GPU7"]
    assert survey.choose(replace(found, remarks=()), ["GPU0"]).remarks == ()


JUNK = [b"", b"\0", b"\xff\xfe", b"-1", b"9" * 20, b"x" * 100_000, b"\n" * 50, b"1e308", b"nan", b"0x" + b"f" * 40, b"../../..", b"\x1b[2J"]


class Damaged(Tree):
    """A machine whose files are cut, overwritten or nonsense, another way each time that they are read."""

    def __init__(self, root: str, chance: random.Random) -> None:
        super().__init__(root)
        self.chance = chance

    def bytes(self, path: str) -> bytes:
        """What is left of the file."""
        content = bytearray(super().bytes(path))
        match self.chance.randrange(10):
            case 0:
                return self.chance.choice(JUNK)
            case 1:
                del content[self.chance.randrange(len(content) + 1) :]
            case 2 if content:
                for _ in range(self.chance.choice((1, 3, 20))):
                    content[self.chance.randrange(len(content))] = self.chance.randrange(256)
        return bytes(content)


@pytest.mark.parametrize("name", machines.names())
def test_of_damaged_kernel_files_the_rest_is_told_and_nothing_odd_printed(name: str, machine: Callable[[str], Tree]) -> None:
    tree = machine(name)
    told = Answers(cpus="0-3", places=places_of(tree))
    chance = random.Random(name)  # noqa: S311 - damage that is the same every time
    for _ in range(3):
        found = survey.make(Damaged(tree.root, chance), told)
        json.dumps(schema.as_json(found), allow_nan=False)
        text = "\n".join(report.lines(found, Look(width=80)))
        for odd in ("\x1b", "None", "N/A"):  # a name may be "nan": that no number is, the JSON says
            assert odd not in text
