"""Captures: what was read of a machine, written to an archive and read back; hostile archives are refused."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loadspan.checkup import capture, captured
from loadspan.checkup.scrub import Scrub
from loadspan.errors import UserError
from loadspan.facts.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "", size: int | None = None
) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, target, len(content) if size is None else size
    return found, content


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> str:
    with tarfile.open(path, "w:gz") as out:
        for found, content in (member("sys/kernel/x", b"1\n"), *members):
            out.addfile(found, io.BytesIO(content))
    return str(path)


@pytest.fixture
def machine_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "machine"
    (folder / "sys/devices/pci0000:00/0000:01:00.0").mkdir(parents=True)
    (folder / "sys/devices/pci0000:00/0000:01:00.0/vendor").write_text("0x10de\n")
    (folder / "sys/devices/pci0000:00/0000:01:00.0/config").write_text("secret")
    (folder / "sys/devices/pci0000:00/0000:01:00.0/empty").write_text("")
    (folder / "sys/bus/pci/devices").mkdir(parents=True)
    (folder / "sys/bus/pci/devices/0000:01:00.0").symlink_to("../../../devices/pci0000:00/0000:01:00.0")
    (folder / "proc/77").mkdir(parents=True)
    (folder / "proc/77/status").write_text("Name:\tx\n")
    (folder / "proc/self").symlink_to("77")
    (folder / "unread").write_text("unread")
    return folder


def round_trip(recorder: capture.Recorder, path: Path, scrub: Scrub | None = None) -> captured.Captured:
    capture.write(str(path), recorder, {"environment": {}}, scrub or Scrub())
    return captured.read(str(path))


def test_what_was_read_reads_the_same_from_the_archive(machine_folder: Path, tmp_path: Path) -> None:
    recorder = capture.Recorder(str(machine_folder))
    asked: list[Callable[[Tree], object]] = [
        lambda tree: tree.text("sys/bus/pci/devices/0000:01:00.0/vendor"),
        lambda tree: tree.names("sys/bus/pci/devices"),
        lambda tree: tree.names("sys/bus/pci/devices/0000:01:00.0"),
        lambda tree: tree.real("sys/bus/pci/devices/0000:01:00.0"),
        lambda tree: tree.exists("sys/bus/pci/devices/0000:01:00.0/empty"),
        lambda tree: tree.exists("sys/bus/pci/devices/0000:01:00.0/missing"),
        lambda tree: tree.text("proc/self/status"),
        lambda tree: tree.names("missing"),
        lambda tree: tree.bytes("sys/bus"),
    ]
    before = [ask(recorder) for ask in asked]
    found = round_trip(recorder, tmp_path / "a.tar.gz")
    assert [ask(found) for ask in asked] == before
    assert before[:2] == ["0x10de", ["0000:01:00.0"]]
    assert not found.here


def test_nothing_that_was_not_read_is_in_the_archive(machine_folder: Path, tmp_path: Path) -> None:
    recorder = capture.Recorder(str(machine_folder))
    recorder.text("sys/bus/pci/devices/0000:01:00.0/vendor")
    recorder.names("sys/bus/pci/devices/0000:01:00.0")
    written = capture.write(str(tmp_path / "a.tar.gz"), recorder, {}, Scrub())
    assert written.files == ("loadspan.json", "sys/devices/pci0000:00/0000:01:00.0/vendor")
    assert b"secret" not in gzip.decompress((tmp_path / "a.tar.gz").read_bytes())


def test_this_process_is_self_in_the_archive_and_others_are_not_listed(machine_folder: Path, tmp_path: Path) -> None:
    recorder = capture.Recorder(str(machine_folder))
    recorder.bytes("proc/self/status")
    assert "77" in recorder.names("proc")
    found = round_trip(recorder, tmp_path / "a.tar.gz")
    assert found.names("proc") == ["self"]
    assert found.text("proc/self/status") == "Name:\tx"


def test_an_archive_can_be_unpacked_and_read_as_a_folder(machine_folder: Path, tmp_path: Path) -> None:
    recorder = capture.Recorder(str(machine_folder))
    assert recorder.text("sys/bus/pci/devices/0000:01:00.0/vendor") == "0x10de"
    capture.write(str(tmp_path / "a.tar.gz"), recorder, {"environment": {}}, Scrub())
    with tarfile.open(tmp_path / "a.tar.gz") as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian 12 has Python 3.11.2, which knows none
        packed.extractall(tmp_path / "out")  # noqa: S202 - filtered, and our own
    tree = Tree(str(tmp_path / "out"))
    assert tree.text("sys/bus/pci/devices/0000:01:00.0/vendor") == "0x10de"
    assert captured.manifest(tree) == {"version": 1, "environment": {}}


def test_an_existing_file_is_never_written_over(machine_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("a.tar.gz", "link"):
        with pytest.raises(UserError, match="exists already"):
            capture.write(str(tmp_path / name), capture.Recorder(str(machine_folder)), {}, Scrub())
    assert (tmp_path / "a.tar.gz").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("/etc/passwd", b"x"), "leads outside"),
        (member("sys/../../x", b"x"), "leads outside"),
        (member("..", kind=tarfile.DIRTYPE), "leads outside"),
        (member("sys/a", kind=tarfile.SYMTYPE, target="/etc"), "leads outside"),
        (member("sys/a", kind=tarfile.SYMTYPE, target="../../etc"), "leads outside"),
        (member("sys/a", kind=tarfile.SYMTYPE, target=""), "leads outside"),
        (member("sys/a", kind=tarfile.LNKTYPE, target="sys/kernel/x"), "neither file"),
        (member("sys/a", kind=tarfile.CHRTYPE), "neither file"),
        (member("sys/a", kind=tarfile.BLKTYPE), "neither file"),
        (member("sys/a", kind=tarfile.FIFOTYPE), "neither file"),
        (member("sys/kernel/x/y", b"x"), "below a file"),
        (member("sys/kernel/x", b"2"), "there twice"),
        (member("sys/kernel", b"2"), "there twice"),
        (member("sys/" + "a/" * 100 + "b", b"x"), "too deep"),
        (member("sys/" + "a" * 5000, b"x"), "too deep"),
    ],
)
def test_an_archive_that_leads_outside_or_contradicts_itself_is_refused(
    bad: tuple[tarfile.TarInfo, bytes], why: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=why) as raised:
        captured.read(archive(tmp_path / "a.tar.gz", bad))
    assert "\n" not in str(raised.value)


def test_nothing_is_read_through_a_link_of_the_archive(tmp_path: Path) -> None:
    below = (member("sys/a", kind=tarfile.SYMTYPE, target="kernel"), member("sys/a/y", b"x"))
    with pytest.raises(UserError, match="below a file or link"):
        captured.read(archive(tmp_path / "a.tar.gz", *below))


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    circle = (member("sys/a", kind=tarfile.SYMTYPE, target="b"), member("sys/b", kind=tarfile.SYMTYPE, target="a"))
    found = captured.read(archive(tmp_path / "a.tar.gz", *circle))
    assert (found.real("sys/a"), found.names("sys/a"), found.bytes("sys/a/x")) == (None, [], b"")


def test_an_archive_that_grows_beyond_all_bounds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="larger than 16 MiB"):
        captured.read(archive(tmp_path / "a.tar.gz", member("sys/big", bytes(17 << 20))))
    block = member("sys/x", kind=tarfile.DIRTYPE)[0].tobuf()
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(block * 50_001, 1))
    with pytest.raises(UserError, match="more than 50000 entries"):
        captured.read(str(tmp_path / "b.tar.gz"))
    large = [member(f"sys/{number}", bytes(16 << 20)) for number in range(5)]
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz", compresslevel=1) as out:
        for found, content in large:
            out.addfile(found, io.BytesIO(content))
    with pytest.raises(UserError, match="more than 64 MiB"):
        captured.read(str(tmp_path / "c.tar.gz"))


@pytest.mark.parametrize("content", [b"", b"text", gzip.compress(b""), gzip.compress(b"text" * 1000), b"\x1f\x8b\x08"])
def test_what_is_no_archive_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=r"Give a FILE\.tar\.gz written by loadspan check --save"):
        captured.read(str(tmp_path / "a"))


def test_archives_that_were_damaged_at_random_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311 - damage that is the same every time
    long_name = member("sys/" + "x" * 150, b"x" * 700)
    link = member("sys/a", kind=tarfile.SYMTYPE, target="kernel/x")
    plain = gzip.decompress(
        Path(archive(tmp_path / "a.tar.gz", long_name, link, member("proc/self/mountinfo", b"1 2\n" * 99))).read_bytes()
    )
    outcomes = set()
    for _ in range(1000):
        broken = bytearray(plain)
        for _ in range(chance.choice((1, 2, 8, 40))):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        if chance.random() < 0.3:
            del broken[chance.randrange(len(broken)) :]
        if chance.random() < 0.7:
            _mend(broken)
        packed = gzip.compress(bytes(broken), 1)
        if chance.random() < 0.1:
            packed = packed[: chance.randrange(len(packed))]
        (tmp_path / "b.tar.gz").write_bytes(packed)
        try:
            found = captured.read(str(tmp_path / "b.tar.gz"))
        except UserError:
            outcomes.add("refused")
            continue
        outcomes.add("read")
        for name in ("sys", "sys/a", "proc/self/mountinfo", "sys/kernel/x", ".."):
            assert isinstance(found.bytes(name), bytes)
            assert isinstance(found.names(name), list)
        assert isinstance(captured.manifest(found), dict)
    assert outcomes == {"read", "refused"}


def _mend(blocks: bytearray) -> None:
    """Make the checksum of every header right again, so that what is in it is looked at."""
    for start in range(0, len(blocks) - 511, 512):
        if blocks[start + 257 : start + 262] == b"ustar":
            blocks[start + 148 : start + 156] = b" " * 8
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + 512])


def test_sparse_files_and_wild_sizes_are_refused(tmp_path: Path) -> None:
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sys/b", "GNU.sparse.realsize": str(1 << 60)}
    sparse, content = member("sys/b", b"1\n0\n512\n".ljust(1024, b"\0"))
    sparse.pax_headers = headers
    with pytest.raises(UserError):
        captured.read(archive(tmp_path / "a.tar.gz", (sparse, content)))
    wild = io.BytesIO()
    with tarfile.open(fileobj=wild, mode="w") as out:
        out.addfile(member("sys/kernel/x", b"1")[0], io.BytesIO(b"1"))
        wild.write(member("sys/c", size=1 << 50)[0].tobuf(tarfile.GNU_FORMAT))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(wild.getvalue()))
    with pytest.raises(UserError):
        captured.read(str(tmp_path / "b.tar.gz"))
