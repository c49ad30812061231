"""A driver library that the program has loaded and initialized tells addresses; one that it has not is neither loaded nor initialized."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

CUDA = """
#include <stdio.h>
static int ready;
int cuInit(unsigned flags) { (void)flags; ready = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { if (!ready) return 3; if (ordinal > 1) return 101; *device = ordinal + 40; return 0; }
int cuDeviceGetPCIBusId(char *text, int length, int device)
{
    if (!ready) return 3;
    return snprintf(text, length, device == 40 ? "0000:1B:00.0" : "words") < length ? 0 : 1;
}
"""
HIP = """
#include <stdio.h>
int hipDeviceGetPCIBusId(char *text, int length, int device) { return device ? 101 : snprintf(text, length, "0000:c3:00.0") >= length; }
"""
PROGRAM = """
import ctypes, sys, types
from loadspan.facts import device, drivers
library, hip = sys.argv[1:]
loaded = lambda: any("libcuda.so" in line or "libamdhip64" in line for line in open("/proc/self/maps"))
print(drivers.cuda_address(0), drivers.hip_address(0), loaded())
cuda = ctypes.CDLL(library)
print(drivers.cuda_address(0))
cuda.cuInit(0)
print(drivers.cuda_address(0), drivers.cuda_address(1), drivers.cuda_address(2), drivers.cuda_address(1 << 40))
backend = types.ModuleType("torch.cuda")
backend.is_initialized = lambda: True
backend.get_device_properties = lambda index: types.SimpleNamespace(name="Stub")
torch = sys.modules["torch"] = types.ModuleType("torch")
torch.cuda = backend
facts = device.of_torch("cuda", 0)
print(facts.pci_address, facts.source)
backend.is_initialized = lambda: False
print(device.of_torch("cuda", 0).pci_address)
ctypes.CDLL(hip)
print(drivers.hip_address(0), drivers.hip_address(1))
"""


def build(source: str, name: str, folder: Path) -> str:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / f"{name}.c").write_text(source)
    # Found again by this name, as the real library is.
    options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
    subprocess.run([compiler, *options, str(folder / f"{name}.c")], check=True, timeout=60)
    return str(folder / name)


def test_only_what_the_program_initialized_is_asked(tmp_path: Path) -> None:
    libraries = [build(CUDA, "libcuda.so.1", tmp_path), build(HIP, "libamdhip64.so.6", tmp_path)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *libraries], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.splitlines() == [
        "None None False",
        "None",
        "0000:1b:00.0 None None None",
        "0000:1b:00.0 driver",
        "None",
        "0000:c3:00.0 None",
    ], done.stderr
