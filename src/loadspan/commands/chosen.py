"""Which device `loadspan check --device` means: as torch names it, by label, or by PCI address."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loadspan.checkup import survey
from loadspan.checkup.schema import Device
from loadspan.errors import UserError

if TYPE_CHECKING:
    from loadspan.checkup.schema import Checkup

TORCH_NAME = re.compile(r"([a-z][a-z0-9_]*)(?::(\d{1,4}))?")
_LISTED = ("cuda", "hip", "xpu")
"""Types of the devices that a checkup lists; torch knows more."""
_REFUSED = (RuntimeError, AssertionError, AttributeError, TypeError, ValueError, OSError)


def choose(text: str, found: Checkup) -> Checkup:
    """
    *found* with the device alone that *text* names.

    Raises:
        UserError: it names none, or which one is not certain.
    """
    for device in found.devices:
        if text.lower() in (device.label.lower(), device.pci_address, (device.pci_address or "").removeprefix("0000:")):
            return survey.choose(found, [device.label])
    match = TORCH_NAME.fullmatch(text)
    if match and match[1] not in ("cpu", "gpu", "meta"):
        return _by_name(text, match[1], int(match[2] or 0), found)
    if match or not re.fullmatch(r"gpu\d+|[0-9a-f:.]{7,}", text, re.IGNORECASE):
        raise UserError(f"{text}: no device. Give one as torch names it (cuda:0), its label (GPU0) or its PCI address.")
    raise UserError(f"{text}: there is no such device. {_known(found)}")


def _by_name(text: str, kind: str, index: int, found: Checkup) -> Checkup:
    alike = [device for device in found.devices if device.type == kind or (kind, device.type) == ("cuda", "hip")]
    for device in alike:
        if device.index == index:
            return survey.choose(found, [device.label])
    unsure = any(device.index is None and device.visible is not False for device in alike)
    told = None if found.captured or not (unsure or kind not in _LISTED) else _told(kind, index)
    if told is not None:
        for device in found.devices:
            if told.pci_address is not None and device.pci_address == told.pci_address:
                return survey.choose(found, [device.label])
        if kind not in _LISTED:
            return replace(survey.choose(found, []), devices=(told,))
    if unsure:
        reason = "which one that is cannot be told" + ("" if found.captured else " without torch that sees it")
        raise UserError(f"{text}: {reason}. Name it by label or PCI address. {_known(found)}")
    raise UserError(f"{text}: there is no such device. {_known(found)}")


def _known(found: Checkup) -> str:
    names = []
    for device in found.devices:
        torch = f", {device.type}:{device.index}" if device.type and device.index is not None else ""
        names.append(f"{device.label} ({device.pci_address}{torch})")
    return f"There is {', '.join(names)}." if names else "No accelerator was found."


def _told(kind: str, index: int) -> Device | None:
    """What torch says of a device, which it has to be imported and to initialize its devices for; None where it has none such."""
    from loadspan.facts import device

    try:
        import torch
    except ImportError:
        return None
    module: Any = getattr(torch, kind, None)
    try:
        if index >= module.device_count():
            return None
        getattr(module, "init", lambda: None)()
    except _REFUSED:
        return None
    facts = device.of_torch(kind, index)
    return Device(
        label=f"{kind}:{index}",
        type=facts.type,
        index=index,
        visible=True,
        name=facts.name,
        pci_address=facts.pci_address,
        memory=facts.memory,
        numa_node=facts.numa_node,
    )
