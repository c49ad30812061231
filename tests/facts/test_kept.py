"""A kernel file that stays open, in programs that close every descriptor: here a child process, which has none that the tests need."""

from __future__ import annotations

import subprocess
import sys

READERS = """
import os, threading, time
from loadspan.facts import blocks, counters, memory, mounts, storage
from loadspan.facts.kept import Kept
from loadspan.facts.tree import HERE

status = os.stat("/proc/self/exe")
disk = blocks.BlockDevice(f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}")

def readings():
    process, thread, group = counters.of_process(), counters.of_thread(0), memory.read()
    return process.read, process.storage_read, thread.waiting, group.total, group.swapped, disk.read()
"""


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", READERS + program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_of_the_program_that_has_got_the_number_of_ours_is_not_read() -> None:
    run(
        """
kept = Kept("/proc/self/wchan")
assert kept.read()
os.closerange(3, 1000)
secret = os.memfd_create("secret")
os.write(secret, b"not for others")
os.dup2(secret, kept.descriptor)
number = kept.descriptor
assert (kept.read(), kept.lost, kept.alive) == (b"", True, False)
del kept
assert os.pread(number, 3, 0) == b"not"
"""
    )


def test_what_was_counted_is_unknown_once_and_known_again_after_all_descriptors_were_closed() -> None:
    run(
        """
before = readings()
os.closerange(3, 1000)
time.sleep(0.001)  # a thread that was not taken off its CPU has waited for none since, whatever became of the file that tells
numbers = [os.open("/proc/self/stat", os.O_RDONLY) for _ in range(40)]
assert [reading for reading in readings() if reading is not None] == []
after = readings()
assert [reading is None for reading in after] == [reading is None for reading in before], (before, after)
assert after[3] == before[3]
assert after[0] >= before[0]
for number in numbers:
    assert os.pread(number, 4, 0)
"""
    )


def test_loads_without_number_on_one_disk_keep_one_file_open_where_nothing_is_collected() -> None:
    run(
        """
import gc
gc.disable()
first = len(os.listdir("/proc/self/fd"))
kept = [blocks.BlockDevice(disk.number) for _ in range(100)]
for device in kept:
    device.read()
assert len(os.listdir("/proc/self/fd")) <= first + 1
"""
    )


def test_news_of_mounts_are_not_asked_of_a_file_of_the_program() -> None:
    run(
        """
watch = mounts.Watch()
assert (watch.changed(), watch.changed()) == (True, False)
os.closerange(3, 1000)
numbers = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)]
assert (watch.changed(), watch.changed()) == (True, False)
"""
    )
