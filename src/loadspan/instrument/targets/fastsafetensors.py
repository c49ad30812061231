"""
fastsafetensors: files that are copied to a device as they are, by threads of its own in C, past the page cache where that is possible.

What is read is known from the headers. The reading is begun for all files (`submit_io`) and waited for one by one (`wait_io`): both are
`read`. Tensors are views on what came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.destination import named
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets.files import method
from loadspan.instrument.targets.transfers import stage_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadspan.instrument.frames import OpenLoad, OpenStage

_COPIERS = {
    "dstorage": "DStorageFileCopier",
    "fgds": "FgdsFileCopier",
    "gds": "GdsFileCopier",
    "nogds": "NoGdsFileCopier",
    "threefs": "ThreeFSFileCopier",
    "unified": "UnifiedMemCopier",
}
"""Its ways to read a file: module and class."""
_BY_TENSOR = ("gds", "nogds", "unified")
"""Those that can wait for one tensor."""


def _length(frame: Any) -> int:
    """Bytes of a tensor in its file."""
    return int(frame.data_offsets[1] - frame.data_offsets[0])


def _own(loader: Any) -> list[tuple[str, Any]]:
    """The files that this process reads, with what their headers say."""
    rank = loader.pg.rank()
    return [(path, meta) for path, (meta, of) in list(loader.meta.items()) if of == rank]


def _describe_copy(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    loader = args[0]
    for path, _ in _own(loader):
        frame.file(path, "safetensors")
    stage_of(frame).destination = named(loader.device.as_str())


def _measure_copy(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    kept = result.key_to_rank_lidx
    frames = [(name, about) for _, meta in _own(args[0]) for name, about in meta.tensors.items()]
    frame.size = sum(_length(about) for name, about in frames if name in kept)
    # Where it waits for each tensor when that is asked for, the bytes are still coming.
    factories = [factory for found in result.rank_loaders.values() for factory in found]
    stage_of(frame).deferred = any(getattr(factory, "wait_tensor", None) is not None for factory in factories)


def _read_size(result: Any, args: Args, kwargs: Kwargs) -> int | None:
    copier = args[0]
    ranges = getattr(copier, "byte_ranges", None)
    if ranges is not None:
        return sum(int(last - first) for first, last in ranges)
    return int(copier.metadata.size_bytes - copier.metadata.header_length)


def _tensor_size(result: Any, args: Args, kwargs: Kwargs) -> int | None:
    return _length(args[0].metadata.tensors[argument(args, kwargs, 1, "name")])


def _read_facts(args: Args, kwargs: Kwargs) -> dict[str, Any]:
    descriptor = getattr(args[0], "fd", None)
    if not isinstance(descriptor, int) or descriptor < 0:
        return {}
    found = {names.READ_METHOD: method(descriptor)}
    around = recorder.same(recorder.frame(), names.DESERIALIZE)
    if around is not None:
        around.attributes |= found  # bytes that come past the page cache do not say whether it was cold
    return found


def _read(module: str, attribute: str, why: str, **more: Any) -> Target:
    return Target(
        module=f"fastsafetensors.copier.{module}",
        attribute=attribute,
        kind=Kind.FINE,
        stage=names.READ,
        facts=_read_facts,
        why=why,
        **more,
    )


def _reads() -> Iterator[Target]:
    for module, kind in _COPIERS.items():
        yield _read(module, f"{kind}.submit_io", "begins to read a file")
        yield _read(module, f"{kind}.wait_io", "waits until a file is read", size=_read_size)
        if module in _BY_TENSOR:
            yield _read(module, f"{kind}.wait_tensor", "waits until a tensor is read", size=_tensor_size, waits=True)


ROWS = (
    Target(
        module="fastsafetensors.common",
        attribute="SafeTensorsMetadata.from_file",
        kind=Kind.FINE,
        stage=names.DESERIALIZE,
        path=lambda args, kwargs: argument(args, kwargs, 1, "filename"),
        facts=lambda args, kwargs: {names.FORMAT: "safetensors"},
        why="the header of a file",
    ),
    Target(
        module="fastsafetensors.loader",
        attribute="BaseSafeTensorsFileLoader.copy_files_to_device",
        stage=names.DESERIALIZE,
        describe=_describe_copy,
        measure=_measure_copy,
        why="reads all files that were named, in each of its ways of loading",
    ),
    Target(
        module="fastsafetensors.file_buffer",
        attribute="FilesBufferOnDevice.get_tensor",
        kind=Kind.FINE,
        stage=names.DESERIALIZE,
        alone=lambda args, kwargs: False,
        label=lambda args, kwargs: str(argument(args, kwargs, 1, "tensor_name")),
        facts=lambda args, kwargs: {names.FORMAT: "safetensors"},
        why="a view on what was read: the load knows its tensors by it",
    ),
    *_reads(),
    Target(
        module="fastsafetensors.parallel_loader",
        attribute="PipelineParallel.iterate_weights",
        kind=Kind.FINE,
        stage=names.DESERIALIZE,
        path=lambda args, kwargs: next(iter(args[0].hf_weights_files), None),
        thing=lambda result: result[1],
        facts=lambda args, kwargs: {names.FORMAT: "safetensors"},
        why="tensor by tensor, while another thread reads the next files",
    ),
)
