"""Storage that is slow on purpose: a throttled disk, a throttled loop device, a real FUSE filesystem. The rate found is the rate set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_storage_probes import make

from loadspan.facts import storage as storages

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
RATE = 100 * MIB
SECONDS = 1.5  # the throttle lets through a tenth of a second at once, and what is read ahead is not counted at the end
BLKIO = Path("/sys/fs/cgroup/blkio")
LIMIT = "blkio.throttle.read_bps_device"
SFTP = Path("/usr/lib/openssh/sftp-server")

MEASURE = """
import dataclasses, json, os, sys
from loadspan.facts.rates import Rate
from loadspan.probes import Bounds, reading, silent, storage
path, group, seconds, size, depths, probes, grace = json.loads(sys.argv[1])
if group:
    open(group + "/cgroup.procs", "w").write(str(os.getpid()))
reading._GRACE = grace
if sys.argv[2:]:  # when all is imported: where Python is, another user may not look
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
plan = storage.plan(path, Bounds(seconds, size), probes=probes, depths=depths)
print(json.dumps([{**dataclasses.asdict(o), "rate": o.rate if isinstance(o, Rate) else None} for o in plan.run(silent)]), flush=True)
os._exit(0)  # not waiting for threads that will never get their answer
"""


def measured(
    path: Path, group: Path | None, seconds: float, size: int, depths: list[int], probes: list[str], grace: float = 5.0
) -> list[dict[str, Any]]:
    argument = json.dumps([str(path), str(group) if group else "", seconds, size, depths, probes, grace])
    with subprocess.Popen([sys.executable, "-c", MEASURE, argument], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        found: list[dict[str, Any]] = json.loads(child.stdout.readline() or "[]")
        if group:  # what is still waiting may go on now
            (group / LIMIT).write_text(f"{limit_of(group)} 0")
    return found


def limit_of(group: Path) -> str:
    return (group / LIMIT).read_text().split()[0]


@contextmanager
def throttled(number: str, rate: int) -> Iterator[Path]:
    """A control group whose processes read device *number* with *rate* bytes per second."""
    group = BLKIO / f"loadspan-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / LIMIT).write_text(f"{number} {rate}")
    except OSError as error:
        pytest.skip(f"needs control groups of version 1 that may be written: {error}")
    try:
        yield group
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def on_disk(folder: Path) -> str:
    facts = storages.of_file(str(folder))
    if facts is None or not facts.counted or facts.number is None or facts.number.startswith("0:"):
        pytest.skip("the folder for temporary files is not on a block device")
    return facts.number


def agree(found: list[dict[str, Any]], *, verified: bool | None = True) -> None:
    assert [outcome["rate"] for outcome in found] == [pytest.approx(RATE, rel=0.15)] * len(found), found
    assert {outcome["verified"] for outcome in found} == {verified}


@pytest.mark.parametrize(("depth", "probes"), [(1, ["read direct", "read buffered", "read mapped"]), (4, ["read direct", "read buffered"])])
def test_on_a_throttled_disk_every_way_of_reading_finds_the_throttle(tmp_path: Path, depth: int, probes: list[str]) -> None:
    number = on_disk(tmp_path)
    model = make(tmp_path / "model.bin", 256 * MIB)
    with throttled(number, RATE) as group:
        found = measured(model, group, SECONDS, 256 * MIB, [depth], probes)
    assert [outcome["probe"] for outcome in found] == probes
    assert all(outcome["seconds"] < SECONDS + 0.5 for outcome in found)
    agree(found)


def test_storage_that_does_not_answer_ends_the_probe_and_not_the_program(tmp_path: Path) -> None:
    number = on_disk(tmp_path)
    model = make(tmp_path / "model.bin", 64 * MIB)
    began = time.monotonic()
    with throttled(number, 4096) as group:
        found = measured(model, group, 0.3, 64 * MIB, [1, 4], ["read direct"], grace=0.3)
    assert [outcome.get("reason") for outcome in found] == [
        "the storage did not answer within 300 ms",
        "the storage did not answer the probe before",
    ]
    assert time.monotonic() - began < 10.0


@contextmanager
def looped(folder: Path) -> Iterator[Path]:
    """A mounted ext4 of its own, in a file."""
    image, point = folder / "image", folder / "mounted"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)  # noqa: S607 - where it is differs
        subprocess.run(["mount", "-o", "loop", image, point], check=True, capture_output=True)  # noqa: S607 - as above
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs loop devices that may be mounted: {error}")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)  # noqa: S607 - as above


def test_on_a_throttled_loop_device_buffered_and_direct_reads_agree_and_the_loop_is_said(tmp_path: Path) -> None:
    with looped(tmp_path) as point:
        model = make(point / "model.bin", 256 * MIB)
        with throttled(on_disk(point), RATE) as group:
            found = measured(model, group, SECONDS, 256 * MIB, [1], ["read direct", "read buffered"])
    agree(found, verified=None)
    assert all("on a loop device" in outcome["note"] for outcome in found)


@contextmanager
def fuse(folder: Path) -> Iterator[Path]:
    """*folder* through sshfs: a real FUSE filesystem, its server a child instead of another machine."""
    point, server = folder / "fuse", folder / "server"
    point.mkdir()
    server.write_text(f"#!/bin/sh\nexec {SFTP}\n")
    server.chmod(0o700)
    try:
        command = ["sshfs", "-o", f"ssh_command={server}", f"nowhere:{folder}", str(point)]
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs sshfs and sftp-server: {error}")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)  # noqa: S607 - as above


def test_on_fuse_nothing_is_said_to_be_verified(tmp_path: Path) -> None:
    make(tmp_path / "model.bin", 64 * MIB)
    with fuse(tmp_path) as point:
        found = measured(point / "model.bin", None, 1.0, 8 * MIB, [1], ["read buffered", "read mapped"])
    note = "not verified: the kernel does not count what fuse.sshfs reads; its pages were not in the page cache of this machine"
    assert [(outcome["source"], outcome["verified"], outcome["note"]) for outcome in found] == [("unknown", None, note)] * 2
    assert all(outcome["size"] == 8 * MIB or outcome["seconds"] >= 1.0 for outcome in found)


def test_to_another_user_the_kernel_does_not_tell_what_is_cached_but_still_what_storage_gave(tmp_path: Path) -> None:
    on_disk(tmp_path)
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        model = make(Path(name) / "model.bin", 64 * MIB)
        argument = json.dumps([str(model), "", 1.0, 8 * MIB, [1], ["read direct", "read buffered"], 5.0])
        done = subprocess.run([sys.executable, "-c", MEASURE, argument, "nobody"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert [(outcome["probe"], outcome["verified"], outcome["size"]) for outcome in found] == [
        ("read direct", True, 8 * MIB),
        ("read buffered", True, 8 * MIB),
    ]
