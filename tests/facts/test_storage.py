"""What recorded machines store their files on. Expected values are read off the drawings at the head of `machines/storage-*.txt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadspan.checkup.capture import Recorder
from loadspan.facts import mounts, storage
from loadspan.facts.storage import StorageFacts
from loadspan.facts.tree import Tree
from machines import names, unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    On = Callable[[str, str], StorageFacts]


@pytest.fixture
def on(tmp_path: Path) -> On:
    """`on(machine, path)`: what *path* is stored on."""

    def find(machine: str, path: str) -> StorageFacts:
        folder = tmp_path / machine
        facts = storage.of_file(path, unpack(machine, folder) if not folder.exists() else Tree(str(folder)))
        assert facts is not None
        return facts

    return find


def test_an_nvme_partition_is_shown_in_place_of_its_disk(on: On) -> None:
    facts = on("storage-nvme", "/home/a/model.safetensors")
    assert (facts.filesystem, facts.mountpoint, facts.root, facts.source) == ("ext4", "/", "/", "/dev/nvme0n1p2")
    assert (facts.device, facts.number, facts.stack, facts.kind) == ("/dev/nvme0n1p2", "259:2", ("nvme0n1p2",), "nvme")
    assert (facts.read_ahead, facts.encrypted, facts.server, facts.options) == (131072, False, None, ())
    (disk,) = facts.disks
    assert (disk.name, disk.number, disk.kind, disk.model) == ("nvme0n1", "259:0", "nvme", "Samsung SSD 990 PRO 2TB")
    assert (disk.rotational, disk.pci_address) == (False, "0000:03:00.0")
    assert on("storage-nvme", "/boot/x").device == "/dev/nvme0n1p1"


def test_bind_mounts_and_sub_paths_say_what_of_the_filesystem_they_show(on: On) -> None:
    facts = on("storage-nvme", "/models/a")
    assert (facts.mountpoint, facts.root, facts.device) == ("/models", "/srv/models", "/dev/nvme0n1p2")
    facts = on("storage-nvme", "/models/base/b")
    assert (facts.mountpoint, facts.root, facts.kind) == ("/models/base", "/var/lib/kubelet/pods/0/volumes/pv/base", "nvme")


def test_of_two_mounts_at_one_place_the_later_hides_the_other(on: On) -> None:
    assert (on("storage-nvme", "/over/x").filesystem, on("storage-nvme", "/over/x").root) == ("ext4", "/x")


def test_a_longer_name_is_no_folder_of_a_shorter_one(on: On) -> None:
    assert on("storage-nvme", "/models2/x").kind == "memory"
    assert on("storage-nvme", "/models3/x").mountpoint == "/"


def test_paths_of_a_recorded_machine_are_taken_as_they_are_written(on: On, tmp_path: Path) -> None:
    assert on("storage-nvme", "/home/../models/./base//x").mountpoint == "/models/base"
    (tmp_path / "link").symlink_to("/models")
    assert on("storage-nvme", str(tmp_path / "link" / "x")).mountpoint == "/"
    assert storage.of_file("models/x", unpack("storage-nvme", tmp_path / "again")) is None


def test_a_volume_over_two_disks_names_both(on: On) -> None:
    facts = on("storage-lvm", "/models/x")
    assert (facts.device, facts.number, facts.stack) == ("/dev/dm-0", "253:0", ("nvme0n1p1", "nvme1n1", "dm-lvm"))
    assert (facts.kind, facts.read_ahead, facts.encrypted) == ("nvme", 4 << 20, False)
    assert [(disk.name, disk.pci_address) for disk in facts.disks] == [("nvme0n1", "0000:01:00.0"), ("nvme1n1", "0000:41:00.0")]


def test_a_mapping_of_no_known_kind_has_its_own_name(on: On) -> None:
    facts = on("storage-lvm", "/slow/x")
    assert (facts.stack, facts.kind) == (("nvme1n1", "slow"), "nvme")


def test_luks_anywhere_below_the_file_is_said(on: On) -> None:
    for path in ("/x", "/home/x"):
        facts = on("storage-luks", path)
        assert (facts.stack, facts.encrypted, facts.kind) == (("nvme0n1p2", "dm-crypt", "dm-lvm"), True, "nvme")
        assert [disk.pci_address for disk in facts.disks] == ["10000:e1:00.0"]


def test_what_only_checks_does_not_encrypt(on: On) -> None:
    facts = on("storage-luks", "/usr/x")
    assert (facts.stack, facts.encrypted) == (("nvme0n1p3", "dm-verity"), False)


def test_sata_disks_are_told_apart_by_whether_they_rotate(on: On) -> None:
    ssd, hdd = on("storage-sata", "/ssd/x"), on("storage-sata", "/hdd/x")
    assert (ssd.kind, ssd.stack, ssd.disks[0].model, ssd.disks[0].pci_address) == ("ssd", ("sda1",), "Samsung SSD 870", "0000:00:17.0")
    assert (hdd.kind, hdd.stack, hdd.disks[0].rotational) == ("hdd", ("sdc",), True)


def test_a_stripe_is_of_the_kind_of_its_disks_and_a_mirror_of_two_kinds_of_none(on: On) -> None:
    stripe, mirror = on("storage-sata", "/stripe/x"), on("storage-sata", "/mirror/x")
    assert (stripe.kind, stripe.stack, stripe.read_ahead) == ("ssd", ("sda2", "sdb2", "md-raid0"), 2 << 20)
    assert (mirror.kind, mirror.stack, [disk.kind for disk in mirror.disks]) == (None, ("sdb1", "sdc", "md-raid1"), ["ssd", "hdd"])


def test_a_disk_that_a_server_lends_is_on_the_network(on: On) -> None:
    assert (on("storage-sata", "/lun/x").kind, on("storage-sata", "/lun/x").disks[0].model) == ("network", "LIO-ORG disk1")


def test_a_disk_behind_a_bridge_or_a_controller_is_no_hard_disk_because_it_says_that_it_rotates(on: On) -> None:
    stick, raid = on("storage-sata", "/stick/x"), on("storage-sata", "/raid/x")
    assert (stick.kind, stick.disks[0].rotational, stick.disks[0].model) == (None, True, "SanDisk Ultra")
    assert (raid.kind, raid.disks[0].rotational, raid.disks[0].model) == (None, True, "DELL PERC H730P Mini")


@pytest.mark.parametrize(
    ("path", "kind", "stack"),
    [
        ("/lvm/x", "virtual", ("vda", "loop0", "dm-lvm")),
        ("/image/x", "hdd", ("sda", "loop1")),
        ("/remote/x", "network", ("nfs4", "loop2")),
        ("/gone/x", "virtual", ("loop3",)),
        ("/round/x", None, ("loop4",)),
        ("/ram/x", "memory", ("zram0",)),
    ],
)
def test_a_loop_device_is_what_its_file_is_on(on: On, path: str, kind: str | None, stack: tuple[str, ...]) -> None:
    facts = on("storage-loop", path)
    assert (facts.kind, facts.stack) == (kind, stack)


@pytest.mark.parametrize(
    ("path", "kind", "model"),
    [
        ("/virtio/x", "virtual", None),
        ("/xen/x", "virtual", None),
        ("/qemu/x", "virtual", "QEMU QEMU HARDDISK"),
        ("/hyperv/x", "virtual", "Msft Virtual Disk"),
        ("/nbd/x", "network", None),
        ("/rbd/x", "network", None),
        ("/zvol/x", None, None),
        ("/block/x", "nvme", "Amazon Elastic Block Store"),
        ("/fabrics/x", "network", "Linux"),
        ("/fabrics2/x", "network", None),
        ("/dual/x", "nvme", "SAMSUNG MZWLR3T8HBLS"),
    ],
)
def test_a_disk_that_is_none_is_not_called_by_its_flag(on: On, path: str, kind: str | None, model: str | None) -> None:
    facts = on("storage-cloud", path)
    assert (facts.kind, facts.disks[0].model) == (kind, model)


def test_a_local_disk_with_two_ports_has_the_address_of_its_controller(on: On) -> None:
    assert on("storage-cloud", "/dual/x").disks[0].pci_address == "0000:81:00.0"
    assert on("storage-cloud", "/fabrics/x").disks[0].pci_address is None


def test_a_btrfs_subvolume_is_on_the_device_that_its_source_names(on: On) -> None:
    facts = on("storage-btrfs", "/home/x")
    assert (facts.root, facts.device, facts.number) == ("/@home", "/dev/nvme0n1p2", "259:2")
    assert (facts.stack, facts.kind, facts.read_ahead) == (("nvme0n1p2",), "nvme", 4 << 20)
    assert facts.options == (("subvol", "/@home"),)
    assert on("storage-btrfs", "/x").options == (("subvol", "/@"), ("compress", "zstd:3"))


def test_a_btrfs_over_two_disks_names_both_and_one_on_luks_says_so(on: On) -> None:
    pool, secret = on("storage-btrfs", "/pool/x"), on("storage-btrfs", "/secret/x")
    assert (pool.stack, pool.kind, pool.number, [disk.number for disk in pool.disks]) == (("sda", "sdb"), "ssd", None, ["8:0", "8:16"])
    assert (secret.stack, secret.encrypted, secret.device) == (("nvme0n1p3", "dm-crypt"), True, "/dev/dm-0")


@pytest.mark.parametrize(
    ("path", "filesystem", "kind", "server", "subtype"),
    [
        ("/nfs/x", "nfs4", "network", "nas.example.com", None),
        ("/nfs6/x", "nfs4", "network", "fd00::7", None),
        ("/smb/x", "cifs", "network", "files.example.com", None),
        ("/ceph/x", "ceph", "network", "10.0.0.1:6789,10.0.0.2:6789", None),
        ("/ceph2/x", "ceph", "network", "10.0.0.1:6789,10.0.0.2:6789", None),
        ("/lustre/x", "lustre", "network", "10.0.0.3@o2ib:10.0.0.4@o2ib", None),
        ("/weka/x", "wekafs", "network", None, None),
        ("/ssh/x", "fuse.sshfs", "fuse", "gpu1.example.com", "sshfs"),
        ("/s3/x", "fuse.s3fs", "fuse", None, "s3fs"),
        ("/rclone/x", "fuse.rclone", "fuse", None, "rclone"),
        ("/plain/x", "fuse", "fuse", "gpu2", None),
        ("/dav/x", "fuse", "fuse", "dav.example.com", None),
        ("/dev/shm/x", "tmpfs", "memory", None, None),  # noqa: S108 - of a recorded machine
        ("/empty/x", "tmpfs", "memory", None, None),
        ("/with space\ttab/x", "nfs", "network", "a", None),
        ("/b\udcff\udcfed/x", "nfs", "network", None, None),
        ("/zfs/x", "zfs", None, None, None),
        ("/vm/x", "virtiofs", None, None, None),
        ("/plan9/x", "9p", None, "10.0.0.5", None),
        ("/cut/x", "overlay", "overlay", None, None),
    ],
)
def test_what_is_no_disk(on: On, path: str, filesystem: str, kind: str | None, server: str | None, subtype: str | None) -> None:
    facts = on("storage-network", path)
    assert (facts.filesystem, facts.kind, facts.server, facts.subtype) == (filesystem, kind, server, subtype)
    assert (facts.stack, facts.disks, facts.number) == ((), (), None)


def test_network_filesystems_tell_options_that_explain_speed_and_no_names_of_users(on: On) -> None:
    nfs = on("storage-network", "/nfs/x")
    assert nfs.options == (("vers", "4.2"), ("rsize", "1048576"), ("nconnect", "8"), ("proto", "tcp"))
    assert (nfs.device, nfs.read_ahead) == ("nas.example.com:/export/models", 15 << 20)
    assert on("storage-network", "/plain/x").read_ahead == 128 << 10
    assert on("storage-network", "/smb/x").options == (("vers", "3.1.1"), ("rsize", "4194304"))
    assert on("storage-network", "/dav/x").source == "https://dav.example.com:443/x"
    assert on("storage-network", "/empty/x").source is None


def test_an_overlay_of_a_container_has_no_device(on: On) -> None:
    facts = on("storage-network", "/model")
    assert (facts.kind, facts.device, facts.read_ahead) == ("overlay", None, None)
    assert dict(facts.options)["upperdir"] == "/var/lib/docker/0/diff"


def test_a_filesystem_that_encrypts_says_so(on: On) -> None:
    assert on("storage-network", "/gocrypt/x").encrypted


def test_drives_of_windows_are_known_under_wsl(on: On) -> None:
    root, nine, virtio, drivers = (on("storage-wsl", path) for path in ("/x", "/mnt/c/x", "/mnt/d/x", "/usr/lib/wsl/drivers/x"))
    assert (root.kind, root.stack) == ("virtual", ("sdc",))
    assert (nine.filesystem, nine.subtype, nine.source, nine.kind, nine.server) == ("9p", "drvfs", "C:\\", None, None)
    assert (virtio.filesystem, virtio.subtype) == ("virtiofs", "drvfs")
    assert (drivers.subtype, drivers.source) == (None, None)


def test_a_machine_that_shows_nothing_but_its_mounts_still_names_filesystem_and_source(on: On, tmp_path: Path) -> None:
    folder = tmp_path / "bare" / "proc" / "self"
    folder.mkdir(parents=True)
    (folder / "mountinfo").write_bytes(b"27 1 254:0 / / rw - ext4 /dev/vda rw\n")
    facts = on("bare", "/x")
    assert facts == StorageFacts("ext4", "/", source="/dev/vda", device="/dev/vda")


def test_a_machine_that_shows_no_mounts_has_no_storage(tmp_path: Path) -> None:
    assert storage.of_file("/x", Tree(str(tmp_path))) is None


def written(seen: Recorder, folder: Path) -> Tree:
    """What was *seen* of a machine, as a machine in *folder*."""
    for name in seen.folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, content in seen.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for name, target in seen.links.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
    return Tree(str(folder))


@pytest.mark.parametrize("machine", [name for name in names() if name.startswith("storage-")])
def test_what_was_read_of_a_machine_is_enough_to_answer_again(machine: str, tmp_path: Path) -> None:
    tree = unpack(machine, tmp_path / "whole")
    seen = Recorder(tree.root)
    points = [mount.point for mount in map(mounts.parse, tree.bytes(mounts.MOUNTINFO).split(b"\n")) if mount is not None]
    facts = {point: storage.of_file(f"{point}/x", seen) for point in points}
    assert None not in facts.values()
    again = written(seen, tmp_path / "again")
    assert {point: storage.of_file(f"{point}/x", again) for point in points} == facts


def test_what_was_read_of_this_machine_is_enough_to_answer_elsewhere(tmp_path: Path) -> None:
    seen = Recorder()
    facts = storage.of_file(str(tmp_path), seen)
    assert facts == storage.of_file(str(tmp_path))
    again = storage.of_file(str(tmp_path), written(seen, tmp_path / "again"))
    assert facts is not None
    assert facts.filesystem == "overlay" or again == facts


def test_reads_are_counted_on_block_filesystems_only() -> None:
    kinds = ("ext4", "xfs", "btrfs", "overlay", "squashfs", "nfs4", "tmpfs", "fuse.s3fs", "9p", "cifs", "zfs", "wekafs", "drvfs")
    assert [kind for kind in kinds if StorageFacts(kind, "/").counted] == ["ext4", "xfs", "btrfs", "overlay", "squashfs"]
