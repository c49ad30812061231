"""torch.load in its formats, torch.hub, and state dicts of sharded models."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TENSORS, _SHAPE = 60, (1024, 1024)
_SIZE = _TENSORS * 1024 * 1024 * 4
_BOTH = ("deserialize", "load_state_dict")


def _module(*, device: str | None = None) -> Any:
    import torch

    module = torch.nn.Module()
    for index in range(_TENSORS):
        module.register_parameter(f"p{index}", torch.nn.Parameter(torch.full(_SHAPE, index / 8, device=device)))
    return module


def _write(folder: Path) -> Truth:
    import torch

    torch.save(_module().state_dict(), folder / "model.pt")
    return {"deserialize": _SIZE, "load_state_dict": _SIZE}


def _write_legacy(folder: Path) -> Truth:
    import torch

    torch.save(_module().state_dict(), folder / "model.pt", _use_new_zipfile_serialization=False)
    return {"deserialize": _SIZE, "load_state_dict": _SIZE}


def _write_tar(folder: Path) -> Truth:
    """As releases before 0.1.10 wrote it, of which torch has only the reader left."""
    import pickle
    import struct
    import tarfile

    import torch

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> str | None:
            return keys.get(id(thing))

    state = _module().state_dict()
    keys = {id(tensor): str(number) for number, tensor in enumerate(state.values())}
    storages, tensors, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    for member in (storages, tensors):
        pickle.dump(len(state), member, protocol=2)
    for number, tensor in enumerate(state.values()):
        pickle.dump((_TENSORS + number, "cpu", torch.FloatStorage), storages, protocol=2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
        pickle.dump((number, _TENSORS + number, torch.FloatTensor), tensors, protocol=2)
        rows, columns = tensor.shape
        tensors.write(struct.pack("<ii5q", 2, 0, rows, columns, columns, 1, 0))
    pickle.dump([], storages, protocol=2)
    Pickler(pickled, protocol=2).dump(dict(state))
    with tarfile.open(folder / "model.pt", "w") as archive:
        for name, member in (("sys_info", io.BytesIO()), ("storages", storages), ("tensors", tensors), ("pickle", pickled)):
            entry = tarfile.TarInfo(name)
            entry.size = member.tell() or member.getbuffer().nbytes
            member.seek(0)
            archive.addfile(entry, member)
    return {"deserialize": _SIZE, "load_state_dict": _SIZE}


def _write_module(folder: Path) -> Truth:
    import torch

    torch.save(_module(), folder / "model.pt")
    return {"deserialize": _SIZE}


def _write_truncated(folder: Path) -> Truth:
    _write(folder)
    os.truncate(folder / "model.pt", _SIZE // 2)
    return {}


def _fill(read: Callable[[], Any], *, assign: bool = False) -> Any:
    module = _module(device="meta" if assign else None)
    module.load_state_dict(read(), assign=assign)
    return module


def _load(**options: Any) -> Callable[[Path], Any]:
    def load(folder: Path) -> Any:
        import torch

        return _fill(lambda: torch.load(str(folder / "model.pt"), **options))

    return load


def _memory(folder: Path) -> Any:
    import torch

    kept = []  # until the end: to give 250 MB back takes as long as some stages

    def read() -> Any:
        kept.append(io.BytesIO((folder / "model.pt").read_bytes()))
        return torch.load(kept[0])

    return _fill(read)


def _file(folder: Path) -> Any:
    import torch

    with (folder / "model.pt").open("rb") as file:
        return _fill(lambda: torch.load(file))


def _whole(folder: Path) -> Any:
    import torch

    return torch.load(folder / "model.pt", weights_only=False)


def _assign(folder: Path) -> Any:
    import torch

    return _fill(lambda: torch.load(folder / "model.pt"), assign=True)


# torch.hub


def _downloaded(folder: Path, address: str) -> Any:
    import torch

    kept = folder.with_name(f"{folder.name}-kept")
    try:
        return list(torch.hub.load_state_dict_from_url(address, model_dir=str(kept), progress=False).items())
    finally:
        shutil.rmtree(kept)


def _from_file(folder: Path) -> Any:
    return _downloaded(folder, (folder / "model.pt").as_uri())


def _from_server(folder: Path) -> Any:
    argv = [sys.executable, "-um", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LOADSPAN_", "PYTHONPATH"))}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as server:
        try:
            words = server.stdout.readline().split() if server.stdout is not None else []
            with contextlib.redirect_stdout(io.StringIO()):  # the port is another one each time
                return _downloaded(folder, f"http://127.0.0.1:{words[5]}/model.pt")
        finally:
            server.terminate()


def _from_cache(folder: Path) -> Any:
    import torch

    return torch.hub.load_state_dict_from_url("http://127.0.0.1:9/model.pt", model_dir=str(folder), progress=False)


def _write_repository(folder: Path) -> Truth:
    truth = _write(folder)
    (folder / "hubconf.py").write_text(
        "import torch\n"
        "def model(address, folder):\n"
        f"    module = torch.nn.Module()\n"
        f"    for index in range({_TENSORS}):\n"
        f"        module.register_parameter(f'p{{index}}', torch.nn.Parameter(torch.empty({_SHAPE})))\n"
        "    module.load_state_dict(torch.hub.load_state_dict_from_url(address, model_dir=folder))\n"
        "    return module\n"
    )
    return truth


def _repository(folder: Path) -> Any:
    import torch

    address = "http://127.0.0.1:9/model.pt"
    return torch.hub.load(str(folder), "model", address, str(folder), source="local")


# Sharded models


def _sharded(folder: Path) -> Any:
    """One rank of FSDP: as many of them as there are, on the CPU."""
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        module = _module()
        fully_shard(module, mesh=dist.init_device_mesh("cpu", (1,)))
        state = torch.load(folder / "model.pt")
        set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True))
        return {key: value.to_local() for key, value in module.state_dict().items()}
    finally:
        dist.destroy_process_group()


def _with(stage: str) -> Callable[[Truth], Truth]:
    return lambda truth: {"deserialize": truth["deserialize"], stage: truth["file"]}


def _write_with_size(folder: Path) -> Truth:
    return _write(folder) | {"file": (folder / "model.pt").stat().st_size}


def _case(name: str, load: Callable[[Path], Any], stages: tuple[str, ...] = _BOTH, **options: Any) -> Case:
    return Case(
        **{"name": name, "library": "torch", "write": _write, "load": load, "loader": "torch", "stages": stages, "needs": ("torch",)}
        | options
    )


CASES = [
    _case("torch.load, zip", _load()),
    _case("torch.load, zip, mapped", _load(mmap=True)),
    _case("torch.load, zip, weights_only=False", _load(weights_only=False)),
    _case("torch.load, legacy", _load(), write=_write_legacy),
    _case("torch.load, tar", _load(weights_only=False), write=_write_tar),
    _case("torch.load, a whole module", _whole, ("deserialize",), write=_write_module),
    _case("torch.load, from memory", _memory, ("read", *_BOTH)),
    _case("torch.load, from an open file", _file),
    _case("torch.load, assigned", _assign),
    _case("torch.load, truncated", _load(), ("deserialize",), write=_write_truncated, raises="RuntimeError"),
    _case("torch.hub, from a file", _from_file, ("cache", "download", "deserialize"), write=_write_with_size, sizes=_with("download")),
    _case("torch.hub, from a server", _from_server, ("cache", "download", "deserialize"), write=_write_with_size, sizes=_with("download")),
    _case("torch.hub, cached", _from_cache, ("cache", "deserialize"), write=_write_with_size, sizes=_with("cache")),
    _case("torch.hub, a local repository", _repository, ("initialize", "cache", *_BOTH), write=_write_repository),
    _case("set_model_state_dict, FSDP", _sharded, needs=("torch>=2.6",)),
]
