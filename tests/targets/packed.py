"""A quantized matrix."""

from __future__ import annotations

from typing import Any

import torch


class Packed(torch.Tensor):
    """A matrix that says it is of bfloat16, and is made of bytes and a scale for each row: as torchao and quanto do it."""

    def __new__(cls, values: Any, scales: Any) -> Any:
        """Of values (rows, columns) and scales (rows, 1)."""
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.bfloat16, device=values.device)  # noqa: SLF001 - made for this
        made.values, made.scales, made.zeros = values, scales, None
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values", "scales", "zeros"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Any], _: Any, __: Any, ___: Any) -> Packed:
        return Packed(inner["values"], inner["scales"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, kwargs = args[0], kwargs or {}
        if kwargs.get("dtype", torch.bfloat16) != torch.bfloat16:
            return function(given.values * given.scales, **kwargs)
        kwargs = {"device": kwargs["device"]} if "device" in kwargs else {}
        return cls(function(given.values, **kwargs), function(given.scales, **kwargs))
