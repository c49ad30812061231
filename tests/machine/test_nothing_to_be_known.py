"""
Where the kernel does not tell, nothing is said, and nothing else happens: an ordinary user, a container without sysfs, refused calls.

Each load works, prints nothing, and has the attributes that can be measured there and no others.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import children
import pytest
from pages import MIB, cached, chill, heat, make, on_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 20 * MIB
LOAD = """
import loadspan, mmap, sys
path = sys.argv[1]
with loadspan.load("model"):
    with open(path, "rb") as file:
        assert len(file.read()) == 20 << 20
with loadspan.load("mapped"):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping, loadspan.stage("convert"):
        mapping[:]
"""
CACHE = {"loadspan.cache.residency"}
DISK = {"loadspan.storage.kind", "loadspan.storage.read_ahead"}  # the device is in the list of mounts, too
DISK_USE = {"loadspan.disk.read", "loadspan.disk.utilization", "loadspan.disk.queue"}
PROCESS_IO = {"loadspan.io.storage_read", "loadspan.io.read", "loadspan.curve.read", "loadspan.curve.storage_read"}
TIMES = {"loadspan.cpu_time", "loadspan.blocked_time", "loadspan.run_queue_time"}
FAULTS = {"loadspan.fault.major", "loadspan.fault.minor"}
PRESSURE = {"loadspan.memory.pressure_time", "loadspan.io.pressure_time", "loadspan.pressure.scope"}
THREAD_WAITS = {"loadspan.blocked_time", "loadspan.run_queue_time"}


@pytest.fixture(scope="module")
def weights() -> Iterator[Path]:
    """A file of root's that anybody may read."""
    folder = Path(tempfile.mkdtemp(prefix="loadspan-", dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        on_disk(folder)
        path = make(folder / "weights.bin", SIZE)
        path.chmod(0o644)
        yield path
    finally:
        shutil.rmtree(folder)


class Found:
    """Attributes of the load and of its read."""

    def __init__(self, load: dict[str, Any]) -> None:
        self.load: dict[str, Any] = load["attributes"]
        (self.read,) = (span["attributes"] for span in load["children"])
        self.names = self.load.keys() | self.read.keys()
        assert self.load["loadspan.size"] == self.read["loadspan.size"] == SIZE
        assert self.read["loadspan.throughput"] > 0


def load(path: Path, setup: str = "", inside: tuple[str, ...] = (), prepare: Any = chill) -> Found:
    prepare(path)
    found, mapped = children.loads(LOAD, path, setup=setup, inside=inside)
    assert [span["name"] for span in mapped["children"]][-1] == "convert"
    return Found(found)


def test_root_is_told_everything(weights: Path) -> None:
    found = load(weights)
    assert found.names >= CACHE | DISK | DISK_USE | PROCESS_IO | TIMES | FAULTS
    assert found.load["loadspan.io.storage_read"] == pytest.approx(SIZE, rel=0.02)


def test_an_ordinary_user_is_told_nothing_of_the_cache_of_a_file_of_another_s(weights: Path) -> None:
    children.need_nobody()
    found = load(weights, inside=children.AS_NOBODY)
    assert found.names >= DISK | DISK_USE | PROCESS_IO | TIMES | FAULTS
    if "loadspan.cache.residency" in found.names:  # Linux 6.5 to 6.13 tell anybody
        assert found.read["loadspan.cache.residency"] == pytest.approx(0, abs=0.02)
    assert found.read["loadspan.cache.cold"] == pytest.approx(1, abs=0.02)
    assert found.load["loadspan.io.storage_read"] == pytest.approx(SIZE, rel=0.02)


def test_a_process_that_hides_itself_may_not_read_its_own_counters(weights: Path) -> None:
    children.need_nobody()
    found = load(weights, "import ctypes; ctypes.CDLL(None).prctl(4, 0)", children.AS_NOBODY)
    # Its thread's counters are another system call's.
    assert "loadspan.io.storage_read" not in found.load
    assert not {"loadspan.curve.read", "loadspan.curve.storage_read"} & found.names
    assert found.read["loadspan.io.storage_read"] == pytest.approx(SIZE, rel=0.02)
    assert found.names >= DISK | DISK_USE | TIMES | FAULTS


@pytest.mark.parametrize("inside", [(), children.AS_NOBODY], ids=["root", "nobody"])
def test_without_sysfs_there_are_no_disks(weights: Path, inside: tuple[str, ...]) -> None:
    children.need_nobody()
    empty = ("unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec", 'mount -t tmpfs none /sys; exec "$@"', "sh", *inside)
    found = load(weights, inside=empty)
    assert not (DISK | DISK_USE | {"loadspan.memory.limit", "loadspan.memory.limit.hits", "loadspan.thread.numa_node"}) & found.names
    assert not {name for name in found.names if name.startswith("loadspan.curve.disk")}
    assert found.read["system.filesystem.type"] in ("ext4", "xfs", "btrfs")
    assert found.names >= PROCESS_IO | TIMES | FAULTS
    assert found.load.get("loadspan.memory.refault.scope", "host") == "host"
    assert found.read["loadspan.cache.cold"] == pytest.approx(1, abs=0.02)
    assert "loadspan.cache.residency" in found.names or inside


PROC = {
    "hidepid": "mount -t proc -o hidepid=2 proc /proc",
    "only processes": "mount -t proc -o subset=pid proc /proc",
    "none": "mount -t tmpfs none /proc",
}


@pytest.mark.parametrize("proc", PROC)
@pytest.mark.parametrize("inside", [(), children.AS_NOBODY], ids=["root", "nobody"])
def test_with_less_of_proc_less_is_said(weights: Path, proc: str, inside: tuple[str, ...]) -> None:
    children.need_nobody()
    command = f'{PROC[proc]}; exec "$@"'
    found = load(weights, inside=("unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec", command, "sh", *inside))
    assert found.names >= FAULTS | {"loadspan.cpu_time"}
    if proc == "none":
        assert not (PROCESS_IO - {"loadspan.io.storage_read", "loadspan.io.read"}) & found.names
        assert not (PRESSURE | THREAD_WAITS | {"loadspan.memory.limit", "loadspan.swap.usage"}) & found.load.keys()
        assert "loadspan.io.storage_read" not in found.load
    else:
        assert found.names >= PROCESS_IO | TIMES
    if proc == "hidepid":
        assert found.names >= DISK | DISK_USE
    if proc == "only processes":
        assert not {"loadspan.pressure.scope"} & found.names or found.load["loadspan.pressure.scope"] == "cgroup"


FILTER = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def refuse(error, *calls):
    code = [(0x20, 0, 0, 0)]  # the number of the call
    code += [(0x15, len(calls) - place, 0, call) for place, call in enumerate(calls)]
    code += [(6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x50000 | error)]  # let through; an error
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    filter = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
    words = [ctypes.c_ulong(word) for word in (1, 0, 0, 0)]
    if libc.prctl(38, *words) or libc.prctl(22, ctypes.c_ulong(2), filter, *words[1:3]):
        children.skip("no seccomp here")
import children
"""
CACHESTAT, MINCORE, STATX, MOVE_PAGES = 451, 27, 332, 279
EPERM, ENOSYS = 1, 38


def refused(error: int, *calls: int) -> str:
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of the calls are those of another machine")
    return f"{FILTER}\nrefuse({error}, {', '.join(map(str, calls))})"


@pytest.mark.parametrize("error", [EPERM, ENOSYS])
@pytest.mark.parametrize(("prepare", "share"), [(chill, 0), (heat, 1)])
def test_without_cachestat_the_owner_of_a_file_is_still_told(weights: Path, error: int, prepare: Any, share: int) -> None:
    for _ in range(4):
        found = load(weights, refused(error, CACHESTAT), prepare=prepare)
        if found.read["loadspan.io.storage_read"] == (1 - share) * SIZE:
            break  # otherwise the machine took pages back meanwhile
    assert found.read["loadspan.cache.residency"] == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("error", [EPERM, ENOSYS])
def test_without_cachestat_nobody_else_is_told(weights: Path, error: int) -> None:
    children.need_nobody()
    found = load(weights, refused(error, CACHESTAT), children.AS_NOBODY)
    assert "loadspan.cache.residency" not in found.names
    assert found.read["loadspan.cache.cold"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("error", [EPERM, ENOSYS])
def test_with_every_look_refused_there_is_no_residency_and_everything_else(weights: Path, error: int) -> None:
    found = load(weights, refused(error, CACHESTAT, MINCORE, STATX, MOVE_PAGES))
    assert not {"loadspan.cache.residency", "loadspan.cache.evicted"} & found.names
    assert found.names >= DISK | DISK_USE | PROCESS_IO | TIMES | FAULTS
    assert cached(weights) == 1.0
