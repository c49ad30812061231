"""Lines of mountinfo: which one a path is on, and what it says."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadspan.facts import mounts, remote, storage
from loadspan.facts.mounts import Mount
from loadspan.facts.tree import Tree

if TYPE_CHECKING:
    from pathlib import Path

MOUNTS = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /data rw - nfs4 server:/export rw,vers=4.2,addr=10.0.0.1
31 22 0:26 / /data2 rw - tmpfs  rw
32 22 0:27 / /mnt/with\040space rw shared:2 master:3 - fuse.sshfs user@host:/x rw
33 22 0:28 / /data rw - xfs /dev/vdb rw,dax
broken line
34 22 0:29 / /odd
35 22 wrong / /odd rw - ext4 /dev/x rw
220 22 0:30 /a/b /mnt/b\134c\012d rw - ext4 /dev/y\040z rw
"""


def found(path: str) -> tuple[str, str] | None:
    mount = mounts.find(MOUNTS, path)
    return (mount.filesystem, mount.point) if mount is not None else None


def test_the_longest_whole_component_wins_and_of_equal_ones_the_last() -> None:
    assert found("/etc/hosts") == ("ext4", "/")
    assert found("/data") == found("/data/model") == ("xfs", "/data")
    assert found("/data2/x") == ("tmpfs", "/data2")
    assert found("/data22/x") == ("ext4", "/")
    assert found("/mnt/with space/a") == ("fuse.sshfs", "/mnt/with space")


def test_lines_that_are_none_hide_nothing() -> None:
    assert found("/odd/x") == ("ext4", "/")
    assert mounts.find(b"", "/x") is None
    assert mounts.find(b"30 22 0:25 / /data rw - nfs4 a:/b rw", "/x") is None


def test_a_line_is_found_by_its_number_alone() -> None:
    mount = mounts.by_id(MOUNTS, 22)
    assert mount == Mount("254:0", "/", "/", "ext4", "/dev/vda", (("rw", ""),))
    assert mounts.by_id(MOUNTS, 2) is None
    assert mounts.by_id(MOUNTS, 34) is None
    assert mounts.by_id(b"no 22\n", 22) is None


def test_escapes_are_decoded_and_optional_fields_passed_over() -> None:
    mount = mounts.by_id(MOUNTS, 220)
    assert mount is not None
    assert (mount.root, mount.point, mount.source) == ("/a/b", "/mnt/b\\c\nd", "/dev/y z")
    assert found("/mnt/b\\c\nd/x") == ("ext4", "/mnt/b\\c\nd")


def test_undecodable_bytes_and_an_empty_source_are_kept() -> None:
    mount = mounts.parse(b"1 0 0:5 / /\xff\xfe rw - tmpfs  rw,size=1k")
    assert mount is not None
    assert (mount.point, mount.source, mount.option("size"), mount.option("rw"), mount.option("x")) == ("/\udcff\udcfe", "", "1k", "", None)
    assert mounts.find(b"1 0 0:5 / /\xff\xfe rw - tmpfs  rw", "/\udcff\udcfe/x") is not None


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        (b"rw,lowerdir=/a:/b,upperdir=/u,workdir=/w", ["/u", "/a", "/b"]),
        (rb"ro,lowerdir=/a\134:b:/c\054d::/data", ["/a:b", "/c,d", "/data"]),
        (b"ro,lowerdir+=/a,lowerdir+=/b,datadir+=/c", ["/a", "/b", "/c"]),
        (b"rw", []),
    ],
)
def test_layers_of_an_overlay_are_told_from_the_top(options: bytes, layers: list[str]) -> None:
    mount = mounts.parse(b"1 0 0:5 / /m rw - overlay overlay " + options)
    assert mount is not None
    assert mount.layers == layers


@pytest.mark.parametrize(
    ("kind", "source", "server"),
    [
        ("nfs", "host:/", "host"),
        ("nfs4", "[fe80::1%eth0]:/x", "fe80::1%eth0"),
        ("nfs4", "10.0.0.1:/x:/y", "10.0.0.1"),
        ("nfs", "", None),
        ("nfs", "no host", None),
        ("cifs", "//[fd00::1]/share", "fd00::1"),
        ("cifs", "\\\\host\\share", "host"),
        ("cifs", "//", None),
        ("ceph", "[fd00::1]:6789:/x", "[fd00::1]:6789"),
        ("lustre", "nothing", None),
        ("fuse.sshfs", "host:", "host"),
        ("fuse.sshfs", "user@[fd00::1]:/x", "fd00::1"),
        ("fuse.sshfs", "host", None),
        ("fuse.glusterfs", "server:/volume", "server"),
        ("fuse.juicefs", "JuiceFS:models", None),
        ("fuse.blobfuse2", "https://u:p@host.example.com:8080/x", "host.example.com"),
        ("ext4", "host:/x", None),
        ("beegfs", "beegfs_nodev", None),
    ],
)
def test_a_server_is_named_where_the_source_names_one(kind: str, source: str, server: str | None) -> None:
    assert remote.server(Mount("0:5", "/", "/m", kind, source, ())) == server


def test_an_nfs_without_a_host_in_its_source_has_the_address_it_was_resolved_to() -> None:
    assert remote.server(Mount("0:5", "/", "/m", "nfs4", "odd", (("addr", "10.0.0.7"),))) == "10.0.0.7"


def test_passwords_of_a_source_are_left_out() -> None:
    assert remote.source(Mount("0:5", "/", "/m", "fuse", "http://a:b@c/d", ())) == "http://c/d"
    assert remote.source(Mount("0:5", "/", "/m", "tmpfs", "none", ())) is None


@pytest.mark.parametrize(
    ("kind", "source", "told"),
    [
        ("fuse", "curlftpfs#ftp://alice:p@ss@ftp.example.com/x", "curlftpfs#ftp://ftp.example.com/x"),
        ("fuse.x", "https://key:secret/with/slash@s3.example.com:9000/b", "https://s3.example.com:9000/b"),
        ("fuse.x", "https://alice:what?is#this@h/b", "https://h/b"),
        ("fuse.x", "https://h/models?se=2026&sig=secret", "https://h/models"),
        ("fuse.x", "https://h:443/a@b", "https://h:443/a@b"),
        ("fuse.rclone", ":s3,access_key_id=A,secret_access_key=B:bucket", ":s3"),
        ("fuse.rclone", "remote:bucket/a,b=c", "remote:bucket/a,b=c"),
        ("cifs", "//alice:secret@files/share", "//files/share"),
        ("cifs", "//files/share@x", "//files/share@x"),
        ("nfs4", "[fd00::1]:/a@b,c=d?e", "[fd00::1]:/a@b,c=d?e"),
    ],
)
def test_no_password_key_or_signature_of_a_source_is_told(kind: str, source: str, told: str) -> None:
    assert remote.source(Mount("0:5", "/", "/m", kind, source, ())) == told


def test_two_thousand_mounts_are_looked_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [b"%d 1 0:%d / /run/pods/%d/volume rw,relatime shared:%d - tmpfs tmpfs rw,size=1k" % (n, n, n, n) for n in range(30, 2030)]
    text = b"\n".join([MOUNTS.rstrip(), *lines, b""])
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / mounts.MOUNTINFO).write_bytes(text)
    tree = Tree(str(tmp_path))
    started = time.perf_counter()
    facts = storage.of_file("/run/pods/1999/volume/x", tree)
    by_path = time.perf_counter() - started
    started = time.perf_counter()
    mount = mounts.by_id(text, 1999)
    by_id = time.perf_counter() - started
    assert facts is not None
    assert mount is not None
    assert facts.mountpoint == mount.point == "/run/pods/1999/volume"
    with capsys.disabled():
        print(f"\n2000 mounts: {by_path * 1e6:.0f} us by path, {by_id * 1e6:.0f} us by number")  # noqa: T201 - a measurement


@given(st.binary(max_size=300))
def test_no_text_breaks_the_parser(text: bytes) -> None:
    mounts.find(text, "/a/b")
    mounts.by_id(text, 1)
    mounts.parse(text)
