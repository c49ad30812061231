"""
What NVIDIA's management library tells beyond the kernel's files: memory, NVLink, C2C links, MIG instances.

Optional: without `libnvidia-ml.so.1` there is no answer. Not for a thread that loads: what initializing it costs is not known, and it may
wake a GPU. A driver that hangs is left alone after some seconds.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress
from ctypes import c_char, c_char_p, c_int64, c_uint, c_uint64, c_ulonglong, c_void_p
from dataclasses import dataclass
from typing import Any

from loadspan.facts import nvidia, pci

LIBRARY = "libnvidia-ml.so.1"
_PATIENCE = 5.0  # seconds until a driver that does not answer is given up
_GPUS, _INSTANCES, _LINKS = 256, 64, 36  # bounds against a library that answers nonsense
_SWITCH = 2  # what a link may lead to: 0 a GPU, 1 an IBM NPU, 2 an NVSwitch
_C2C_COUNT, _C2C_STATUS = 170, 171  # fields
_MEMORY = 1 << 50

# The last known values of its enumerations are used as plain numbers; every call answers 0 where it succeeded.
_SIGNATURES: dict[str, list[Any]] = {
    "nvmlInit_v2": [],
    "nvmlShutdown": [],
    "nvmlDeviceGetCount_v2": [c_void_p],
    "nvmlDeviceGetHandleByIndex_v2": [c_uint, c_void_p],
    "nvmlDeviceGetName": [c_void_p, c_char_p, c_uint],
    "nvmlDeviceGetUUID": [c_void_p, c_char_p, c_uint],
    "nvmlDeviceGetPciInfo_v3": [c_void_p, c_void_p],
    "nvmlDeviceGetMemoryInfo": [c_void_p, c_void_p],
    "nvmlDeviceGetNvLinkState": [c_void_p, c_uint, c_void_p],
    "nvmlDeviceGetNvLinkRemotePciInfo_v2": [c_void_p, c_uint, c_void_p],
    "nvmlDeviceGetNvLinkRemoteDeviceType": [c_void_p, c_uint, c_void_p],
    "nvmlDeviceGetMigMode": [c_void_p, c_void_p, c_void_p],
    "nvmlDeviceGetMaxMigDeviceCount": [c_void_p, c_void_p],
    "nvmlDeviceGetMigDeviceHandleByIndex": [c_void_p, c_uint, c_void_p],
    "nvmlDeviceGetFieldValues": [c_void_p, ctypes.c_int, c_void_p],
}


class _PciInfo(ctypes.Structure):
    _fields_ = (
        ("legacy", c_char * 16),
        ("domain", c_uint),
        ("bus", c_uint),
        ("device", c_uint),
        ("device_id", c_uint),
        ("subsystem_id", c_uint),
        ("address", c_char * 32),
    )


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class _Field(ctypes.Structure):
    _fields_ = (
        ("field", c_uint),
        ("scope", c_uint),
        ("timestamp", c_int64),
        ("latency", c_int64),
        ("type", c_uint),
        ("status", c_uint),
        ("value", c_uint64),  # a union; counts are unsigned and start at its first byte
    )


@dataclass(frozen=True, slots=True)
class NvmlGpu:
    """One GPU; what the library does not tell is None or empty."""

    address: str
    name: str | None = None
    uuid: str | None = None
    memory: int | None = None
    links: tuple[str | None, ...] = ()
    """Where each active NVLink leads: an address, or None for an NVSwitch."""
    c2c: int | None = None
    """Active links to the CPU that are not PCIe."""
    instances: tuple[str, ...] = ()
    """UUIDs of its MIG instances."""


class _Library:
    """The loaded library. A function that it lacks fails as one that it refuses."""

    def __init__(self, name: str) -> None:
        self._library = ctypes.CDLL(name)

    def call(self, name: str, *arguments: Any) -> bool:
        function = getattr(self._library, name, None)
        if function is None:
            return False
        function.argtypes, function.restype = _SIGNATURES[name], c_uint
        return bool(function(*arguments) == 0)

    def number(self, name: str, *arguments: Any) -> int | None:
        """What *name* puts into an unsigned number, its last argument."""
        value = c_uint()
        return int(value.value) if self.call(name, *arguments, ctypes.byref(value)) else None

    def text(self, name: str, handle: c_void_p) -> str | None:
        buffer = ctypes.create_string_buffer(96)
        return buffer.value.decode("utf-8", "replace") if self.call(name, handle, buffer, len(buffer)) else None

    def handle(self, name: str, *arguments: Any) -> c_void_p | None:
        handle = c_void_p()
        return handle if self.call(name, *arguments, ctypes.byref(handle)) else None


def _address(information: _PciInfo) -> str | None:
    return pci.normalized(information.address.decode("ascii", "replace"))


def _links(library: _Library, handle: c_void_p) -> tuple[str | None, ...]:
    found: list[str | None] = []
    for link in range(_LINKS):
        if library.number("nvmlDeviceGetNvLinkState", handle, link) != 1:
            continue  # down, or refused: not every GPU numbers its links without gaps
        if library.number("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link) == _SWITCH:
            found.append(None)
            continue
        information = _PciInfo()
        if library.call("nvmlDeviceGetNvLinkRemotePciInfo_v2", handle, link, ctypes.byref(information)):
            address = _address(information)
            found += [address] if address is not None else []
    return tuple(found)


def _field(library: _Library, handle: c_void_p, field: int, scope: int = 0) -> int | None:
    value = _Field(field=field, scope=scope)
    known = library.call("nvmlDeviceGetFieldValues", handle, 1, ctypes.byref(value)) and value.status == 0
    return value.value & 0xFFFFFFFF if known else None


def _c2c(library: _Library, handle: c_void_p) -> int | None:
    count = _field(library, handle, _C2C_COUNT)
    if count is None or count > _LINKS:
        return None
    return sum(_field(library, handle, _C2C_STATUS, link) == 1 for link in range(count))


def _instances(library: _Library, handle: c_void_p) -> tuple[str, ...]:
    current, pending = c_uint(), c_uint()
    if not library.call("nvmlDeviceGetMigMode", handle, ctypes.byref(current), ctypes.byref(pending)) or current.value != 1:
        return ()
    most = library.number("nvmlDeviceGetMaxMigDeviceCount", handle) or 0
    handles = [library.handle("nvmlDeviceGetMigDeviceHandleByIndex", handle, index) for index in range(min(most, _INSTANCES))]
    uuids = [library.text("nvmlDeviceGetUUID", instance) for instance in handles if instance is not None]
    return tuple(uuid for uuid in uuids if uuid is not None and uuid.startswith("MIG-"))


def _gpu(library: _Library, handle: c_void_p) -> NvmlGpu | None:
    information = _PciInfo()
    if not library.call("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(information)):
        return None
    address, memory = _address(information), _Memory()
    if address is None:
        return None
    known = library.call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory)) and 0 < memory.total < _MEMORY
    return NvmlGpu(
        address,
        nvidia.clean_name(library.text("nvmlDeviceGetName", handle)),
        nvidia.parse_uuid(library.text("nvmlDeviceGetUUID", handle)),
        memory.total if known else None,
        _links(library, handle),
        _c2c(library, handle),
        _instances(library, handle),
    )


def _ask(name: str) -> list[NvmlGpu]:
    library = _Library(name)
    if not library.call("nvmlInit_v2"):
        return []
    try:
        count = library.number("nvmlDeviceGetCount_v2") or 0
        handles = [library.handle("nvmlDeviceGetHandleByIndex_v2", index) for index in range(min(count, _GPUS))]
        found = [_gpu(library, handle) for handle in handles if handle is not None]
        return sorted((gpu for gpu in found if gpu is not None), key=lambda gpu: nvidia.order(gpu.address))
    finally:
        library.call("nvmlShutdown")


def gpus(name: str = LIBRARY, patience: float = _PATIENCE) -> list[NvmlGpu]:
    """The GPUs that library *name* knows, in the order of the PCI bus; none where it cannot be loaded or does not answer in time."""
    answers: list[list[NvmlGpu]] = []

    def work() -> None:
        # A missing library is an OSError; a structure that ctypes refuses, as of another major version, is one of the others.
        with suppress(OSError, ctypes.ArgumentError, ValueError):
            answers.append(_ask(name))

    thread = threading.Thread(target=work, name="loadspan-nvml", daemon=True)
    thread.start()
    thread.join(patience)
    return answers[0] if answers else []


def nvlinks(gpus: list[NvmlGpu]) -> dict[tuple[str, str], int]:
    """
    How many NVLinks join each two of *gpus*, by their addresses.

    Where all go through NVSwitches, every GPU reaches every other by as many links as the one with fewer of them has.
    """
    found = {}
    for place, one in enumerate(gpus):
        for other in gpus[place + 1 :]:
            direct = min(one.links.count(other.address), other.links.count(one.address))
            count = direct or min(one.links.count(None), other.links.count(None))
            if count:
                found[one.address, other.address] = count
    return found
