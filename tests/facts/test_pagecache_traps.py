"""Where the system calls lie or are refused, the page cache is told right or not at all; and nobody notices that it was looked at."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadspan.facts import pagecache, resident, storage

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
NOBODY = 65534
HALF = pytest.approx(0.5, abs=0.1)  # some machines take pages back at any time
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, or mounts")

PRELUDE = """
import ctypes, json, os, platform, resource, struct, sys
from loadspan.facts import pagecache, resident, storage
libc = ctypes.CDLL(None, use_errno=True)
path = sys.argv[1]

def become_nobody():
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
    assert libc.prctl(4, 1, 0, 0, 0) == 0  # dumpable, as a process that began as this user is

def refuse(number):
    # The filter of a sandbox: EPERM for this system call, all others allowed.
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    if libc.prctl(22, 2, program, 0, 0):
        print(json.dumps("no filter")); raise SystemExit

def chill():
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor); os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED); os.close(descriptor)

def read(size):
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(descriptor, size, 0); os.close(descriptor)

def look():
    facts = pagecache.residency(path)
    return None if facts is None else [facts.method, facts.fraction]
"""


def child(script: str, path: Path, *before: str) -> Any:
    """What *script* prints as JSON, after the prelude, of a process of its own."""
    command = [*before, sys.executable, "-W", "error", "-c", PRELUDE + script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    if answer == "no filter":
        pytest.skip("system calls cannot be filtered here")
    return answer


@pytest.fixture
def cold() -> Iterator[Path]:
    """A cold file of 4 MiB in a folder that everybody may enter."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))  # a disk, where /tmp may be memory
    folder.chmod(0o755)
    path = folder / "file"
    path.write_bytes(os.urandom(4 * MIB))
    path.chmod(0o644)
    place = storage.of_file(str(path))
    if place is None or place.filesystem not in ("ext4", "xfs", "btrfs"):
        shutil.rmtree(folder)
        pytest.skip("no disk of its own below /var/tmp")
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    yield path
    shutil.rmtree(folder)


def test_a_sandbox_that_refuses_cachestat_leaves_the_owner_mincore(cold: Path) -> None:
    script = "refuse(451)\nfirst = look(); read(2 << 20); print(json.dumps([first, look()]))"
    assert child(script, cold) == [["mincore", 0.0], ["mincore", HALF]]


@ROOT
def test_another_users_file_is_never_said_to_be_there(cold: Path) -> None:
    script = "become_nobody(); print(json.dumps(look()))"
    # Kernels before 6.14 let everybody ask.
    assert child(script, cold) in (None, ["cachestat", 0.0])
    assert child("refuse(451)\n" + script, cold) is None
    refused = "become_nobody(); descriptor = os.open(path, os.O_RDONLY)\nprint(json.dumps(pagecache.of_descriptor(descriptor) is None))"
    assert child("refuse(451)\n" + refused, cold) is True


@ROOT
def test_who_may_write_to_another_users_file_may_ask(cold: Path) -> None:
    cold.chmod(0o666)
    assert child("refuse(451)\nbecome_nobody(); print(json.dumps(look()))", cold) == ["mincore", 0.0]


@ROOT
def test_nobody_owns_nothing_since_unknown_owners_have_its_number(cold: Path) -> None:
    os.chown(cold, NOBODY, NOBODY)
    cold.chmod(0o444)
    assert child("refuse(451)\nbecome_nobody(); print(json.dumps(look()))", cold) is None
    cold.chmod(0o644)
    assert child("refuse(451)\nbecome_nobody(); print(json.dumps(look()))", cold) == ["mincore", 0.0]


@ROOT
def test_on_an_overlay_cachestat_is_not_asked(cold: Path) -> None:
    for name in ("upper", "work", "merged"):
        (cold.parent / name).mkdir()
    (cold.parent / "lower").mkdir()
    below = cold.rename(cold.parent / "lower" / "file")
    script = """
folder = os.path.dirname(os.path.dirname(path))
options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work".encode()
below, path = path, folder + "/merged/file"
if libc.mount(b"overlay", (folder + "/merged").encode(), b"overlay", 0, options):
    print(json.dumps("no filter")); raise SystemExit
first = look(); read(2 << 20)
descriptor = os.open(path, os.O_RDONLY)
try:
    seen = resident.cachestat(descriptor, 4 << 20, [(0, 4 << 20)])[0].cached
except OSError:
    seen = 0
print(json.dumps([storage.of_file(path).filesystem, first, look(), seen]))
"""
    assert child(script, below, "unshare", "-m") == ["overlay", ["mincore", 0.0], ["mincore", HALF], 0]  # the last: it finds nothing


def test_a_mincore_that_says_all_there_is_not_believed(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stub(_: int, size: int, __: object) -> list[resident.Window]:
        pages = -(-size // resident.PAGE)
        return [resident.Window(pages, pages, None, None)]

    monkeypatch.setattr(resident, "CACHESTAT", 9999)
    monkeypatch.setattr(resident, "mincore", stub)
    monkeypatch.setattr(pagecache, "mincore", stub)
    resident.mincore_counts.cache_clear()
    try:
        assert pagecache.residency(str(cold)) is None
    finally:
        resident.mincore_counts.cache_clear()


def test_where_mincore_cannot_be_tried_out_it_is_not_believed(cold: Path) -> None:
    numbers = {"x86_64": 319, "aarch64": 279}
    if os.uname().machine not in numbers:
        pytest.skip("the number of memfd_create is not known here")
    script = f"refuse({numbers[os.uname().machine]})\nresident.CACHESTAT = 9999; print(json.dumps(look()))"
    assert child(script, cold) is None


def test_a_program_that_locks_all_its_memory_does_not_read_the_file_in(cold: Path) -> None:
    script = """
if libc.mlockall(2):  # whatever is mapped from now on
    print(json.dumps("no filter")); raise SystemExit
resident.CACHESTAT = 9999
print(json.dumps([look(), look()]))
"""
    assert child(script, cold) == [["mincore", 0.0], ["mincore", 0.0]]


def test_without_address_space_for_the_file_nothing_is_said(cold: Path) -> None:
    script = """
resident.CACHESTAT = 9999
assert resident.mincore_counts()
os.truncate(path, 1 << 40)
resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))
print(json.dumps(look()))
"""
    assert child(script, cold) is None


def test_a_python_without_ctypes_says_nothing(cold: Path) -> None:
    script = """
import subprocess
without = "import sys; sys.modules['ctypes'] = None; from loadspan.facts import memory, pagecache, storage\\nmemory.read()\\n"
without += f"print(pagecache.residency({path!r}, storage.StorageFacts('ext4', '/')))"
print(json.dumps(subprocess.run([sys.executable, "-W", "error", "-c", without], capture_output=True, text=True).stdout))
"""
    assert child(script, cold) == "None\n"


def test_a_sparse_file_of_a_tebibyte_is_looked_at_like_any_other(cold: Path) -> None:
    os.truncate(cold, 1 << 40)
    facts = pagecache.residency(str(cold))
    assert facts is not None
    assert facts.sampled
    assert (facts.fraction, facts.size) == (0.0, 1 << 40)


def test_a_record_lock_of_the_program_stays(cold: Path) -> None:
    with cold.open("r+b") as opened:
        fcntl.lockf(opened, fcntl.LOCK_EX)
        held = len(pagecache._held)  # noqa: SLF001 - what is kept open for it
        try:
            assert pagecache.residency(str(cold)) is not None
            assert len(pagecache._held) == held + 1  # noqa: SLF001 - as above
            with pytest.raises(AssertionError):  # the lock is in the way of another process
                child("import fcntl; fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)", cold)
        finally:
            os.close(pagecache._held.pop())  # noqa: SLF001 - as above
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a folder of the kernel
    assert pagecache.residency(str(cold)) is not None
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


def test_a_file_on_a_far_filesystem_is_not_even_opened(cold: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if watch < 0 or libc.inotify_add_watch(watch, os.fsencode(cold), 0x20) < 0:  # IN_OPEN
        pytest.skip("no inotify")
    with os.fdopen(watch, "rb", buffering=0) as events:
        for name in ("nfs4", "cifs", "fuse.s3fs", "9p", "virtiofs", "tmpfs", "overlayfs-of-another-kind"):
            assert pagecache.residency(str(cold), storage.StorageFacts(name, "/")) is None
        assert events.read(4096) is None
        assert pagecache.residency(str(cold)) is not None
        assert struct.unpack_from("=iI", events.read(4096) or b"", 0)[1] == 0x20
