"""Streamers: tensorizer, plain and encrypted, fastsafetensors, Run:ai model streamer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from case import Case, Truth, held

if TYPE_CHECKING:
    from pathlib import Path

_LAYERS, _WIDTH = 24, 1536
_SECRET = "correct horse battery staple"  # noqa: S105 - of files that are made here


def _model() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS)))


def _empty() -> Any:
    import torch

    with torch.device("meta"):
        return torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS)))


def _write_shards(folder: Path) -> Truth:
    from safetensors.torch import save_file

    state = _model().state_dict()
    names = list(state)
    for shard in range(3):
        save_file({name: state[name] for name in names[shard::3]}, folder / f"model-{shard + 1:05}-of-00003.safetensors")
    size = held(folder)
    return {"deserialize": size, "read": size, "load_state_dict": size}


def _shards(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.safetensors"))]


def _without_reads(truth: Truth) -> Truth:
    return {stage: size for stage, size in truth.items() if stage != "read"}


# tensorizer


def _serialize(folder: Path, **how: Any) -> Truth:
    from tensorizer import TensorSerializer

    model = _model()
    writer = TensorSerializer(str(folder / "model.tensors"), **how)
    writer.write_module(model)
    writer.close()
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {"deserialize": size, "load_state_dict": size, "read": (folder / "model.tensors").stat().st_size}


def _write_plain(folder: Path) -> Truth:
    return _serialize(folder)


def _write_sealed(folder: Path) -> Truth:
    from tensorizer import EncryptionParams

    truth = _serialize(folder, encryption=EncryptionParams.from_string(_SECRET))
    return truth | {"decrypt": truth["deserialize"]}


def _tensorizer(folder: Path, **how: Any) -> Any:
    from tensorizer import TensorDeserializer

    model = _empty()
    with TensorDeserializer(str(folder / "model.tensors"), device="cpu", **how) as reader:
        reader.load_into_module(model)
    return model


def _plain(folder: Path) -> Any:
    return _tensorizer(folder)


def _lazy(folder: Path) -> Any:
    return _tensorizer(folder, lazy_load=True)


def _sealed(folder: Path) -> Any:
    from tensorizer import DecryptionParams

    return _tensorizer(folder, encryption=DecryptionParams.from_string(_SECRET))


def _wrong_key(folder: Path) -> Any:
    from tensorizer import DecryptionParams

    return _tensorizer(folder, encryption=DecryptionParams.from_string("another"), num_readers=1)


def _as_state(folder: Path) -> Any:
    from tensorizer import TensorDeserializer

    return dict(TensorDeserializer(str(folder / "model.tensors"), device="cpu", num_readers=1))


# fastsafetensors


def _fast(folder: Path) -> Any:
    import torch
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    model = _empty()
    loader = SafeTensorsFileLoader(SingleGroup(), torch.device("cpu"), nogds=True)
    loader.add_filenames({0: _shards(folder)})
    buffers = loader.copy_files_to_device()
    model.load_state_dict({name: buffers.get_tensor(name) for name in loader.get_keys()}, assign=True)
    buffers.close()
    loader.close()
    return model


def _fast_open(folder: Path) -> Any:
    from fastsafetensors import fastsafe_open

    with fastsafe_open(_shards(folder), nogds=True) as opened:
        return {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - it is no dictionary


def _fast_parallel(folder: Path) -> Any:
    from fastsafetensors import ParallelLoader, SingleGroup

    loader = ParallelLoader(SingleGroup(), _shards(folder), device="cpu", nogds=True)
    state = dict(loader.iterate_weights())
    loader.close()
    return state


# Run:ai's


def _streamed(folder: Path) -> Any:
    from runai_model_streamer import SafetensorsStreamer

    model = _empty()
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(_shards(folder))
        model.load_state_dict(dict(streamer.get_tensors()), assign=True)
    return model


def _streamed_some(folder: Path) -> Any:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files(_shards(folder), tensor_names=["0.weight", "1.bias", "2.weight"])
        return dict(streamer.get_tensors())


def _some(_: Truth) -> Truth:
    return {"deserialize": (2 * _WIDTH + 1) * _WIDTH * 4}


def _streamed_none(folder: Path) -> Any:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(folder / "none.safetensors")])
        return dict(streamer.get_tensors())


_ALL = ("read", "deserialize", "load_state_dict")


def _tensors(name: str, load: Any, stages: tuple[str, ...] = _ALL, **more: Any) -> Case:
    known: dict[str, Any] = {"library": "tensorizer", "write": _write_plain, "loader": "tensorizer", "needs": ("tensorizer", "torch")}
    return Case(name=name, load=load, stages=stages, **(known | more))


def _shard(library: str, loader: str, name: str, load: Any, stages: tuple[str, ...] = _ALL, **more: Any) -> Case:
    known: dict[str, Any] = {"library": library, "write": _write_shards, "loader": loader, "needs": (loader, "torch", "safetensors")}
    return Case(name=name, load=load, stages=stages, **(known | more))


def _fastsafetensors(name: str, load: Any, stages: tuple[str, ...] = _ALL, **more: Any) -> Case:
    return _shard("fastsafetensors", "fastsafetensors", name, load, stages, **more)


def _runai(name: str, load: Any, stages: tuple[str, ...] = _ALL, **more: Any) -> Case:
    return _shard("runai-model-streamer", "runai_model_streamer", name, load, stages, **more)


def _no_module(truth: Truth) -> Truth:
    return {stage: size for stage, size in truth.items() if stage != "load_state_dict"}


CASES = [
    _tensors("TensorDeserializer, load_into_module", _plain),
    _tensors("TensorDeserializer, lazy_load", _lazy),
    _tensors("TensorDeserializer as a mapping, one reader", _as_state, ("read", "deserialize"), sizes=_no_module),
    _tensors("TensorDeserializer, encrypted", _sealed, ("read", "decrypt", "deserialize", "load_state_dict"), write=_write_sealed),
    _tensors(
        "TensorDeserializer, another key",
        _wrong_key,
        ("decrypt", "deserialize"),
        write=_write_sealed,
        sizes=lambda _: {},
        raises="CryptographyError",
    ),
    _fastsafetensors("SafeTensorsFileLoader", _fast),
    _fastsafetensors("fastsafe_open", _fast_open, ("read", "deserialize"), sizes=_no_module),
    _fastsafetensors("ParallelLoader.iterate_weights", _fast_parallel, ("read", "deserialize"), sizes=_no_module),
    _runai("SafetensorsStreamer", _streamed),
    _runai("SafetensorsStreamer, some tensors", _streamed_some, ("read", "deserialize"), sizes=_some),
    _runai("SafetensorsStreamer, no such file", _streamed_none, ("deserialize",), sizes=lambda _: {}, raises="ValueError"),
]
