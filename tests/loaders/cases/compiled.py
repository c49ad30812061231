"""torch: exported, scripted and compiled models."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LAYERS, _WIDTH = 64, 1024
_SIZE = _LAYERS * 4 * (_WIDTH * _WIDTH + _WIDTH)


def _module() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS)))


def _input() -> Any:
    import torch

    return torch.ones(2, _WIDTH)


def _write_exported(folder: Path) -> Truth:
    import torch

    torch.export.save(torch.export.export(_module(), (_input(),)), folder / "model.pt2")
    # Older releases read the archive first, and make weights of what is in it.
    whole = importlib.util.find_spec("torch.export.pt2_archive") is not None
    return {"deserialize": (folder / "model.pt2").stat().st_size if whole else _SIZE}


def _write_script(folder: Path) -> Truth:
    import torch

    torch.jit.trace(_module(), _input()).save(str(folder / "model.pt"))
    return {"deserialize": _SIZE}


def _write_state(folder: Path) -> Truth:
    import torch

    torch.save(_module().state_dict(), folder / "model.pt")
    return {"deserialize": _SIZE, "load_state_dict": _SIZE}


def _write_package(folder: Path) -> Truth:
    import torch

    program = torch.export.export(torch.nn.Linear(4096, 4096), (torch.ones(2, 4096),))
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))  # noqa: SLF001 - documented so
    return {"deserialize": (folder / "model.pt2").stat().st_size}


def _exported(folder: Path) -> Any:
    import torch

    for module in ("torch._export.serde.serialize", "torch.export.pt2_archive._package"):
        with contextlib.suppress(ImportError):  # at its first use, otherwise: a second that is sampled; older versions have not all of them
            importlib.import_module(module)
    program = torch.export.load(folder / "model.pt2")
    return dict(program.state_dict)


def _script(folder: Path) -> Any:
    import torch

    return dict(torch.jit.load(str(folder / "model.pt")).state_dict())


def _compiled(folder: Path) -> Any:
    """A first call compiles: without inductor, which would need a C compiler."""
    import torch

    module = _module()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    module.load_state_dict(torch.load(folder / "model.pt"))
    with torch.no_grad():
        return compiled(_input())


def _package(folder: Path) -> Any:
    import torch

    return torch._inductor.aoti_load_package(str(folder / "model.pt2"))(torch.ones(2, 4096)).shape  # noqa: SLF001 - documented so


def _case(name: str, write: Callable[[Path], Truth], load: Callable[[Path], Any], stages: tuple[str, ...], **options: Any) -> Case:
    return Case(
        **{"name": name, "library": "torch", "write": write, "load": load, "loader": "torch", "stages": stages, "needs": ("torch",)}
        | options
    )


CASES = [
    _case("torch.export.load", _write_exported, _exported, ("deserialize",)),
    _case("torch.jit.load", _write_script, _script, ("deserialize",)),
    _case(
        "torch.compile, first call",
        _write_state,
        _compiled,
        ("deserialize", "load_state_dict", "compile"),
        environment={"LOADSPAN_IDLE_TIMEOUT": "10"},
    ),
    _case("aoti_load_package", _write_package, _package, ("deserialize",), needs=("torch>=2.6",)),
]
