"""What a machine has, and what of it a process may use, is read from its kernel files; what they do not say is absent."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import machines
from loadspan.facts import machine as facts
from loadspan.facts.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadspan.facts.tree import Tree

# Version 1: a quota of -1 is none. A container's group has a path that is not there.
OLD_CONTAINER = """
proc/self/cgroup = 4:cpu,cpuacct:/docker/abc
sys/fs/cgroup/cpu/cpu.cfs_quota_us = 400000
sys/fs/cgroup/cpu/cpu.cfs_period_us = 100000
"""
OLD_NESTED = """
proc/self/cgroup = 4:cpu:/a/b
sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us = -1
sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us = 100000
sys/fs/cgroup/cpu/a/cpu.cfs_quota_us = 50000
sys/fs/cgroup/cpu/a/cpu.cfs_period_us = 100000
"""


def of(text: str, folder: Path) -> Machine:
    return facts.of(machines.unpack_text(text, folder))


def test_a_pod_on_a_server(machine: Callable[[str], Tree]) -> None:
    assert facts.of(machine("pod")) == Machine(
        kernel="6.8.0-1021-aws",
        architecture="x86_64",
        processor="AMD EPYC 7R13 Processor",
        cpus=192,
        cpus_allowed=frozenset({*range(48, 96), *range(144, 192)}),
        cpu_limit=8.0,
        numa_nodes=2,
        memory=1_623_263_444_992,
        memory_available=1_433_600_000_000,
        swap=0,
        swap_free=0,
        virtual=True,
        hypervisor="Amazon EC2",
        container="podman",
        wsl=False,
        huge_pages="always",
    )


def test_an_empty_tree_says_nothing(tmp_path: Path) -> None:
    assert of("", tmp_path) == Machine()


def test_windows_linux_says_so_in_its_release(tmp_path: Path) -> None:
    assert of("proc/sys/kernel/osrelease = 5.15.167.4-microsoft-standard-WSL2", tmp_path).wsl is True


def test_the_maker_of_a_real_machine_is_no_hypervisor(tmp_path: Path) -> None:
    found = of("proc/cpuinfo = flags : fpu vme aes\nsys/class/dmi/id/sys_vendor = Dell Inc.", tmp_path)
    assert (found.virtual, found.hypervisor) == (None, None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (r"processor\x09: 0\nBogoMIPS\x09: 50.00\nCPU implementer\x09: 0x41", None),  # arm servers do not say
        (r"processor\x09: 0\nCPU part\x09: 0xd0b\n\nModel\x09\x09: Raspberry Pi 5 Model B Rev 1.0", "Raspberry Pi 5 Model B Rev 1.0"),
        (r"processor\x09: 0\ncpu\x09\x09: POWER9, altivec supported", "POWER9, altivec supported"),
        (r"model name\x09: \x1b[31m", None),
        (r"model name\x09:   two   words  ", "two words"),
    ],
)
def test_the_cpu_model_where_the_kernel_names_it(text: str, name: str | None, tmp_path: Path) -> None:
    assert of(f"proc/cpuinfo = {text}", tmp_path).processor == name


def test_cpus_are_counted_where_none_are_listed(tmp_path: Path) -> None:
    assert of(r"proc/cpuinfo = processor\x09: 0\n\nprocessor\x09: 1\n\nprocessor\x09: 5", tmp_path).cpus == 3


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("sys/fs/cgroup/cpu.max = 150000 100000", 1.5),
        ("sys/fs/cgroup/cpu.max = max 100000", None),
        ("sys/fs/cgroup/cpu.max = 100000", None),
        ("sys/fs/cgroup/cpu.max = -1 100000", None),
        ("sys/fs/cgroup/cpu.max = 100000 0", None),
        (OLD_CONTAINER, 4.0),
        (OLD_NESTED, 0.5),
        ("proc/self/cgroup = 0::/../../x\nsys/fs/cgroup/cpu.max = 100000 100000", 1.0),
    ],
)
def test_the_least_limit_of_the_groups_around_counts(text: str, limit: float | None, tmp_path: Path) -> None:
    assert of(text, tmp_path).cpu_limit == limit


@pytest.mark.parametrize("text", ["always madvise never", "[]", "[a b]", "[" + "x" * 40 + "]"])
def test_a_choice_that_is_none_is_absent(text: str, tmp_path: Path) -> None:
    assert of(f"sys/kernel/mm/transparent_hugepage/enabled = {text}", tmp_path).huge_pages is None


def test_this_machine_is_as_python_sees_it() -> None:
    found = facts.of()
    assert found.kernel == platform.release()
    assert found.architecture == platform.machine()
    assert found.cpus_allowed == frozenset(os.sched_getaffinity(0))
    assert found.memory is None or found.memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.cpus is None or found.cpus == os.sysconf("SC_NPROCESSORS_ONLN")


@given(st.lists(st.binary(max_size=60), min_size=6, max_size=6))
def test_no_content_breaks_it(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    folder = tmp_path_factory.getbasetemp() / "garbage"
    for name, content in zip(
        ["proc/cpuinfo", "proc/meminfo", "proc/self/status", "proc/self/cgroup", "sys/fs/cgroup/cpu.max", "proc/sys/kernel/osrelease"],
        contents,
        strict=True,
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    found = facts.of(machines.unpack_text("", folder))
    assert found.cpu_limit is None or found.cpu_limit > 0
    assert found.kernel is None or found.kernel.isprintable()


def test_a_virtual_machine_that_boots_from_an_image_of_docker_is_no_container(tmp_path: Path) -> None:
    tree = machines.unpack_text(".dockerenv =\nproc/self/mountinfo = 20 1 254:0 / / rw - ext4 /dev/vda rw", tmp_path)
    assert facts.of(tree).container is None
    tree = machines.unpack_text("proc/self/mountinfo = 20 1 0:50 / / rw - overlay overlay rw,lowerdir=/a,upperdir=/b", tmp_path)
    assert facts.of(tree).container == "docker"
