"""fsspec: files of S3 (s3fs) and of a web server, whole, opened, and through its local cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from case import Case

from cases.s3 import ordered, store, write

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "bucket/model.safetensors"


def _s3(url: str) -> Any:
    import fsspec

    return fsspec.filesystem("s3", endpoint_url=url)


def _get(folder: Path) -> Any:
    from safetensors.torch import load_file

    with store(folder) as url:
        system, path = _s3(url), folder.parent / "model.safetensors"
        system.get(_NAME, str(path))
        return load_file(path)


def _cat(folder: Path) -> Any:
    from safetensors.torch import load

    with store(folder) as url:
        return ordered(load(_s3(url).cat(_NAME)))


def _open(folder: Path) -> Any:
    from safetensors.torch import load

    with store(folder) as url, _s3(url).open(_NAME, "rb") as file:
        return ordered(load(file.read()))


def _http(folder: Path) -> Any:
    import fsspec
    from safetensors.torch import load

    with store(folder) as url, fsspec.open(f"{url}/{_NAME}", "rb") as file:
        return ordered(load(file.read()))


def _cached(folder: Path) -> Any:
    import tempfile

    import fsspec
    from safetensors.torch import load

    with store(folder) as url, tempfile.TemporaryDirectory(dir=folder.parent) as cache:
        options = {"cache_storage": cache, "same_names": True}
        with fsspec.open(f"simplecache::{url}/{_NAME}", "rb", simplecache=options) as file:
            file.read()
        with fsspec.open(f"simplecache::{url}/{_NAME}", "rb", simplecache=options) as file:
            return ordered(load(file.read()))


def _case(name: str, load: Any, needs: tuple[str, ...], **more: Any) -> Case:
    known: dict[str, Any] = {"library": "fsspec", "write": write, "loader": "fsspec", "stages": ("download", "deserialize")}
    return Case(name=name, load=load, needs=("fsspec", "safetensors", "torch", *needs), **(known | more))


CASES = [
    _case("s3, get", _get, ("s3fs",)),
    _case("s3, cat", _cat, ("s3fs",)),
    _case("s3, open and read", _open, ("s3fs",)),
    _case("http, open and read", _http, ("aiohttp",)),
    _case(
        "simplecache, twice",
        _cached,
        ("aiohttp",),
        stages=("cache", "download", "read", "deserialize"),
    ),
]
