"""What is remembered of a file from the moment at which it was about to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan.facts import files

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_has_its_size_and_its_place_whatever_link_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(range(256)) * 64)
    (tmp_path / "model.safetensors").symlink_to("blob")
    found = files.meet(str(tmp_path / "model.safetensors"))
    assert (found.size, found.real) == (1 << 14, str(tmp_path.resolve() / "blob"))
    assert found == files.seen(str(tmp_path / "model.safetensors"))


def test_a_hole_is_not_on_the_storage(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 20)
    assert (files.meet(str(tmp_path / "hole")).size, files.meet(str(tmp_path / "hole")).whole) == (1 << 20, False)


def test_the_size_of_a_met_file_is_known_without_asking_again(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 5000)
    assert files.size(str(path)) is None
    files.meet(str(path))
    path.unlink()
    assert (files.size(str(path)), files.seen(str(path)).size) == (5000, None)


def test_what_is_no_file_has_no_size(tmp_path: Path) -> None:
    for path in (str(tmp_path), str(tmp_path / "missing"), "/dev/null", "a\0b"):
        assert (files.meet(path).size, files.size(path), files.meet(path).whole) == (None, None, False)


def test_more_files_than_are_remembered_are_met_all_the_same(tmp_path: Path) -> None:
    for name in ("first", "last"):
        (tmp_path / name).write_bytes(b"x")
    first, last = str(tmp_path / "first"), str(tmp_path / "last")
    files.meet(first)
    for number in range(4000):
        files.meet(f"{tmp_path}/{number}")
    assert files.meet(last).size == files.size(last) == files.size(first) == 1
    for number in range(1000):
        files.meet(f"{tmp_path}/more-{number}")
    assert (files.size(last), files.size(first)) == (1, None)
