"""What outlives a load: nothing that only a garbage collection would free, no path that was not to be told, no byte of it untold."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import loadspan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from recorded import Spans

BIG = 20 << 20


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("spans", "no_collection")
def test_a_program_that_collects_no_garbage_keeps_no_load(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file
    from torch import zeros

    save_file({f"t{number}": zeros(64, 64) for number in range(5)}, tmp_path / "model.safetensors")
    frames: list[weakref.ref[Any]] = []
    for _ in range(5):
        with loadspan.load("model") as load, safe_open(tmp_path / "model.safetensors", "pt") as file:
            frames.append(weakref.ref(load._frame))  # noqa: SLF001 - what is kept is the point
            for key in file.keys():  # noqa: SIM118 - no mapping
                file.get_tensor(key)
            with loadspan.stage("convert"):
                pass
        del load
    assert [frame for frame in frames[:-1] if frame() is not None] == []


def test_threads_that_read_at_once_as_the_process_ends_lose_no_byte(spans: Spans, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(4 * BIG))
    start = threading.Barrier(4)

    def read(part: int) -> None:
        start.wait()
        with path.open("rb") as file:
            file.seek(part * BIG)
            file.read(BIG)

    threads = [threading.Thread(target=read, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(load["attributes"]["loadspan.size"] for load in spans.loads()) == 4 * BIG


def texts(value: Any) -> Iterator[str]:
    """Every text in a tree of spans."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(key)
            yield from texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts(inner)


@pytest.mark.parametrize("full_paths", [True, False])
def test_basenames_are_all_that_is_told_of_paths_where_that_was_asked_for(spans: Spans, tmp_path: Path, *, full_paths: bool) -> None:
    folder = tmp_path / "secret-customer"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(bytes(BIG))
    spans.set(full_paths=full_paths)

    def failing(path: str) -> Callable[[], object]:
        return lambda: open(path, "rb")  # noqa: PTH123 - the call that hosts make

    with loadspan.load("model", path=folder):
        (folder / "weights.bin").read_bytes()
        for fail in (failing(str(folder / "missing.bin")), failing(str(folder / "weights.bin" / "inside"))):
            with pytest.raises(OSError, match="secret-customer"), loadspan.stage("read", path=folder / "missing.bin"):
                fail()
    told = "\n".join(texts(spans.load()))
    assert "weights.bin" in told
    assert "missing.bin" in told
    assert ("secret-customer" in told) is full_paths
