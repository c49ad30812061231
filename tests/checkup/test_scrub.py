"""What a capture must not say."""

from __future__ import annotations

from loadspan.checkup.scrub import Scrub
from loadspan.facts import mounts, nvidia, remote

UUID = "8932f937-d72c-4106-c12f-20bd9faed9f6"
SCRUB = Scrub("gpu-host-7.example.com", ["/models/llama", "/work/with space"], key=b"k")


def line(rest: str, point: str = "/models") -> str:
    return f"36 35 0:44 / {point} rw,relatime shared:1 - {rest}\n"


def mountinfo(text: str, scrub: Scrub = SCRUB) -> str:
    return scrub.content("proc/self/mountinfo", text.encode()).decode()


def test_a_uuid_becomes_another_one_everywhere_and_its_beginning_the_beginning_of_that() -> None:
    found = SCRUB.content("proc/driver/nvidia/gpus/0000:1b:00.0/information", f"GPU UUID: \t GPU-{UUID}\n".encode()).decode()
    other = found.split("GPU-")[1].strip()
    assert UUID not in found
    assert nvidia.parse_uuid(f"GPU-{other}") == f"GPU-{other}"
    assert SCRUB.text(f"GPU-{UUID},GPU-8932f9") == f"GPU-{other},GPU-{other[:6]}"
    assert Scrub(key=b"another").text(UUID) not in (UUID, other)
    assert SCRUB.name(f"sys/fs/btrfs/{UUID}/devices") == f"sys/fs/btrfs/{other}/devices"


def test_serial_numbers_are_left_out() -> None:
    assert SCRUB.content("proc/cpuinfo", b"model name\t: X\nSerial\t\t: 00000000abcd\nModel\t: Y\n") == b"model name\t: X\nModel\t: Y\n"
    for name in ("serial", "wwid", "unique_id", "product_uuid", "address", "config", "hostname", "cmdline"):
        assert SCRUB.content(f"sys/block/x/{name}", b"5cd2e4") == b""
    assert SCRUB.content("sys/class/kfd/kfd/topology/nodes/1/properties", b"gfx 1\nunique_id 12345678901234567890\n").startswith(
        b"gfx 1\nunique_id "
    )
    assert b"12345678901234567890" not in SCRUB.content(
        "sys/class/kfd/kfd/topology/nodes/1/properties", b"unique_id 12345678901234567890\n"
    )


def test_volume_and_container_ids_are_replaced_and_what_they_are_stays() -> None:
    luks = SCRUB.content("sys/devices/virtual/block/dm-0/dm/uuid", b"CRYPT-LUKS2-8932f937d72c4106c12f20bd9faed9f6-luks\n").decode()
    assert luks.startswith("CRYPT-LUKS2-")
    assert luks.endswith("-luks\n")
    assert "8932f937d72c" not in luks
    lvm = SCRUB.content("sys/devices/virtual/block/dm-1/dm/uuid", b"LVM-" + b"aB3" * 21 + b"x\n")
    assert lvm == b"LVM-scrubbed\n"
    container = "4f" * 32
    assert container not in SCRUB.content("proc/self/cgroup", f"0::/docker/{container}\n".encode()).decode()


def test_a_pod_keeps_one_name_in_both_spellings() -> None:
    spelled = "/kubepods/pod8932f937-d72c-4106-c12f-20bd9faed9f6", "/kubepods.slice/kubepods-pod8932f937_d72c_4106_c12f_20bd9faed9f6.slice"
    found = [SCRUB.text(text) for text in spelled]
    assert "8932f937" not in "".join(found)
    assert found[0].rpartition("pod")[2].replace("-", "_") == found[1].rpartition("pod")[2].removesuffix(".slice")


def test_the_name_of_the_host_is_replaced_where_people_write_it() -> None:
    assert SCRUB.content("sys/block/dm-0/dm/name", b"gpu-host-7-root\n") == b"host-root\n"
    assert SCRUB.content("proc/self/cgroup", b"0::/lxc/gpu-host-7\n") == b"0::/lxc/host\n"
    assert SCRUB.name("sys/fs/cgroup/lxc/gpu-host-7/memory.max") == "sys/fs/cgroup/lxc/host/memory.max"
    assert Scrub("ab").content("sys/block/dm-0/dm/name", b"ab-root\n") == b"ab-root\n"


def test_servers_are_replaced_by_the_same_name_each_time_and_users_left_out() -> None:
    text = mountinfo(line("nfs4 nas.corp.example:/export rw,vers=4.2,rsize=1048576,addr=10.0.0.7,clientaddr=10.0.0.8,sec=sys"))
    server = SCRUB.server("nas.corp.example")
    mount = mounts.parse(text.strip().encode())
    assert mount is not None
    assert (mount.source, remote.server(mount), dict(mount.options)) == (
        f"{server}:/export",
        server,
        {"rw": "", "vers": "4.2", "rsize": "1048576"},
    )
    for rest in (
        "fuse.sshfs alice@nas.corp.example:/data rw,user_id=1000",
        "cifs //nas.corp.example/models rw,username=alice,addr=10.0.0.7",
        "ceph 10.0.0.7,10.0.0.9:/x rw,name=alice,secret=<hidden>",
        "ceph alice@b5a9-secret.models=/ rw,mon_addr=10.0.0.7:6789/10.0.0.9:6789",
        "lustre 10.0.0.7@tcp:10.0.0.9@tcp:/fs rw",
        "nfs4 [fd00::7]:/export rw",
        "fuse.juicefs https://alice:secret@10.0.0.7/x rw",
    ):
        text = mountinfo(line(rest))
        assert text
        for secret in ("alice", "nas.corp", "10.0.0", "fd00", "secret"):
            assert secret not in text, text


def test_only_the_mounts_of_the_paths_and_the_control_groups_stay() -> None:
    text = (
        line("ext4 /dev/vda rw", "/")
        + line("tmpfs tmpfs rw", "/run/secrets/token")
        + line("xfs /dev/vdb rw", "/models")
        + line("xfs /dev/vdc rw", "/models2")
        + line("xfs /dev/vdd rw", r"/work/with\040space")
        + line("cgroup2 cgroup2 rw", "/sys/fs/cgroup")
        + "garbage\n"
    )
    kept = [row.split(" ")[4] for row in mountinfo(text).splitlines()]
    assert kept == ["/", "/models", r"/work/with\040space", "/sys/fs/cgroup"]


def test_bytes_that_are_no_text_stay_as_they_are() -> None:
    assert SCRUB.content("sys/x", b"\xff\x00a\n") == b"\xff\x00a\n"


def test_no_password_key_or_signature_of_a_mount_is_in_a_capture() -> None:
    sources = (
        "curlftpfs#ftp://alice:p@ss@ftp.example.com/x",
        "https://key:secret/with/slash@s3.example.com/b?sig=secret",
        ":s3,secret_access_key=secret:bucket",
        "//alice:p@ss@files.example.com/share",
    )
    found = "".join(mountinfo(line(f"fuse.x {source} rw,user_id=0")) for source in sources)
    assert found.count("/models") == len(sources)
    assert not [word for word in ("alice", "p@ss", "secret", "example.com") if word in found]
