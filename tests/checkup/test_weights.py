"""Which files of a path count."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from loadspan.checkup import weights

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def found(path: Path) -> weights.Weights:
    answer = weights.find(str(path))
    assert answer is not None
    return answer


def test_a_file_is_itself_whatever_its_name(tmp_path: Path) -> None:
    one = found(write(tmp_path / "notes.txt", 7))
    assert (one.folder, one.size, one.formats, one.complete) == (False, 7, {"other": 1}, True)


def test_of_a_folder_weights_and_big_files_count_and_small_other_files_do_not(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors", "sub/adapter.bin", "sub/deep/x.GGUF", "base.safetensors.enc", "y.bin.age"):
        write(tmp_path / name)
    write(tmp_path / "config.json")
    write(tmp_path / "blob", 16 << 20)
    here = found(tmp_path)
    assert here.formats == {"safetensors": 2, "bin": 1, "gguf": 1, "safetensors.enc": 1, "bin.age": 1, "other": 1}
    assert here.size == 60 + (16 << 20)


def test_where_nothing_looks_like_weights_all_files_count(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", 3)
    assert (found(tmp_path).size, found(tmp_path).formats) == (3, {"other": 1})
    (tmp_path / "empty").mkdir()
    assert found(tmp_path / "empty").files == ()


def test_the_cache_of_hugging_face_counts_each_file_once_and_by_its_name(tmp_path: Path) -> None:
    blob = write(tmp_path / "hub/models--a--b/blobs/1f2e", 100)
    snapshot = tmp_path / "hub/models--a--b/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/1f2e")
    (snapshot / "lost.safetensors").symlink_to("../../blobs/none")
    for path in (tmp_path, snapshot):
        here = found(path)
        assert [(file.path, file.size, file.format) for file in here.files] == [(str(blob), 100, "safetensors")]
        assert here.broken == 1


def test_links_in_a_circle_and_hard_links_count_once(tmp_path: Path) -> None:
    one = write(tmp_path / "m/x.pt")
    os.link(one, tmp_path / "m/y.pt")
    (tmp_path / "m/again").symlink_to("..")
    assert len(found(tmp_path).files) == 1
    assert found(tmp_path).complete


def test_a_path_that_is_not_there_is_none_and_devices_and_pipes_are_no_weights(tmp_path: Path) -> None:
    assert weights.find(str(tmp_path / "missing")) is None
    assert weights.find("a\0b") is None
    os.mkfifo(tmp_path / "x.safetensors")
    assert found(tmp_path).files == ()
    assert found(tmp_path / "x.safetensors").files == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "x.pt").chmod(0)
    assert [file.readable for file in found(tmp_path).files] == [False]


def test_a_huge_folder_is_looked_at_in_part_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        write(tmp_path / f"{number}.pt")
    monkeypatch.setattr(weights, "_MOST", 20)
    assert (len(found(tmp_path).files), found(tmp_path).complete) == (20, False)
    deep = tmp_path / "d"
    for _ in range(18):
        deep = deep / "d"
    write(deep / "x.pt")
    assert not found(tmp_path / "d").complete
