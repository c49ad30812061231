"""Weights beside an ONNX file: found by what the file says, and nothing is found in what is no such file."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from loadspan.instrument.targets import onnx_files

if TYPE_CHECKING:
    from pathlib import Path


def _number(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + _number(value >> 7) if value > 0x7F else bytes([value])


def _field(number: int, data: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(data)) + data


def _initializer(name: str, data: bytes = b"", **said: str) -> bytes:
    """A TensorProto: two dimensions, a type, a name, its data or where that is."""
    entries = b"".join(_field(13, _field(1, key.encode()) + _field(2, value.encode())) for key, value in said.items())
    return b"\x08\x10\x08\x20\x10\x01" + _field(8, name.encode()) + (_field(9, data) if data else entries + b"\x70\x01")


def _model(*initializers: bytes) -> bytes:
    """A ModelProto: a version, who made it, and a graph with a node, a name and the initializers."""
    graph = _field(1, b"\x0a\x01x\x22\x06MatMul") + _field(2, b"chain") + b"".join(_field(5, one) for one in initializers)
    return b"\x08\x0a" + _field(2, b"a maker") + _field(7, graph) + _field(8, b"\x10\x11")


def _beside(folder: Path, *initializers: bytes) -> dict[str, int]:
    (folder / "model.onnx").write_bytes(_model(*initializers))
    return onnx_files.beside(str(folder / "model.onnx"))


def test_what_initializers_have_in_other_files_is_counted_by_file(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(10_000))
    (tmp_path / "rest.bin").write_bytes(bytes(500))
    found = _beside(
        tmp_path,
        _initializer("a", location="weights.bin", offset="0", length="4000"),
        _initializer("b", data=bytes(200_000)),  # in the file itself, and longer than what is read at once
        _initializer("c", location="weights.bin", offset="4096", length="5000"),
        _initializer("d", location="rest.bin", offset="100"),
    )
    assert found == {str(tmp_path / "weights.bin"): 9000, str(tmp_path / "rest.bin"): 400}


def test_a_file_that_is_not_there_or_too_short_has_no_more_than_it_has(tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(bytes(10))
    gone, short = _initializer("a", location="gone.bin", length="7"), _initializer("b", location="short.bin", length="7000000")
    assert _beside(tmp_path, gone, short, _initializer("c", location="short.bin", offset="11")) == {str(tmp_path / "short.bin"): 10}


def test_a_model_with_all_its_weights_has_none_beside_it(tmp_path: Path) -> None:
    assert _beside(tmp_path, _initializer("a", data=bytes(100))) == {}


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"ORTM" * 50, b"\x3a", b"\x3a\xff\xff\xff\xff\xff\x7f", b"\x0b\x0c"], ids=repr)
def test_what_is_no_model_has_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    assert onnx_files.beside(str(tmp_path / "model.onnx")) == {}


def test_a_damaged_model_is_walked_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(100))
    whole = _model(*(_initializer(f"{number}", location="weights.bin", length="50") for number in range(5)))
    chance = random.Random(3)  # noqa: S311 - the same damage each time
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "model.onnx").write_bytes(damaged[: chance.randrange(len(damaged) + 1)])
        assert sum(onnx_files.beside(str(tmp_path / "model.onnx")).values()) <= 6 * 100


def test_a_model_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        onnx_files.beside(str(tmp_path / "model.onnx"))
