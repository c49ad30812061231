"""Recorded machines unpack to what their text says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import machines

if TYPE_CHECKING:
    from pathlib import Path

TEXT = r"""
# a drawing = of the machine -> here
sys/bus/pci/devices/0000:01:00.0 -> ../../../devices/pci0000:00/0000:01:00.0
sys/devices/pci0000:00/0000:01:00.0/numa_node = -1
sys/devices/pci0000:00/0000:01:00.0/cpulist =
sys/class/drm/
  proc/self/mountinfo = 22 1 0:1 / /with\040space rw - ext4 /dev/a\\b = ->\n23 1 0:2 / /\xff rw - tmpfs x rw
"""


def test_files_links_and_folders_are_made(tmp_path: Path) -> None:
    tree = machines.unpack_text(TEXT, tmp_path)
    assert tree.real("sys/bus/pci/devices/0000:01:00.0") == "sys/devices/pci0000:00/0000:01:00.0"
    assert tree.number("sys/bus/pci/devices/0000:01:00.0/numa_node") == -1
    assert tree.bytes("sys/bus/pci/devices/0000:01:00.0/cpulist") == b"\n"
    assert tree.names("sys/class") == ["drm"]
    mounts = b"22 1 0:1 / /with\\040space rw - ext4 /dev/a\\b = ->\n23 1 0:2 / /\xff rw - tmpfs x rw\n"
    assert tree.bytes("proc/self/mountinfo") == mounts
    assert not tree.here


@pytest.mark.parametrize("line", ["/etc/passwd = x", "a/../../b = x", "words", "a ->"])
def test_a_line_that_is_no_kernel_file_is_an_error(line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1"):
        machines.unpack_text(line, tmp_path)


def test_every_recorded_machine_unpacks(tmp_path: Path) -> None:
    for name in machines.names():
        machines.unpack(name, tmp_path / name)
