"""Which filesystem a file is on, from the text of mountinfo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from loadspan.facts import storage
from loadspan.facts.storage import StorageFacts

if TYPE_CHECKING:
    from pathlib import Path

MOUNTS = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /data rw - nfs4 server:/export rw,vers=4.2,addr=10.0.0.1
31 22 0:26 / /data2 rw - tmpfs  rw
32 22 0:27 / /mnt/with\040space rw - fuse.sshfs user@host:/x rw
33 22 0:28 / /data rw - xfs /dev/vdb rw
broken line
34 22 0:29 / /odd
"""


def test_the_longest_whole_component_wins_and_of_equal_ones_the_last() -> None:
    mounts = storage.parse_mountinfo(MOUNTS)
    found = {path: storage.find(mounts, path) for path in ("/etc/hosts", "/data/model", "/data2/x", "/data22/x", "/mnt/with space/a")}
    assert found == {
        "/etc/hosts": StorageFacts("ext4", "/"),
        "/data/model": StorageFacts("xfs", "/data"),
        "/data2/x": StorageFacts("tmpfs", "/data2"),
        "/data22/x": StorageFacts("ext4", "/"),
        "/mnt/with space/a": StorageFacts("fuse.sshfs", "/mnt/with space"),
    }


def test_reads_are_counted_on_block_filesystems_only() -> None:
    kinds = ("ext4", "xfs", "btrfs", "overlay", "nfs4", "tmpfs", "fuse.s3fs", "9p", "cifs")
    assert [kind for kind in kinds if StorageFacts(kind, "/").counted] == ["ext4", "xfs", "btrfs", "overlay"]


def test_a_file_of_this_machine_is_on_a_mount_and_a_missing_one_on_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    facts = storage.of_file(str(path))
    assert facts is not None
    assert str(path).startswith(facts.mountpoint)
    assert storage.of_file(str(tmp_path / "missing")) is None
    assert storage.of_file("nul\0byte") is None


@given(st.binary(max_size=300))
def test_no_text_breaks_the_parser(text: bytes) -> None:
    mounts = storage.parse_mountinfo(text)
    storage.find(mounts, "/a/b")
