"""What files of this machine are stored on: real mounts, where they can be made."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mounted
import pytest

from loadspan.facts import blocks, mounts, storage
from loadspan.facts.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED = "/dev/shm"  # noqa: S108 - no file of ours is made there by name
NOBODY = pwd.getpwnam("nobody").pw_uid


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder on a disk that any user can read."""
    path = Path(tempfile.mkdtemp(prefix="loadspan-", dir="/var/tmp"))
    path.chmod(0o755)
    (path / "m").mkdir()
    yield path
    shutil.rmtree(path)


def device_of(path: Path) -> str:
    number = path.stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def test_a_file_on_a_disk_has_the_device_that_stat_tells(folder: Path) -> None:
    facts = storage.of_file(str(folder))
    assert facts is not None
    if not Path(f"/sys/dev/block/{device_of(folder)}").exists():
        pytest.skip("no block device below /var/tmp")
    assert facts.number == device_of(folder)
    assert facts.device is not None
    assert Path(facts.device).is_block_device()
    assert facts.stack
    assert facts.disks
    assert facts.counted


def test_shared_memory_is_memory() -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        facts = storage.of_file(file.name)
    assert facts is not None
    assert (facts.kind, facts.filesystem, facts.mountpoint, facts.disks, facts.counted) == ("memory", "tmpfs", SHARED, (), False)


def test_a_missing_file_is_on_nothing(folder: Path) -> None:
    assert storage.of_file(str(folder / "missing")) is None
    assert storage.of_file("nul\0byte") is None
    assert storage.of_file("") is None


def test_a_relative_path_and_a_link_are_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "link").symlink_to(SHARED)
    monkeypatch.chdir(folder)
    for relative, absolute in (("m", folder), ("link", Path(SHARED))):
        assert storage.of_file(relative) == storage.of_file(str(absolute))


def test_a_tree_that_records_what_is_read_is_answered_anew(folder: Path) -> None:
    read = []

    class Recording(Tree):
        def bytes(self, path: str) -> bytes:
            read.append(path)
            return super().bytes(path)

    assert storage.of_file(str(folder)) == storage.of_file(str(folder), Recording()) == storage.of_file(str(folder), Recording())
    assert read.count(mounts.MOUNTINFO) == 2


def on_loop(folder: Path, make: str, options: str = "") -> str:
    return f"""truncate -s 400M {folder}/image
        {make} {folder}/image >&2
        mount {options} -o loop {folder}/image {folder}/m
        touch {folder}/m/x || true"""


@pytest.mark.parametrize(
    ("filesystem", "make"), [("ext4", "mkfs.ext4 -q"), ("xfs", "mkfs.xfs -q"), ("btrfs", "mkfs.btrfs -q"), ("ext2", "mkfs.ext2 -q")]
)
@pytest.mark.parametrize("user", [0, NOBODY])
@pytest.mark.parametrize("statx", [True, False])
def test_a_loop_device_is_what_its_image_is_on(folder: Path, filesystem: str, make: str, user: int, *, statx: bool) -> None:
    commands = on_loop(folder, make)
    inner, image = mounted.facts(commands, f"{folder}/m/x", f"{folder}/image", user=user, statx=statx)
    assert (inner["filesystem"], inner["mountpoint"], inner["root"], inner["kind"]) == (filesystem, f"{folder}/m", "/", image["kind"])
    loop = inner["stack"][-1]
    assert loop.startswith("loop")
    assert inner["stack"][:-1] == image["stack"]
    assert (inner["device"], inner["disks"]) == (f"/dev/{loop}", image["disks"])
    assert inner["number"].startswith("7:")
    assert inner["read_ahead"] > 0


def test_a_subvolume_of_btrfs_is_on_the_device_of_its_volume(folder: Path) -> None:
    commands = (
        on_loop(folder, "mkfs.btrfs -q")
        + f"""
        btrfs -q subvolume create {folder}/m/models
        touch {folder}/m/models/y
        mkdir {folder}/s
        mount -o subvol=models $(findmnt -no SOURCE {folder}/m) {folder}/s"""
    )
    top, inside, mount = mounted.facts(commands, f"{folder}/m/x", f"{folder}/m/models/y", f"{folder}/s/y")
    assert top["device"] == inside["device"] == mount["device"]
    assert (inside["root"], mount["root"]) == ("/", "/models")
    assert dict(mount["options"])["subvol"] == "/models"


def test_a_bind_mount_says_what_it_shows(folder: Path) -> None:
    commands = f"mkdir {folder}/a; touch {folder}/a/x; mount --bind {folder}/a {folder}/m"
    bound, original = mounted.facts(commands, f"{folder}/m/x", f"{folder}/a/x")
    assert (bound["mountpoint"], bound["device"]) == (f"{folder}/m", original["device"])
    assert (original["root"].rstrip("/") + f"{folder}/a").endswith(bound["root"])


def test_a_single_file_can_be_a_mount(folder: Path) -> None:
    commands = f"touch {folder}/m/x; mount --bind /dev/null {folder}/m/x"
    for statx in (True, False):
        file, beside = mounted.facts(commands, f"{folder}/m/x", f"{folder}/m", statx=statx)
        assert (file["mountpoint"], beside["mountpoint"] != file["mountpoint"]) == (f"{folder}/m/x", True)


def overlay(folder: Path) -> str:
    """An overlay: its upper layer in *folder*, the lower ones there, with a colon in the name, and on a disk of their own."""
    return f"""truncate -s 40M {folder}/image; mkfs.ext4 -q {folder}/image; mkdir {folder}/own {folder}/up {folder}/work '{folder}/a:b'
        mount -o loop {folder}/image {folder}/own
        mkdir {folder}/own/d; echo own > {folder}/own/d/lower; echo own > {folder}/own/hidden; echo mine > '{folder}/a:b/low'
        mount -t overlay overlay -o 'lowerdir={folder}/a\\:b:{folder}/own,upperdir={folder}/up,workdir={folder}/work' {folder}/m
        echo upper > {folder}/m/upper; echo changed > {folder}/m/hidden"""


@pytest.mark.parametrize("statx", [True, False])
def test_a_file_of_an_overlay_is_on_the_device_of_its_layer(folder: Path, *, statx: bool) -> None:
    paths = [f"{folder}/m/{name}" for name in ("d/lower", "hidden", "upper", "low")]
    *found, outside = mounted.facts(overlay(folder), *paths, f"{folder}/up", statx=statx)
    assert {facts["kind"] for facts in found} == {"overlay"}
    lower, hidden, upper, low = found
    assert lower["stack"] == [*outside["stack"], lower["stack"][-1]]
    assert lower["device"].startswith("/dev/loop")
    assert [facts["device"] for facts in (hidden, upper, low)] == [outside["device"]] * 3


def test_layers_that_cannot_be_reached_leave_the_device_unknown(folder: Path) -> None:
    # As in a container: the layers are paths of the host, and a file of such a name here is another one.
    commands = (
        overlay(folder)
        + f"""
        mkdir {folder}/box; mount --move {folder}/m {folder}/box
        umount {folder}/own; mkdir -p {folder}/own/d; echo other thing > {folder}/own/d/lower; chmod 700 {folder}/up"""
    )
    (lower,) = mounted.facts(commands, f"{folder}/box/d/lower")
    assert (lower["kind"], lower["device"], lower["stack"]) == ("overlay", None, [])


def test_a_mount_is_seen_when_it_comes_and_when_its_number_is_given_again(folder: Path) -> None:
    code = f"""
import os, subprocess
from loadspan.facts import mounts, storage
def run(command): subprocess.run(command, shell=True, check=True)
path, place = "{folder}/m/x", "{folder}/m"
open(path, "w").close()
seen = [(mounts.status(path).mount, storage.of_file(path).filesystem, storage.of_file(path).options)]
for options in ("-t tmpfs -o size=1m,mode=777 a", "-t tmpfs -o size=2m,mode=777 b"):
    run(f"mount {{options}} {{place}}")
    open(path, "w").close()
    seen.append((mounts.status(path).mount, storage.of_file(path).filesystem, storage.of_file(path).options))
    child = os.fork()
    if not child:
        # What a child asks takes no news from its parent.
        storage.of_file(path)
        os._exit(0)
    os.waitpid(child, 0)
    run(f"umount {{place}}")
seen.append((mounts.status(path).mount, storage.of_file(path).filesystem, storage.of_file(path).options))
import json
print(json.dumps(seen))
"""
    before, first, second, after = json.loads(mounted.child(code))
    assert (first[1], first[2]) == ("tmpfs", [["size", "1024k"]])
    assert (second[1], second[2]) == ("tmpfs", [["size", "2048k"]])
    assert before == after
    if first[0] != second[0]:
        pytest.skip("the kernel gave the second mount another number")


def test_a_fork_and_many_threads_see_the_same(folder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    expected = storage.of_file(str(folder))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(storage.of_file, [str(folder)] * 400)) == {expected}
    child = os.fork()
    if not child:
        os._exit(0 if storage.of_file(str(folder)) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_mounts_are_watched_again_after_every_descriptor_was_closed(folder: Path) -> None:
    code = f"""
import os
from loadspan.facts import storage
storage.of_file("{folder}")
os.closerange(3, 100)
found = {{storage.of_file("{folder}") for _ in range(3)}}
assert len(found) == 1 and None not in found
"""
    mounted.child(code)


def test_reads_of_a_device_are_counted(folder: Path) -> None:
    facts = storage.of_file(str(folder))
    if facts is None or facts.number is None:
        pytest.skip("no block device below /var/tmp")
    device = blocks.BlockDevice(facts.number)
    before, same = device.read(), blocks.counters(facts.number)
    assert before is not None
    assert same is not None
    size = 8 << 20
    with (folder / "file").open("wb") as file:
        file.write(os.urandom(size))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    (folder / "file").read_bytes()
    use: Any = blocks.difference(before, device.read())
    assert use.size >= size
    assert 0 < use.utilization <= 1
    assert 0 <= use.wait < 10
    assert use.throughput > 0
    child = os.fork()
    if not child:
        os._exit(0 if device.read() is not None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("user", [0, NOBODY])
def test_a_filesystem_of_a_program_says_which_program(folder: Path, user: int) -> None:
    if not shutil.which("squashfuse") or not Path("/dev/fuse").exists():
        pytest.skip("no squashfuse or no /dev/fuse")
    commands = f"""mkdir {folder}/a; echo x > {folder}/a/x
        mksquashfs {folder}/a {folder}/image -quiet -no-progress >&2
        squashfuse -o allow_other {folder}/image {folder}/m"""
    (facts,) = mounted.facts(commands, f"{folder}/m/x", user=user)
    assert (facts["filesystem"], facts["subtype"], facts["kind"]) == ("fuse.squashfuse", "squashfuse", "fuse")
    assert (facts["disks"], facts["server"], facts["read_ahead"]) == ([], None, 128 << 10)


@pytest.fixture
def zram() -> Iterator[str]:
    """A disk of compressed memory, as `zram7`."""
    control = Path("/sys/class/zram-control")
    if not os.access(control / "hot_add", os.R_OK) or os.geteuid():
        pytest.skip("no zram, or not root")
    number = (control / "hot_add").read_text().strip()
    yield f"zram{number}"
    (control / "hot_remove").write_text(number)


def test_a_disk_of_memory_is_memory(folder: Path, zram: str) -> None:
    commands = f"echo 64M > /sys/block/{zram}/disksize; mkfs.ext4 -q /dev/{zram}; mount /dev/{zram} {folder}/m"
    (facts,) = mounted.facts(commands, f"{folder}/m")
    assert (facts["kind"], facts["stack"], facts["device"]) == ("memory", [zram], f"/dev/{zram}")
