"""
A stand-in for an accelerator, for machines that have none: device `fakegpu`, registered once by `register()`.

Its memory is host memory of its own: `.to("fakegpu")` really copies every byte, so a trace shows a `to_device` stage of the right size;
its throughput is that of a copy from host memory to host memory and says nothing about any real device. Every operation runs on the CPU.

    device = fakegpu.register()
    module.to(device)
    fakegpu.copied()                # bytes that went from the host to the device so far

Made for examples and tests: one device, no streams, no pinned memory, not to be used for anything else.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import backend_registration

if TYPE_CHECKING:
    from typing_extensions import Self

NAME = "fakegpu"
_HOST = torch.device("cpu")
_lock = threading.Lock()
_copied = 0
_registered: list[torch.library.Library] = []  # the library must stay alive: its registrations end with it


class FakeTensor(torch.Tensor):
    """A tensor on `fakegpu`: outside a device, a shape and a dtype; inside, `memory`, a host tensor that nobody else holds."""

    memory: torch.Tensor

    def __new__(cls, memory: torch.Tensor) -> Self:
        """Put *memory* on the device, without a copy: the caller made it for this."""
        tensor: Self = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001 - the documented way to make a wrapper has this name
            cls,
            memory.size(),
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.memory = memory
        return tensor

    def __repr__(self) -> str:  # type: ignore[override] # torch's takes a keyword that only its own printing uses
        return f"FakeTensor({self.memory!r})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run *operation* on the memory; what it returns is on the device, except where it was asked to bring it to the host."""
        kwargs = kwargs or {}
        if operation is torch.ops.aten.copy_.default:
            return _copy(*args)
        if operation is torch.ops.aten._to_copy.default:  # noqa: SLF001 - what `.to()` is called at this level
            return _to(*args, **kwargs)
        device = kwargs.get("device")
        result = operation(*_inside(args), **_inside({**kwargs, "device": _HOST} if device else kwargs))
        if operation._schema.is_mutable:  # noqa: SLF001 - in place or out=: the caller expects the very tensor it passed
            return kwargs.get("out", args[0])
        return result if device and device.type != NAME else _outside(result)


def _inside(value: Any) -> Any:
    """Tensors of the device in *value* as the host tensors that hold their memory."""
    return torch.utils._pytree.tree_map_only(FakeTensor, lambda tensor: tensor.memory, value)  # noqa: SLF001 - has no public name


def _outside(value: Any) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, FakeTensor, value)  # noqa: SLF001 - as above


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:  # noqa: ARG001, FBT001, FBT002 - torch's signature
    """`target.copy_(source)`, counted where it goes from the host to the device."""
    global _copied  # noqa: PLW0603 - one device, one counter
    _inside(target).copy_(_inside(source))
    if isinstance(target, FakeTensor) and not isinstance(source, FakeTensor):
        with _lock:
            _copied += target.nbytes
    return target


def _to(source: FakeTensor, *, device: torch.device | None = None, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    """`source.to(...)` of a tensor that is on the device: to the host, or to another dtype."""
    memory = source.memory.to(dtype=dtype, copy=True)
    return FakeTensor(memory) if device is None or device.type == NAME else memory.to(device)


def _empty(size: Any, *, dtype: torch.dtype | None = None, memory_format: torch.memory_format | None = None, **_: Any) -> FakeTensor:
    return FakeTensor(torch.empty(size, dtype=dtype, device=_HOST, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: Any, stride: Any, *, dtype: torch.dtype | None = None, **_: Any) -> FakeTensor:
    return FakeTensor(torch.empty_strided(size, stride, dtype=dtype, device=_HOST))


def copied() -> int:
    """Bytes copied from the host to the device since the program began."""
    return _copied


def register() -> str:
    """
    Make `fakegpu` known to torch and return its device string; a second call changes nothing.

    Raises:
        RuntimeError: this torch cannot have a device written in Python.
    """
    with _lock:
        if not _registered:
            set_up = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
            if set_up is None:
                raise RuntimeError(f"fakegpu: torch {torch.__version__} has no devices written in Python. Install torch 2.13 or newer.")
            set_up(NAME)
            library = torch.library.Library("aten", "IMPL")
            library.impl("empty.memory_format", _empty, "PrivateUse1")
            library.impl("empty_strided", _empty_strided, "PrivateUse1")
            _registered.append(library)
    # torch imports half a second of modules at the first operation of a device written in Python: not in somebody's first `.to()`.
    torch.empty(0).to(NAME)
    return f"{NAME}:0"


def best_device() -> tuple[str, bool]:
    """Return the accelerator of this machine and False, or `fakegpu:0` and True where there is none."""
    if torch.cuda.is_available():
        return "cuda:0", False
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return "xpu:0", False
    if torch.backends.mps.is_available():
        return "mps", False
    return register(), True
