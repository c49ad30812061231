"""boto3: objects of a store that runs in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from case import Case, Truth

if TYPE_CHECKING:
    from collections.abc import Iterator

_SERVER = Path(__file__).parents[2] / "objectserver.py"
_TENSORS, _SHAPE = 24, (1024, 1024)


@contextlib.contextmanager
def store(folder: Path) -> Iterator[str]:
    """A store of the files below *folder*, at 100 MB/s for each request."""
    import os

    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    process = subprocess.Popen([sys.executable, "-I", "-S", str(_SERVER), str(folder), "100e6"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout:
            url = process.stdout.readline().strip()
        yield url
    finally:
        process.terminate()
        process.wait()


def write(folder: Path) -> Truth:
    """A bucket with a model of 100 MB."""
    import torch
    from safetensors.torch import save_file

    (folder / "bucket").mkdir()
    path = folder / "bucket" / "model.safetensors"
    save_file({f"p{index}": torch.full(_SHAPE, index / 8) for index in range(_TENSORS)}, path)
    return {"download": path.stat().st_size, "deserialize": _TENSORS * 4 * 1024 * 1024}


def ordered(state: Any) -> Any:
    """Tensors by name: of bytes in memory safetensors gives them in another order each time."""
    return dict(sorted(state.items()))


def _client(url: str) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=url)


def _file(folder: Path) -> Any:
    from safetensors.torch import load_file

    with store(folder) as url:
        client, path = _client(url), folder.parent / "model.safetensors"
        client.download_file("bucket", "model.safetensors", str(path))
        return load_file(path)


def _memory(folder: Path) -> Any:
    import io

    from safetensors.torch import load

    with store(folder) as url:
        client, file = _client(url), io.BytesIO()
        client.download_fileobj("bucket", "model.safetensors", file)
        return ordered(load(file.getvalue()))


def _body(folder: Path) -> Any:
    from safetensors.torch import load

    with store(folder) as url:
        client = _client(url)
        return ordered(load(client.get_object(Bucket="bucket", Key="model.safetensors")["Body"].read()))


def _missing(folder: Path) -> Any:
    with store(folder) as url:
        _client(url).download_file("bucket", "none.safetensors", str(folder.parent / "none"))


NEEDS = ("boto3", "safetensors", "torch")
STAGES = ("download", "deserialize")
CASES = [
    Case(name="download_file", library="boto3", write=write, load=_file, loader="boto3", stages=STAGES, needs=NEEDS),
    Case(name="download_fileobj", library="boto3", write=write, load=_memory, loader="boto3", stages=STAGES, needs=NEEDS),
    Case(name="get_object, its body", library="boto3", write=write, load=_body, loader="botocore", stages=STAGES, needs=NEEDS),
    Case(
        name="download_file, no such object",
        library="boto3",
        write=write,
        load=_missing,
        loader="boto3",
        stages=("download",),
        sizes=lambda _: {},
        raises="ClientError",
        needs=NEEDS,
    ),
]
