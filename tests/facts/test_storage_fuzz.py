"""Whatever kernel files hold, storage facts are told without an exception, and no absurd one is."""

from __future__ import annotations

import random
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from loadspan.facts import blocks, disks, mounts, remote, storage
from loadspan.facts.mounts import Mount
from loadspan.facts.tree import Tree
from machines import names, unpack

if TYPE_CHECKING:
    from pathlib import Path

MACHINES = [name for name in names() if name.startswith("storage-")]
KINDS = {"nvme", "ssd", "hdd", "virtual", "network", "fuse", "memory", "overlay", None}
WORDS = [
    b"/",
    b" - ",
    b" ",
    b"\n",
    b"\\040",
    b"\\",
    b",",
    b"=",
    b":",
    b"254:0",
    b"ext4",
    b"nfs4",
    b"overlay",
    b"lowerdir=",
    b"a:/b",
    b"\xff\xfe",
]
WORDS += [b"0", b"-1", b"99999999999999999999999", b"\0", b"btrfs", b"fuse.sshfs", b"@", b"[", b"]", b"//", b"://", b"drvfs", b"\x1b[31m"]


def noise(random_: random.Random) -> bytes:
    """Bytes that resemble a kernel file here and there."""
    if random_.random() < 0.3:
        return random_.randbytes(random_.randrange(200))
    return b"".join(random_.choice(WORDS) for _ in range(random_.randrange(40)))


def corrupted(random_: random.Random, content: bytes) -> bytes:
    """*content*, damaged in one way."""
    cut = random_.randrange(len(content) + 1)
    lines = content.split(b"\n")
    random_.shuffle(lines)
    fields = content.split(b" ")
    random_.shuffle(fields)
    choices = (b"", content[:cut], content[cut:], content[:cut] + noise(random_) + content[cut:], noise(random_), b"\n".join(lines))
    return random_.choice((*choices, b" ".join(fields), content * 3, b"\xff" + content, b"x" * 100_000, b"9" * 30))


def spoil(random_: random.Random, folder: Path) -> None:
    """Damage a few files of the machine in *folder*."""
    places = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    for path in random_.sample(places, min(len(places), random_.randrange(1, 8))):
        what = random_.random()
        if not (path.is_symlink() or path.is_file()):
            continue
        content = b"" if path.is_symlink() else path.read_bytes()
        path.unlink()
        if what < 0.1:
            path.mkdir()
        elif what < 0.2:
            path.symlink_to(
                random_.choice(("..", ".", path.name, "/", "../../../../../../../../etc", "/etc/passwd", random_.choice(places)))
            )
        elif what < 0.9:
            path.write_bytes(corrupted(random_, content))


def sane(facts: storage.StorageFacts) -> None:
    assert facts.kind in KINDS
    assert facts.read_ahead is None or 0 <= facts.read_ahead < 1 << 40
    assert facts.number is None or re.fullmatch(r"\d+:\d+", facts.number)
    assert len(facts.stack) <= 3000
    for name in facts.stack:
        assert 0 < len(name) <= 256
    for disk in facts.disks:
        assert disk.kind in KINDS
        assert disk.name.isprintable()
        assert disk.model is None or (disk.model.isprintable() and len(disk.model) < 300)
        assert disk.pci_address is None or re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", disk.pci_address)
        assert disk.number is None or re.fullmatch(r"\d+:\d+", disk.number)
    assert facts.server is None or (facts.server.isprintable() and "://" not in facts.server)
    hash(facts)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_damaged_machine_still_says_what_it_can(machine: str, tmp_path: Path) -> None:
    random_ = random.Random(machine)  # noqa: S311 - to be the same each time
    tree = unpack(machine, tmp_path / "whole")
    text = tree.bytes(mounts.MOUNTINFO)
    points = [mount.point for mount in map(mounts.parse, text.split(b"\n")) if mount is not None]
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        shutil.copytree(tmp_path / "whole", folder, symlinks=True)
        spoil(random_, folder)
        for point in points:
            facts = storage.of_file(f"{point}/x", Tree(str(folder)))
            if facts is not None:
                sane(facts)
        for number in re.findall(r"\d+:\d+", text.decode("utf-8", "replace")):
            blocks.counters(number, Tree(str(folder)))


def test_no_parser_is_broken_by_noise(tmp_path: Path) -> None:
    random_ = random.Random(4)  # noqa: S311 - as above
    (tmp_path / "sys").mkdir()
    tree = Tree(str(tmp_path))
    kinds = ("nfs4", "cifs", "ceph", "lustre", "fuse", "fuse.sshfs", "9p", "overlay", "btrfs", "virtiofs", "ext4")
    for _ in range(400):
        text = noise(random_)
        line = b"1 0 0:5 / /m rw - " + random_.choice(kinds).encode() + b" " + text.replace(b"\n", b"")
        assert blocks.parse_stat(text) is None
        for parsed in (mounts.parse(text), mounts.parse(line), mounts.find(text, "/a"), mounts.by_id(line, 1)):
            if parsed is not None:
                sane(storage.of_mount(parsed, tree))
                assert len(parsed.layers) < 1 << 15
        (tmp_path / "sys" / "word").write_bytes(text)
        word = disks.word(tree, "sys/word")
        assert word is None or (word.isprintable() and len(word) <= 128)
        decoded = text.decode("utf-8", "surrogateescape").replace("\0", "")
        for kind in kinds:
            mount = Mount("0:5", "/", "/m", kind, decoded, (("addr", decoded), ("aname", decoded), ("mon_addr", decoded)))
            for fact in (remote.server(mount), remote.subtype(mount), remote.source(mount)):
                assert fact is None or len(fact) <= 4096


def test_a_root_that_is_a_file_or_nothing_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "missing", tmp_path):
        assert storage.of_file("/x", Tree(str(root))) is None


def test_strange_paths_are_on_nothing_or_something(tmp_path: Path) -> None:
    tree = unpack("storage-nvme", tmp_path)
    for path in ("", "x", "/", "//", "/\0", "/\udcff", "/" + "x" * 10_000, "/../..", "\ud800", "/\ud800"):
        for below in (tree, storage.HERE):
            facts = storage.of_file(path, below)
            if facts is not None:
                sane(facts)
