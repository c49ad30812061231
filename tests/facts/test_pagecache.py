"""What is said to be cached of a real file is what is cached of it, and looking at it brings nothing in."""

from __future__ import annotations

import mmap
import os
import tempfile
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from loadspan.facts import pagecache, storage
from loadspan.facts.pagecache import CacheFacts
from loadspan.facts.resident import PAGE, Window, cachestat, mincore_counts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
LOST = 0.1  # of what was just read; some machines take pages back at any time
DATA = os.urandom(MIB)


def chill(path: Path) -> None:
    """Take the file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def read(path: Path, size: int, offset: int = 0) -> None:
    """Read a part of the file, and nothing ahead of it."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    while size > 0 and (piece := os.pread(descriptor, min(size, MIB), offset)):
        size, offset = size - len(piece), offset + len(piece)
    os.close(descriptor)


def has_cachestat() -> bool:
    """Whether the kernel has it, and lets us call it."""
    with tempfile.TemporaryFile() as opened:
        try:
            return bool(cachestat(opened.fileno(), 1, [(0, 1)]))
        except OSError:
            return False


def looked(path: Path) -> CacheFacts:
    facts = pagecache.residency(path)
    assert facts is not None
    return facts


@pytest.fixture(params=["cachestat", "mincore"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two system calls; the first is taken away by a number that no kernel knows."""
    if request.param == "mincore":
        monkeypatch.setattr("loadspan.facts.resident.CACHESTAT", 9999)
    elif not has_cachestat():
        pytest.skip("a kernel without cachestat")
    return str(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[int], Path]:
    """A file of so many bytes, on a disk and cold."""
    facts = storage.of_file(str(tmp_path))
    if facts is None or facts.filesystem not in ("ext4", "xfs", "btrfs"):
        pytest.skip("the temporary folder is not on a disk of its own")

    def make(size: int) -> Path:
        path = tmp_path / f"file-{size}"
        with path.open("wb") as out:
            while size > 0:
                out.write(DATA[:size])
                size -= MIB
        chill(path)
        return path

    return make


@pytest.mark.parametrize("size", [1, PAGE, 10 * PAGE + 1, 3 * MIB, 65 * MIB])
def test_a_cold_file_is_not_there_and_a_read_one_is(size: int, method: str, file: Callable[[int], Path]) -> None:
    path = file(size)
    cold = looked(path)
    assert (cold.fraction, cold.method, cold.size) == (0.0, method, size)
    read(path, size)
    warm = looked(path)
    assert warm.fraction == pytest.approx(1.0, abs=LOST)
    assert warm.at > cold.at
    assert pagecache.pull(cold, warm) == pytest.approx(size, rel=LOST)
    assert pagecache.pull(warm, warm) == 0


@pytest.mark.parametrize("size", [4 * MIB, 65 * MIB])
def test_of_a_half_read_file_half_is_there(size: int, method: str, file: Callable[[int], Path]) -> None:
    path = file(size)
    before = looked(path)
    read(path, size // 2)
    after = looked(path)
    assert after.method == method
    assert after.fraction == pytest.approx(0.5, abs=LOST)
    assert pagecache.pull(before, after) == pytest.approx(size / 2, rel=LOST)


def test_scattered_pieces_of_a_sampled_file_are_estimated(method: str, file: Callable[[int], Path]) -> None:
    path = file(192 * MIB)
    for piece in range(0, 192, 3):
        read(path, MIB, piece * MIB)
    facts = looked(path)
    assert facts.sampled
    assert facts.method == method
    assert facts.fraction == pytest.approx(1 / 3, abs=0.1)
    assert facts.fraction == round(facts.fraction, 2)


def test_looking_at_a_cold_file_twice_leaves_it_cold(method: str, file: Callable[[int], Path]) -> None:
    path = file(65 * MIB)
    assert [looked(path).fraction for _ in range(3)] == [0.0, 0.0, 0.0]
    assert looked(path).method == method


def test_a_mapped_file_is_there_as_far_as_it_was_touched(method: str, file: Callable[[int], Path]) -> None:
    path = file(2 * MIB)
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_RANDOM)
        cold = pagecache.of_descriptor(opened.fileno())
        assert sum(mapped[offset] for offset in range(0, MIB, PAGE)) > 0
        half = pagecache.of_descriptor(opened.fileno())
    assert cold is not None
    assert half is not None
    assert (cold.fraction, half.fraction) == (0.0, pytest.approx(0.5, abs=LOST))
    assert half.method == method


def test_what_was_dropped_on_request_left_but_was_not_reclaimed(method: str, file: Callable[[int], Path]) -> None:
    path = file(2 * MIB)
    read(path, 2 * MIB)
    before = looked(path)
    chill(path)
    left = pagecache.evicted(before, looked(path))
    assert left is not None
    assert left.share == pytest.approx(1.0, abs=LOST)
    assert left.reclaimed == (pytest.approx(0.0, abs=LOST) if method == "cachestat" else None)


def test_a_descriptor_is_left_open_where_it_was(file: Callable[[int], Path]) -> None:
    path = file(100)
    with path.open("rb") as opened:
        opened.seek(7)
        facts = pagecache.of_descriptor(opened.fileno())
        assert facts is not None
        assert opened.tell() == 7
    assert pagecache.of_descriptor(-1) is None
    assert pagecache.of_descriptor(1 << 40) is None


def test_a_file_that_grew_meanwhile_cannot_be_compared(file: Callable[[int], Path]) -> None:
    path = file(100)
    before = looked(path)
    with path.open("ab") as out:
        out.write(bytes(MIB))
    after = looked(path)
    assert pagecache.pull(before, after) is None
    assert pagecache.evicted(before, after) is None


@pytest.mark.parametrize("size", [1, PAGE, (1 << 26) + 1, 1 << 27, (140 << 30) + 12_345, (1 << 60) - 1])
def test_windows_lie_within_the_file_apart_from_each_other_and_on_pages(size: int) -> None:
    found = pagecache.spans(size, 1 << 26, 1 << 18)
    assert len(found) in (1, 64)
    assert all(offset % PAGE == 0 for offset, _ in found)
    assert all(offset + length <= size for offset, length in found)
    assert all(one[0] + one[1] <= other[0] for one, other in pairwise(found))


def test_a_header_that_somebody_has_read_is_in_no_window_of_a_big_file() -> None:
    for size in (1 << 27, 16 << 30, 1 << 40):
        assert pagecache.spans(size, 1 << 26, 1 << 18)[0][0] > 1 << 18


def facts_of(*windows: Window, size: int = 100 * PAGE, fraction: float = 0.0) -> CacheFacts:
    return CacheFacts(fraction, "cachestat", sampled=False, size=size, at=0, windows=windows)


def test_pages_that_came_and_went_count_as_pulled_and_as_left() -> None:
    cold, passed = facts_of(Window(100, 0, 0, 0)), facts_of(Window(100, 38, 62, 0))
    assert pagecache.pull(cold, passed) == 100 * PAGE
    assert pagecache.evicted(cold, passed) == pagecache.Eviction(0.62, 0.62)


def test_pages_that_left_are_not_hidden_by_others_that_came_elsewhere() -> None:
    before, after = facts_of(Window(50, 50, 0, 0), Window(50, 0, 0, 0)), facts_of(Window(50, 0, 50, 0), Window(50, 50, 0, 0))
    assert pagecache.pull(before, after) == 50 * PAGE
    assert pagecache.evicted(before, after) == pagecache.Eviction(0.5, 0.5)


def test_reading_more_than_was_missing_says_that_pages_left_before_they_were_reached() -> None:
    size = 512 * MIB
    same = facts_of(Window(100, 38, 62, 0), size=size, fraction=0.38)
    assert pagecache.evicted(same, same) == pagecache.Eviction(0.0, 0.0)
    assert pagecache.evicted(same, same, storage_read=size) == pagecache.Eviction(0.38, 0.0)
    assert pagecache.evicted(same, same, storage_read=size * 63 // 100) == pagecache.Eviction(0.0, 0.0)


@pytest.mark.parametrize("name", ["tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "zfs", "virtiofs", "nfs4", "fuse.sshfs", "unheard-of"])
def test_on_filesystems_without_a_page_cache_or_with_a_far_one_nothing_is_said_of_a_path(name: str, file: Callable[[int], Path]) -> None:
    assert pagecache.residency(file(100), storage.StorageFacts(name, "/")) is None


@pytest.mark.parametrize(("name", "known"), [("fuse.sshfs", True), ("nfs4", True), ("virtiofs", False), ("zfs", False), ("tmpfs", False)])
def test_a_reader_with_a_descriptor_is_told_of_far_files(name: str, known: bool, file: Callable[[int], Path]) -> None:  # noqa: FBT001 - a parameter
    if known and not has_cachestat():
        pytest.skip("a kernel without cachestat")
    with file(100).open("rb") as opened:
        assert (pagecache.of_descriptor(opened.fileno(), storage.StorageFacts(name, "/")) is not None) == known


def test_far_files_are_never_mapped(file: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadspan.facts.resident.CACHESTAT", 9999)
    with file(100).open("rb") as opened:
        assert pagecache.of_descriptor(opened.fileno(), storage.StorageFacts("fuse", "/")) is None
        assert pagecache.of_descriptor(opened.fileno(), storage.StorageFacts("ext4", "/")) is not None


def test_what_is_no_file_with_bytes_has_no_residency(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for name in ("empty", "pipe", ".", "missing", "nul\0byte"):
        assert pagecache.residency(str(tmp_path / name)) is None
    assert pagecache.residency("/dev/null") is None
    assert pagecache.residency("/proc/self/status") is None


def test_shared_memory_has_no_residency() -> None:
    try:
        descriptor = os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE)  # noqa: S108 - it is the subject
    except OSError:
        pytest.skip("no shared memory")
    os.write(descriptor, bytes(MIB))
    place = storage.of_file("/dev/shm")  # noqa: S108 - as above
    assert place is not None
    if place.filesystem == "tmpfs":
        assert pagecache.of_descriptor(descriptor, place) is None
    os.close(descriptor)


def test_mincore_tells_the_truth_on_linux() -> None:
    assert mincore_counts()
