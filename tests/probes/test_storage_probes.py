"""Storage is measured as it is, within bounds, and left as it was: files, page cache, folder."""

from __future__ import annotations

import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadspan.facts import resident
from loadspan.facts import storage as storages
from loadspan.facts.rates import Rate, Skipped
from loadspan.probes import Bounds, silent
from loadspan.probes import storage as probe
from loadspan.probes.reading import Block, read

MIB = 1 << 20
SIZE = 96 * MIB
SMALL = Bounds(seconds=2.0, size=8 * MIB)


def make(path: Path, size: int = SIZE) -> Path:
    """A file of random bytes, on storage and not in the page cache."""
    piece = os.urandom(8 * MIB)
    with path.open("wb") as file:
        for _ in range(-(-size // len(piece))):
            file.write(piece[: size - file.tell()])
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    facts = storages.of_file(str(tmp_path))
    if facts is None or not facts.counted or facts.kind == "overlay":
        pytest.skip(f"the folder for temporary files is on {facts.filesystem if facts else 'nothing known'}, where storage is not counted")
    return make(tmp_path / "model.safetensors")


def cached(path: Path) -> list[int]:
    """Cached pages of each 8 MiB."""
    with path.open("rb") as file:
        size = path.stat().st_size
        try:
            windows = resident.cachestat(file.fileno(), size, [(offset, 8 * MIB) for offset in range(0, size, 8 * MIB)])
        except OSError as error:
            pytest.skip(f"this kernel does not tell what is cached: {error}")
        return [window.cached for window in windows]


def rates(path: Path, bounds: Bounds = SMALL, **options: object) -> list[Rate]:
    outcomes = list(probe.plan(str(path), bounds, **options).run(silent))  # type: ignore[arg-type] # named at each call
    skipped = [outcome for outcome in outcomes if isinstance(outcome, Skipped)]
    if any("O_DIRECT" in outcome.reason for outcome in skipped):
        pytest.skip(f"this filesystem: {skipped[0].reason}")
    assert skipped == []
    return [outcome for outcome in outcomes if isinstance(outcome, Rate)]


def test_every_probe_reads_its_bytes_from_storage_and_no_more_than_allowed(model: Path) -> None:
    found = rates(model)
    expected = [(name, depth) for name in (probe.DIRECT,) for depth in (1, 4, 16)] + [(probe.FAULTS, 1)]
    expected += [(probe.BUFFERED, depth) for depth in (1, 4, 16)] + [(probe.MAPPED, 1)]
    assert [(rate.probe, rate.depth) for rate in found] == expected
    assert {(rate.verified, rate.source) for rate in found} == {(True, "storage")}
    assert {rate.size for rate in found} == {8 * MIB}
    assert all(rate.rate == rate.size / rate.seconds for rate in found)
    assert [rate.block for rate in found if rate.probe == probe.FAULTS] == [mmap.PAGESIZE]


def status(path: Path) -> tuple[object, ...]:
    """All that reading or writing the file, or its folder, would change."""
    return path.stat(), sorted(os.listdir(path.parent)), path.parent.stat().st_mtime_ns  # noqa: PTH208 - names


def test_measuring_leaves_file_folder_and_page_cache_as_they_were(model: Path) -> None:
    with model.open("rb") as file:
        file.seek(SIZE // 2)
        while file.read(8 * MIB):
            pass
    before, state = cached(model), status(model)
    found = rates(model)
    assert {rate.source for rate in found} == {"storage"}
    assert status(model) == state
    after = cached(model)
    assert [bool(count) for count in before] == [False] * 6 + [True] * 6
    assert after[:6] == [0] * 6
    # Some kernels take pages away all the time, without need.
    assert sum(after) > 0.7 * sum(before) > 0.7 * 0.7 * SIZE / 2 / mmap.PAGESIZE


def test_a_file_that_is_all_in_the_page_cache_stays_there_and_is_measured_past_it(model: Path) -> None:
    model.read_bytes()
    before = cached(model)
    found = rates(model, probes=(probe.DIRECT, probe.BUFFERED), depths=(1,))
    assert [(rate.probe, rate.verified) for rate in found] == [(probe.DIRECT, True), (probe.BUFFERED, False)]
    # As above: what was taken away comes from storage again.
    assert (found[0].source, found[1].source.removeprefix("storage and ")) == ("storage", "page cache")
    assert found[1].note is not None
    assert re.fullmatch("(nothing|only [0-9]{1,2} %) of it came from storage", found[1].note)
    assert sum(cached(model)) > 0.7 * sum(before)


def test_the_little_of_a_file_that_is_not_in_the_page_cache_gives_no_rate_of_storage(model: Path) -> None:
    with model.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        while file.tell() < SIZE - 8 * MIB:
            file.read(4 * MIB)
    assert cached(model)[-1] == 0
    found = rates(model, Bounds(seconds=2.0, size=32 * MIB), probes=(probe.FAULTS, probe.BUFFERED, probe.MAPPED), depths=(1, 16))
    assert {(rate.verified, rate.source, rate.size) for rate in found} == {(False, "page cache", 32 * MIB)}
    assert cached(model)[-1] == 0


def test_where_there_are_too_few_bytes_for_all_probes_a_rate_says_that_another_had_read_them(model: Path) -> None:
    found = rates(model, Bounds(seconds=5.0, size=SIZE), probes=(probe.DIRECT,), depths=(1, 4))
    assert [rate.size for rate in found] == [SIZE, SIZE]
    assert [rate.note is not None and "another probe" in rate.note for rate in found] == [False, True]


def test_seconds_are_bounded(model: Path) -> None:
    began = time.perf_counter()
    (rate,) = rates(model, Bounds(seconds=0.01, size=SIZE), probes=(probe.FAULTS,))
    assert rate.size < SIZE
    assert rate.seconds < 1.0
    assert time.perf_counter() - began < 5.0


def test_an_odd_bound_is_kept(model: Path) -> None:
    for rate in rates(model, Bounds(seconds=2.0, size=3 * MIB + 4097), probes=(probe.DIRECT, probe.BUFFERED), depths=(4,)):
        assert rate.size == 3 * MIB + 4096


def test_progress_grows_to_what_was_read(model: Path) -> None:
    told: list[tuple[str, int, int]] = []
    plan = probe.plan(str(model), SMALL, probes=(probe.FAULTS,))
    (outcome,) = plan.run(lambda *what: told.append(what))
    assert isinstance(outcome, Rate)
    assert told == sorted(told)
    assert {(what, most) for what, _, most in told} == {(probe.FAULTS, 8 * MIB)}
    assert told[-1][1] == outcome.size


def test_the_plan_says_what_will_be_read(model: Path) -> None:
    plan = probe.plan(str(model), SMALL)
    assert plan.lines == (
        f"reads {model}: read direct, fault mapped pages, read buffered, read mapped; 8 measurements of at most 8.39 MB and 2.00 s each",
    )
    assert {step.size for step in plan.steps} == {8 * MIB}


def test_of_a_folder_the_largest_files_are_read_links_followed(model: Path) -> None:
    folder = model.parent / "snapshot"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(model)
    (folder / "config.json").write_text("{}")
    (folder / "lost.safetensors").symlink_to("nowhere")
    (folder / "again").symlink_to(folder)
    assert str(model) in probe.plan(str(folder), SMALL).lines[0]
    assert {rate.source for rate in rates(folder, probes=(probe.DIRECT,), depths=(1,))} == {"storage"}


def test_small_files_holes_and_nothing_are_not_measured(tmp_path: Path) -> None:
    small, hole = make(tmp_path / "small.bin", 63 * MIB), tmp_path / "hole.bin"
    with hole.open("wb") as file:
        file.truncate(SIZE)
    for path in (small, tmp_path / "missing", Path("/dev/null"), Path("/proc/self/maps")):
        (outcome,) = probe.plan(str(path)).run(silent)
        assert isinstance(outcome, Skipped)
        assert outcome.reason.startswith("too small to measure: needs a file of 67.1 MB at least")
    outcomes = list(probe.plan(str(hole)).run(silent))
    assert len(outcomes) == 8
    assert all(isinstance(outcome, Skipped) and ("holes" in outcome.reason or "O_DIRECT" in outcome.reason) for outcome in outcomes)


def test_a_file_in_memory_is_said_to_be_in_memory() -> None:
    facts = storages.of_file("/dev/shm")  # noqa: S108 - the tmpfs that every Linux has
    if facts is None or facts.filesystem != "tmpfs":
        pytest.skip("no tmpfs")
    path = make(Path("/dev/shm") / f"loadspan-{os.getpid()}.bin", 64 * MIB)  # noqa: S108 - as above
    try:
        outcomes = list(probe.plan(str(path), SMALL).run(silent))
    finally:
        path.unlink()
    direct, others = outcomes[:3], outcomes[3:]
    assert direct == [Skipped(probe.DIRECT, "tmpfs is memory", depth) for depth in (1, 4, 16)]
    assert all(isinstance(outcome, Rate) for outcome in others)
    assert {(o.verified, o.source, o.note) for o in others if isinstance(o, Rate)} == {(False, "memory", "tmpfs is memory")}


def test_a_file_cut_short_while_it_is_mapped_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    path = make(tmp_path / "model.bin", 4 * MIB)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as mapping:
        file.truncate(0)
        with memoryview(mapping) as view, pytest.raises(OSError, match="Bad address"):
            read([Block(file.fileno(), 0, MIB, view)], 1, 1.0, lambda _: None)


def test_a_scratch_file_is_measured_and_leaves_nothing(tmp_path: Path) -> None:
    seen: set[str] = set()
    plan = probe.plan("unused", SMALL, scratch=str(tmp_path), scratch_size=SIZE, depths=(1,))
    assert plan.lines[0] == f"writes 101 MB of random bytes to a file in {tmp_path} that is removed at once"
    outcomes = list(plan.run(lambda *_: seen.update(os.listdir(tmp_path))))  # noqa: PTH208 - names
    assert [type(outcome) for outcome in outcomes] == [Rate] * 4
    assert seen == set(os.listdir(tmp_path)) == set()  # noqa: PTH208 - names


def test_a_scratch_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    outcomes = list(probe.plan("unused", SMALL, scratch="/proc", depths=(1,)).run(silent))
    assert all(isinstance(outcome, Skipped) for outcome in outcomes)
    assert not list(tmp_path.iterdir())


SCRATCHING = """
import sys
from loadspan.probes import Bounds, silent, storage
plan = storage.plan("unused", Bounds(), scratch=sys.argv[1], scratch_size=4 << 30)
print("begun", flush=True)
list(plan.run(lambda *_: print("running", flush=True)))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_however_it_ends_no_scratch_file_stays(tmp_path: Path, number: signal.Signals) -> None:
    free = os.statvfs(tmp_path).f_bavail
    with subprocess.Popen([sys.executable, "-c", SCRATCHING, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert [child.stdout.readline() for _ in range(3)] == [b"begun\n", b"running\n", b"running\n"]
        child.send_signal(number)
        assert child.wait(20) != 0
    assert list(tmp_path.iterdir()) == []
    assert os.statvfs(tmp_path).f_bavail > free - (1 << 30) // 4096


def test_ctrl_c_while_reading_ends_at_once_and_gives_the_page_cache_back(model: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        list(probe.plan(str(model), Bounds(10.0, SIZE), probes=(probe.FAULTS,)).run(interrupt))
    assert time.perf_counter() - began < 3.0
    assert sum(cached(model)) == 0
