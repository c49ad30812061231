"""A file that is larger than the memory there is for it, read twice in a control group: its eviction is seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadspan.facts import cgroups, storage
from loadspan.facts.tree import HERE

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SIZE, LIMIT = 192 * MIB, 64 * MIB

SCRIPT = """
import dataclasses, json, mmap, os, sys
from loadspan.facts import counters, memory, pagecache
path, group, how = sys.argv[1:]
memory.read()  # in the group that it began in
with open(group + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))

def load():
    with open(path, "rb", buffering=0) as opened:
        if how == "mmap":
            with mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                sum(mapped[offset] for offset in range(0, len(mapped), mmap.PAGESIZE))
        else:
            piece = bytearray(1 << 20)
            while opened.readinto(piece):
                pass

descriptor = os.open(path, os.O_RDONLY)
os.fsync(descriptor)
os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
said = []
for _ in range(2):
    cache, reading, io = pagecache.residency(path), memory.read(), counters.of_process()
    load()
    facts = memory.difference(reading, memory.read())
    read = counters.difference(io, counters.of_process()).storage_read
    after = pagecache.residency(path)
    left = pagecache.evicted(cache, after, read)
    said.append({"before": cache.fraction, "after": after.fraction, "method": cache.method, "pull": pagecache.pull(cache, after),
                 "read": read, "left": dataclasses.asdict(left), "memory": dataclasses.asdict(facts), "group": memory.read().group})
pid = os.fork()
if not pid:  # in a group of its own choice, and not to be confused with its parent
    with open(os.path.dirname(group) + "/cgroup.procs", "w") as procs:
        procs.write(str(os.getpid()))
    os._exit(0 if memory.read().limit is None or memory.read().limit > facts.limit else 1)
said.append(os.waitpid(pid, 0)[1])
print(json.dumps(said))
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group below our own with a limit, removed afterwards."""
    own = cgroups.of_process(HERE, HERE.bytes("proc/self/cgroup"))
    if own.version is None or os.geteuid() != 0:
        pytest.skip("there are no control groups of memory, or we are not root")
    # Neighbors of our own group, since a group of version 2 with processes in it has no limits below it.
    above = own.memory[0] if own.version == 1 or len(own.memory) == 1 else own.memory[1]
    folder = Path("/") / above / f"loadspan-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if own.version == 1 else "memory.max")).write_text(str(LIMIT))
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no control group with a limit can be made: {error}")
    yield folder
    for _ in range(50):
        with suppress(OSError):
            folder.rmdir()
            break
        time.sleep(0.1)
    assert not folder.exists()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of three times the limit, on a disk."""
    place = storage.of_file(str(tmp_path))
    if place is None or place.filesystem not in ("ext4", "xfs"):
        pytest.skip("the temporary folder is not on a disk")
    path = tmp_path / "large"
    piece = os.urandom(MIB)
    with path.open("wb") as out:
        for _ in range(SIZE // MIB):
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    return path


@pytest.mark.parametrize("how", ["read", "mmap"])
def test_a_file_larger_than_the_limit_is_evicted_while_it_is_read(how: str, group: Path, large: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(large), str(group), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, forked = json.loads(done.stdout)
    check_limit(first, group)
    assert first["before"] < 0.02
    assert SIZE * 0.98 < first["read"] < SIZE * 1.2
    assert first["memory"]["refaulted"] < SIZE * 0.2
    # The second finds the end of the file and not its beginning, and reads all of it again.
    check_limit(second, group)
    assert 0.02 < second["before"] < 0.5
    assert second["read"] > SIZE * 0.95
    # At least: under pressure the kernel also forgets that pages were there, tens of MiB at once.
    assert SIZE * 0.25 < second["memory"]["refaulted"] < SIZE * 1.3
    assert second["left"]["share"] > second["before"] / 2
    if first["method"] == "cachestat":
        assert SIZE * 0.25 < first["pull"] <= SIZE
        assert 0.15 < first["left"]["reclaimed"] <= 1.02 - first["after"]
    assert forked == 0


def check_limit(said: dict[str, Any], group: Path) -> None:
    assert "/" + said["group"] == str(group)
    assert said["memory"]["limit"] == LIMIT
    assert said["memory"]["hits"] > 0
    assert said["memory"]["killed"] == 0
    assert said["memory"]["refaulted_scope"] == "cgroup"
    assert said["after"] < 0.5
