"""
Which of a machine's devices a process sees, and in which order, by the variables that its driver reads.

Each function takes the machine's devices in the order in which the driver would number them all and returns positions in that order.
It answers as far as it is certain and says whether that is all: a wrong device is worse than none.
Written after NVIDIA's programming guide, torch's own reading of the variables, and the sources of ROCr and of the HIP runtime.
`NVIDIA_VISIBLE_DEVICES` is not read here: the container runtime has acted on it before the process began.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OLD_MIG = re.compile(r"MIG-(GPU-[0-9a-fA-F-]+)/\d+/\d+")
_WHOLE = re.compile(r"-?[0-9]{1,9}")
_ROCR_WHOLE = re.compile(r"[+-]?(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,9})")
_ROCR_SHORTEST, _ROCR_LONGEST = 5, 20  # characters of a UUID, or of its beginning
_INTEL = ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR", "SYCL_DEVICE_FILTER")


class Visible(NamedTuple):
    """Positions by visible index, and whether no further index exists."""

    order: tuple[int, ...]
    complete: bool
    everything: bool = False
    """Whether every device is visible, in an order that need not be certain."""

    def position(self, index: int) -> int | None:
        """The device that visible *index* is; None where there is none or it is not certain."""
        return self.order[index] if 0 <= index < len(self.order) else None

    def shows(self, position: int) -> bool | None:
        """Whether the device at *position* is visible; None where it is not certain."""
        return True if self.everything or position in self.order else False if self.complete else None

    def index_of(self, position: int) -> int | None:
        """The visible index of the device at *position*; None where it is hidden or not certain."""
        return self.order.index(position) if position in self.order else None


_NONE, _UNKNOWN = Visible((), complete=True), Visible((), complete=False)


def _all(count: int) -> Visible:
    return Visible(tuple(range(count)), complete=True, everything=True)


def cuda(
    uuids: Sequence[str | None],
    environment: Mapping[str, str],
    instances: Mapping[str, int] | None = None,
    *,
    partitioned: bool = False,
) -> Visible:
    """
    Visible indices of the NVIDIA GPUs that have *uuids*, which are in the order of the PCI bus.

    *instances* are the UUIDs of MIG instances and the positions of their GPUs; *partitioned*: some GPU is cut into them.
    """
    text = environment.get("CUDA_VISIBLE_DEVICES")
    if text == "" or not uuids:
        return _NONE
    # By default the fastest GPU is the first and the order of the rest is not specified. A server of MPS has numbered them already.
    in_order = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" and "CUDA_MPS_PIPE_DIRECTORY" not in environment and not partitioned
    certain = in_order or len(uuids) == 1
    if text is None:
        return _all(len(uuids)) if certain else Visible((), complete=False, everything=not partitioned)
    if text.startswith("MIG-"):
        return _cuda_instance(text.split(",")[0], uuids, instances or {})
    if text.startswith("GPU-"):
        return _cuda_uuids(text.split(","), uuids)
    found = _cuda_indices(text.split(","), len(uuids))
    return found if certain or not found.order else _UNKNOWN


def _cuda_indices(entries: list[str], count: int) -> Visible:
    """An entry that is no device hides itself and all after it, as -1 does; a repeated one hides everything."""
    order: list[int] = []
    for entry in entries:
        text = entry.strip()
        if not _WHOLE.fullmatch(text):
            # `1gpu` may be read as 1, and a UUID may be taken after indices.
            return Visible(tuple(order), complete=not text or not (text[0] in "+0123456789" or text.lower().startswith(("gpu-", "mig-"))))
        position = int(text)
        if position in order:
            return _NONE
        if not 0 <= position < count:
            break
        order.append(position)
    return Visible(tuple(order), complete=True)


def _one_with(prefix: str, uuids: Sequence[str | None]) -> list[int]:
    return [position for position, uuid in enumerate(uuids) if uuid is not None and uuid.lower().startswith(prefix.lower())]


def _cuda_uuids(entries: list[str], uuids: Sequence[str | None]) -> Visible:
    """A UUID may be shortened as long as only one GPU begins with it."""
    order: list[int] = []
    for entry in entries:
        if not entry.startswith("GPU-"):
            return Visible(tuple(order), complete=False)
        found = _one_with(entry, uuids)
        if None in uuids and len(found) != 1:
            return Visible(tuple(order), complete=False)
        if len(found) != 1:
            break
        if found[0] in order:
            return _NONE
        order.append(found[0])
    return Visible(tuple(order), complete=True)


def _cuda_instance(entry: str, uuids: Sequence[str | None], instances: Mapping[str, int]) -> Visible:
    """A process has one MIG instance, the first of the list: `MIG-<UUID>`, or before driver 470 `MIG-GPU-<UUID>/<GPU>/<compute>`."""
    old = _OLD_MIG.fullmatch(entry)
    found = _one_with(old[1], uuids) if old else [position for uuid, position in instances.items() if uuid.lower() == entry.lower()]
    if len(uuids) == 1 and not found and not old:
        found = [0]  # whichever instance it is, it can be of no other GPU
    return Visible(tuple(found), complete=False) if len(found) == 1 else _UNKNOWN


def hip(uuids: Sequence[str | None], environment: Mapping[str, str]) -> Visible:
    """Visible indices of the AMD GPUs that have *uuids*, which are in the order of their kfd nodes."""
    if environment.get("GPU_DEVICE_ORDINAL"):
        return _UNKNOWN  # documented for HIP as well, read for OpenCL only
    below = environment.get("ROCR_VISIBLE_DEVICES")
    surfaced = _all(len(uuids)) if below is None else _rocr(below, uuids)
    if not surfaced.order:
        return surfaced
    text = environment.get("HIP_VISIBLE_DEVICES") or environment.get("CUDA_VISIBLE_DEVICES")
    if not text:
        return surfaced
    if not surfaced.complete:
        return _UNKNOWN
    chosen = _hip([uuids[position] for position in surfaced.order], text)
    return Visible(tuple(surfaced.order[position] for position in chosen.order), chosen.complete)


def _rocr(text: str, uuids: Sequence[str | None]) -> Visible:
    """An entry that is no device, an ambiguous and a repeated one hide themselves and all after them; empty hides everything."""
    order: list[int] = []
    for entry in text.split(",")[: len(uuids)]:
        token = entry.strip()
        if not token:
            return Visible(tuple(order), complete=not text)
        if token[0] in "gG":
            found = _one_with(token, uuids) if _ROCR_SHORTEST <= len(token) <= _ROCR_LONGEST else []
        else:
            found = [_c_number(token)] if _ROCR_WHOLE.fullmatch(token) else []
        if len(found) != 1 or not 0 <= found[0] < len(uuids) or found[0] in order:
            break
        order.append(found[0])
    return Visible(tuple(order), complete=True)


def _c_number(token: str) -> int:
    """As strtol reads it: `0x10` is sixteen, `010` is eight. -1 where it is no such number."""
    digits = token.lstrip("+-")
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    try:
        return int(token, base)
    except ValueError:
        return -1


def _hip(uuids: Sequence[str | None], text: str) -> Visible:
    """An entry that is no device hides itself and all after it; a repeated one counts once."""
    order: list[int] = []
    for entry in text.split(","):
        found = [place for place, uuid in enumerate(uuids) if uuid is not None and entry in uuid][:1] if "GPU-" in entry else []
        position = found[0] if found else int(entry) if _WHOLE.fullmatch(entry) and str(int(entry)) == entry else -1
        if not 0 <= position < len(uuids):
            break
        if position not in order:
            order.append(position)
    return Visible(tuple(order), complete=True)


def xpu(count: int, environment: Mapping[str, str]) -> Visible:
    """
    Visible indices of *count* Intel GPUs.

    Certain where no variable is about them, an index for one GPU only: the order of several is the driver's own.
    """
    chosen = any(name in environment for name in _INTEL)
    return Visible((0,) if count == 1 else (), complete=False, everything=True) if not chosen else _UNKNOWN
