"""What a thread is doing, as far as the functions tell that it has called and not left."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

_DEEPEST = 200  # frames looked at
_IMPORT = "_find_and_load", "<frozen importlib._bootstrap>"
"""The function of Python itself that runs for as long as a module is found and executed, and the file that it is said to be in."""


def _codes(frame: FrameType | None) -> Iterator[CodeType]:
    for _ in range(_DEEPEST):
        if frame is None:
            return
        yield frame.f_code
        frame = frame.f_back


def imports(frame: FrameType | None) -> int:
    """How many imports, one in the other, are under way up from *frame*. A program that is itself imported runs inside one."""
    return sum(code.co_name == _IMPORT[0] and code.co_filename == _IMPORT[1] for code in _codes(frame))


class Initializing:
    """
    Tells whether a thread makes what a load needs: whether it constructs a torch module, or imports code.

    Modules are told by the code of their constructors: reading another thread's locals would keep its tensors alive.
    """

    def __init__(self) -> None:
        self._known: dict[CodeType, bool] = {}

    def running(self, frame: FrameType | None, before: int) -> bool:
        """Whether a module is being constructed somewhere up from *frame*, or more is being imported than the imports *before* the load."""
        return imports(frame) > before or any(code.co_name == "__init__" and self._constructs(code) for code in _codes(frame))

    def _constructs(self, code: CodeType) -> bool:
        if code not in self._known:
            module: Any = getattr(sys.modules.get("torch.nn"), "Module", None)
            self._known[code] = module is not None and self._find(module, code)
        return self._known[code]

    def _find(self, module: type, code: CodeType) -> bool:
        todo, seen = [module], set()
        while todo:
            kind = todo.pop()
            if kind in seen:
                continue
            seen.add(kind)
            if getattr(vars(kind).get("__init__"), "__code__", None) is code:
                return True
            todo.extend(type.__subclasses__(kind))
        return False
