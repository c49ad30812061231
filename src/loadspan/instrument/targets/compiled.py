"""
torch: compiled and exported models, and the caches of the compiler.

A model is compiled at its first calls. What is patched runs once for each graph, never at a call that finds its graph: inference pays
nothing, and Dynamo, which runs these functions itself, never traces them.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.described import model_name
from loadspan.instrument.destination import arrived, named, settled
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import tensors
from loadspan.instrument.targets.roots import inside, outermost

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_AUTOGRAD = "torch._functorch._aot_autograd.autograd_cache"
_INDUCTOR = "torch._inductor.codecache"


# Packages


def _describe_root(load: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    source = argument(args, kwargs, 0, "f", argument(args, kwargs, 0, "path"))
    load.known_as(model_name(source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)))  # type: ignore[union-attr] # a root


def _describe_package(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    source = argument(args, kwargs, 0, "f", argument(args, kwargs, 0, "path"))
    if isinstance(source, io.BytesIO):
        stage.things = [source]
        stage.size = source.getbuffer().nbytes
        stage.attributes[names.READ_METHOD] = "memory"
    else:
        path = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
        stage.file(path)
        if isinstance(path, str | bytes | os.PathLike) and os.path.isfile(path):  # noqa: PTH113 - no Path object on the recording side
            stage.size = os.stat(path).st_size  # noqa: PTH116 - as above
    stage.attributes[names.FORMAT] = "pt2"


def _describe_member(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.file(args[0].filename, "zip")


def _measure_member(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    if stage.size is None:  # else what was read for it was counted
        stage.size = len(result)


def _describe_script(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    _describe_package(stage, args, kwargs)
    stage.size = None  # its weights, which are known afterwards
    stage.attributes[names.FORMAT] = "torchscript"
    stage.destination = settled(named(argument(args, kwargs, 1, "map_location")))  # type: ignore[union-attr] # rows of this file are stages


def _measure_script(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    found = list(tensors.find(result))
    stage.outputs = [result]
    if found:
        stage.size = tensors.unique_size(found)
        stage.destination = arrived(stage.destination, found[0].device)  # type: ignore[union-attr] # as above


# Caches


def _describe_artifacts(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    artifacts = argument(args, kwargs, 0, "serialized_artifacts")
    stage.things = [artifacts]
    stage.size = len(artifacts)


def _measure_artifacts(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage.attributes[names.CACHE_HIT] = result is not None


def _measure_lookup(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    """`(graph, pickled, information)` of the first entry whose guards hold."""
    graph, content = result[0], result[1]
    stage.attributes[names.CACHE_HIT] = graph is not None
    if content is not None:
        stage.size = len(content)


def _measure_found(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    """`(graph, information)`; the bytes are told by the lookup inside."""
    stage.attributes[names.CACHE_HIT] = result[0] is not None


def _describe_write(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    _quiet(stage, args, kwargs)
    stage.size = len(argument(args, kwargs, 1, "content"))


def _quiet(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage.opens = False  # type: ignore[union-attr] # rows of this file are stages; a cache alone is no load


def _cache(module: str, attribute: str, why: str, describe: Any = _quiet, measure: Any = None) -> Target:
    return Target(module=module, attribute=attribute, stage=names.CACHE, describe=describe, measure=measure, why=why)


# Compilation


def _compiles(args: Args, kwargs: Kwargs) -> bool:
    """Whether a frame is compiled to run, not exported."""
    return not argument(args, kwargs, 7, "export")


def _describe_compile(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    variables = argument(args, kwargs, 2, "locals")
    if isinstance(variables, dict):  # `self` of a module's method; `fn` of the wrapper that Dynamo puts around modules of torch
        stage.module = next((variables[name] for name in ("self", "fn") if hasattr(variables.get(name), "named_parameters")), None)


ROWS = (
    Target(
        module="torch.export",
        attribute="load",
        kind=Kind.ROOT,
        describe=_describe_root,
        when=outermost("torch"),
        why="an exported program and its weights",
    ),
    Target(
        module="torch._inductor",
        attribute="aoti_load_package",
        kind=Kind.ROOT,
        describe=_describe_root,
        when=outermost("torch"),
        why="a model compiled ahead of time",
    ),
    Target(
        module="torch._inductor.package.package",
        attribute="load_package",
        stage=names.DESERIALIZE,
        describe=_describe_package,
        why="one model of a package, by its name",
    ),
    Target(
        module="torch.export.pt2_archive._package",
        attribute="load_pt2",
        stage=names.DESERIALIZE,
        describe=_describe_package,
        why="the archive of both",
    ),
    Target(
        module="torch._export.serde.serialize",
        attribute="deserialize",
        stage=names.DESERIALIZE,
        why="an exported program in the archive of older releases",
    ),
    Target(
        module="zipfile",
        attribute="ZipFile.read",
        stage=names.READ,
        when=inside("torch"),
        describe=_describe_member,
        measure=_measure_member,
        why="older releases read that archive in Python, which puts together and checks what it has read",
    ),
    Target(
        module="torch.jit._serialization",
        attribute="load",
        aliases=("torch.jit:load",),
        stage=names.DESERIALIZE,
        describe=_describe_script,
        measure=_measure_script,
        why="a TorchScript module: code and weights",
    ),
    Target(
        module="torch.compiler",
        attribute="load_cache_artifacts",
        stage=names.CACHE,
        describe=_describe_artifacts,
        measure=_measure_artifacts,
        why="what another process compiled, put where the compiler looks",
    ),
    Target(
        module="torch._dynamo.convert_frame",
        attribute="_compile",
        stage=names.COMPILE,
        describe=_describe_compile,
        when=_compiles,
        why="one frame to a graph, and that to code: once for each, with its guards",
    ),
    _cache(_INDUCTOR, "GuardedCache.find_guarded_entry", "a lookup in the caches of graphs, on disk or remote", measure=_measure_lookup),
    _cache(_INDUCTOR, "FxGraphCache.load_with_key", "a graph that inductor compiled, found and loaded", measure=_measure_found),
    _cache(_INDUCTOR, "FxGraphCache._write_to_local_cache", "a graph that was compiled is kept", _describe_write),
    _cache(_AUTOGRAD, "AOTAutogradCache.try_load", "what was compiled around it, found and loaded", measure=_measure_found),
    _cache(_AUTOGRAD, "AOTAutogradCache._write_to_local_cache", "the same, kept", _describe_write),
)
