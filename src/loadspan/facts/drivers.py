"""
A device's PCI address out of the driver library that its program has already loaded.

Nothing is loaded and nothing is initialized: a library that is not there, or has not been initialized by the program, does not answer.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Any

from loadspan.facts import pci

_LENGTH = 32
_DEVICES = 1 << 16


def _loaded(*names: str) -> Any:
    """The first of the libraries *names* that this process has loaded."""
    only_loaded: int = getattr(os, "RTLD_NOLOAD", 0)
    for name in names if only_loaded else ():
        with suppress(OSError):
            return ctypes.CDLL(name, mode=os.RTLD_LAZY | only_loaded)
    return None


def _asked(function: Any, device: int) -> str | None:
    buffer = ctypes.create_string_buffer(_LENGTH)
    function.argtypes, function.restype = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int], ctypes.c_int
    return pci.normalized(buffer.value.decode("ascii", "replace")) if function(buffer, _LENGTH, device) == 0 else None


def cuda_address(index: int) -> str | None:
    """PCI address of the device that CUDA numbers *index*; None unless the program has initialized CUDA."""
    library = _loaded("libcuda.so.1")
    get, tell = getattr(library, "cuDeviceGet", None), getattr(library, "cuDeviceGetPCIBusId", None)
    if get is None or tell is None or not 0 <= index < _DEVICES:
        return None
    device = ctypes.c_int()
    get.argtypes, get.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_int
    return _asked(tell, device.value) if get(ctypes.byref(device), index) == 0 else None


def hip_address(index: int) -> str | None:
    """PCI address of the device that HIP numbers *index*. Only for a program that has initialized HIP: the call itself would do so."""
    library = _loaded("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5")
    tell = getattr(library, "hipDeviceGetPCIBusId", None)
    return _asked(tell, index) if tell is not None and 0 <= index < _DEVICES else None
