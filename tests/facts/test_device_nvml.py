"""What the management library answers is taken; what it refuses, or answers without sense, is left out, and it may hang."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loadspan.facts import nvml
from loadspan.facts.nvml import NvmlGpu

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).parent / "stub_nvml.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stub of the library, compiled."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    built = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(built), str(SOURCE)], check=True, timeout=60)
    return str(built)


@pytest.fixture
def stub(library: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """`stub("four")` makes the library be on that machine."""

    def on(machine: str) -> str:
        monkeypatch.setenv("STUB", machine)
        return library

    return on


def test_name_uuid_address_memory_links_and_instances_are_told(stub: Callable[[str], str]) -> None:
    one, other, third, fourth = "0000:1b:00.0", "0000:43:00.0", "0000:52:00.0", "10000:9d:00.0"
    found = nvml.gpus(stub("four"))
    assert found == [
        NvmlGpu(one, "NVIDIA STUB 0", "GPU-00000000-1111-2222-3333-444444444444", 80 << 30, (other, other)),
        NvmlGpu(other, "NVIDIA STUB 1", "GPU-00000001-1111-2222-3333-444444444444", None, (one, one)),  # its memory is a wild number
        NvmlGpu(third, "NVIDIA STUB 2", "GPU-00000002-1111-2222-3333-444444444444", None, (None,) * 4),
        NvmlGpu(
            fourth,
            "NVIDIA STUB 3",
            "GPU-00000003-1111-2222-3333-444444444444",
            80 << 30,
            (None,) * 4,
            1,
            ("MIG-00000000-1111-2222-3333-444444444444", "MIG-00000001-1111-2222-3333-444444444444"),
        ),
    ]
    assert nvml.nvlinks(found) == {(one, other): 2, (third, fourth): 4}


def test_through_switches_the_fewer_links_of_the_two_count(stub: Callable[[str], str]) -> None:
    found = nvml.gpus(stub("switched"))
    assert [gpu.links for gpu in found] == [(None,) * 3, (None,) * 2, (), ()]
    assert nvml.nvlinks(found) == {("0000:1b:00.0", "0000:43:00.0"): 2}


def test_the_library_is_closed_again(stub: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "log"))
    nvml.gpus(stub("four"))
    assert (tmp_path / "log").read_text() == "0\n"


def test_no_driver_and_no_library_are_no_gpus(stub: Callable[[str], str], tmp_path: Path) -> None:
    assert nvml.gpus(stub("dead")) == []
    assert nvml.gpus(str(tmp_path / "missing.so")) == []
    (tmp_path / "text.so").write_text("no library")
    assert nvml.gpus(str(tmp_path / "text.so")) == []


def test_a_library_without_the_functions_is_no_gpus() -> None:
    assert nvml.gpus("libc.so.6") == []


def test_nonsense_is_left_out(stub: Callable[[str], str]) -> None:
    assert nvml.gpus(stub("wild")) == []


def test_a_driver_that_hangs_is_left_alone(library: str) -> None:
    program = f"from loadspan.facts import nvml; print(nvml.gpus({library!r}, patience=0.3))"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30, env={"STUB": "hung"})
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
    assert time.monotonic() - start < 10
