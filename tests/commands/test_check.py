"""`loadspan check`: on this machine, on recorded ones, as an ordinary user, without /sys; its errors, its capture, its JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import machines
from loadspan.commands import main

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
USER = 65534


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ceilings that somebody measured on the machine of the day."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A model folder on this machine's disk."""
    folder = tmp_path / "llama"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"model-{number}.safetensors").write_bytes(os.urandom(1 << 20))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def two_sockets(tmp_path: Path) -> Path:
    machines.unpack("two-sockets", tmp_path / "two-sockets")
    return tmp_path / "two-sockets"


def check(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["check", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def facts(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    code, out, err = check(capsys, *words, "--json")
    assert (code, err) == (0, "")
    found: dict[str, object] = json.loads(out)
    return found


def test_this_machine_is_described_without_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(capsys)
    assert (code, err) == (0, "")
    assert f"Linux {os.uname().release}" in out
    assert re.search(r"^memory +\d", out, re.MULTILINE)
    assert "devices" in out


def test_a_model_folder_is_counted_and_found_in_the_page_cache_it_was_just_written_to(
    capsys: pytest.CaptureFixture[str], models: Path
) -> None:
    (place,) = facts(capsys, models)["paths"]  # type: ignore[misc]
    assert (place["path"], place["folder"], place["files"], place["size"]) == (str(models), True, 2, 2 << 20)
    assert place["formats"] == {"safetensors": 2}
    (storage,) = place["storage"]
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    assert [storage["mountpoint"], storage["filesystem"]] in [fields[1:3] for fields in lines]
    assert os.path.ismount(storage["mountpoint"])
    assert storage.get("cached", 1.0) == 1.0


def test_a_file_that_was_dropped_from_the_page_cache_is_cold(capsys: pytest.CaptureFixture[str], models: Path) -> None:
    for path in models.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    found = facts(capsys, models)
    (storage,) = found["paths"][0]["storage"]  # type: ignore[index]
    if storage.get("kind") == "memory" or "cached" not in storage:
        pytest.skip("the page cache of this filesystem tells nothing")
    assert storage["cached"] == 0.0
    assert "cold_cache" in [remark["id"] for remark in found["remarks"]]  # type: ignore[attr-defined]


def test_a_file_alone_and_a_link_to_it(capsys: pytest.CaptureFixture[str], models: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(models / "model-1.safetensors")
    (place,) = facts(capsys, tmp_path / "link")["paths"]  # type: ignore[misc]
    assert (place["resolved"], place["folder"], place["size"]) == (str(models / "model-1.safetensors"), False, 1 << 20)
    assert "  path  " in check(capsys, tmp_path / "link")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/no/such/path"], "/no/such/path: no such file or directory. Give a file or folder with weights."),
        (["--device", "tpu v5"], "tpu v5: no device. Give one as torch names it (cuda:0), its label (GPU0) or its PCI address."),
        (["--device", "cuda:-1"], "cuda:-1: no device."),
        (["--device", "cpu"], "cpu: no device."),
        (["--root", "/no/such/file"], "/no/such/file: no such file or directory. Give a folder that holds sys and proc, or a FILE.tar.gz."),
        (["--root", ""], "--root: names nothing. Give it a value, or leave it out."),
        (["--save", ""], "--save: names nothing. Give it a value, or leave it out."),
        (["--root", "."], ".: neither sys nor proc in it."),
        (["--root", "text"], "text: not a .tar.gz. Give a FILE.tar.gz written by loadspan check --save, or a folder"),
        (["--root", "pipe"], "pipe: neither a folder nor a file."),
        (["--save", "text"], "text: exists already."),
        (["--save", "no/such/folder/x"], "no/such/folder/x: no such file or directory."),
        (["--save", "x", "--root", "."], "--save: not together with --root"),
        (["--measure", "--root", "."], "--measure: not together with --root"),
        (["--scratch", "."], "--scratch: nothing is measured without --measure."),
        (["--measure", "--scratch", "text"], "text: not a folder."),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text").write_text("not an archive")
    os.mkfifo("pipe")
    code, out, err = check(capsys, *words)
    assert code == 2
    assert err.startswith(f"loadspan check: {said}")
    assert err.count("\n") == 1
    assert out == "" or "no/such/folder" in said
    assert Path("text").read_text() == "not an archive"


def test_a_device_is_named_as_torch_does_by_label_or_by_address(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    machines.unpack("desktop", tmp_path / "m")
    for name in ("cuda:0", "cuda", "GPU1", "gpu1", "0000:01:00.0", "01:00.0"):
        (device,) = facts(capsys, "--root", tmp_path / "m", "--device", name)["devices"]  # type: ignore[misc]
        assert device["pci_address"] == "0000:01:00.0"


def test_a_device_that_is_not_there_or_not_certain_is_refused_with_those_that_are(
    capsys: pytest.CaptureFixture[str], two_sockets: Path, tmp_path: Path
) -> None:
    machines.unpack("desktop", tmp_path / "m")
    code, _, err = check(capsys, "--root", tmp_path / "m", "--device", "cuda:3")
    assert (code, err) == (
        2,
        "loadspan check: cuda:3: there is no such device. There is GPU0 (0000:00:02.0), GPU1 (0000:01:00.0, cuda:0).\n",
    )
    code, _, err = check(capsys, "--root", two_sockets, "--device", "cuda:1")
    assert code == 2
    assert "cuda:1: which one that is cannot be told. Name it by label or PCI address. There is GPU0 (0000:18:00.0), GPU1" in err
    assert check(capsys, "--device", "GPU99")[0] == 2


def test_a_recorded_machine_is_drawn_as_topo_does_and_this_one_is_not_asked(
    capsys: pytest.CaptureFixture[str], two_sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, out, _ = check(capsys, "--root", two_sockets, "--width", 120)
    assert code == 0
    assert re.search(r"^  GPU4  SYS   SYS   SYS   SYS   X     PIX   NODE  NODE  32-63  1 ", out, re.MULTILINE)
    assert os.uname().release not in out
    assert "this process may not use it" not in out
    assert "Nothing suspicious." in out


def test_a_path_of_a_recorded_machine_need_not_exist_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    machines.unpack("storage-luks", tmp_path / "m")
    code, out, _ = check(capsys, "--root", tmp_path / "m", "/home/alice/model.safetensors")
    assert code == 0
    assert "nvme0n1p2 > dm-crypt > dm-lvm" in out
    code, _, err = check(capsys, "--root", tmp_path / "m", "alice")
    assert (code, "Give an absolute path" in err) == (2, True)


def test_a_saved_machine_says_the_same_elsewhere(capsys: pytest.CaptureFixture[str], models: Path, tmp_path: Path) -> None:
    archive = tmp_path / "machine.tar.gz"
    code, out, err = check(capsys, models, "--save", archive, "--width", 100)
    assert (code, err) == (0, "")
    told, _, saved = out.partition("\nsaved: ")
    assert "proc/self/" in saved
    assert "which paths were asked about" in saved
    code, again, _ = check(capsys, "--root", archive, "--width", 100)
    assert (code, again.splitlines()[1:]) == (0, told.rstrip("\n").splitlines())
    shutil.rmtree(models)
    assert check(capsys, "--root", archive, models, "--width", 100)[1] == again
    code, _, err = check(capsys, "--root", archive, "/other")
    assert (code, err) == (2, f"loadspan check: /other: not in {archive}. It has {models}.\n")


def test_saving_keeps_the_json_apart_and_names_no_other_variables_or_hosts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    code, out, err = check(capsys, "--save", tmp_path / "m.tar.gz", "--json")
    assert (code, json.loads(out)["version"]) == (0, 1)
    assert "saved: " in err
    with tarfile.open(tmp_path / "m.tar.gz") as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian 12 has Python 3.11.2, which knows none
        packed.extractall(tmp_path / "out")  # noqa: S202 - filtered, and our own
    everything = "\n".join(path.read_text("utf-8", "replace") for path in (tmp_path / "out").rglob("*") if path.is_file())
    host = os.uname().nodename
    for secret in ("hunter2", "SECRET_TOKEN", "8932f937-d72c", *([host] if len(host) > 4 else [])):
        assert secret not in everything
    manifest = json.loads((tmp_path / "out" / "loadspan.json").read_text())
    assert manifest["environment"]["CUDA_VISIBLE_DEVICES"].startswith("GPU-")


def test_json_names_only_documented_fields(capsys: pytest.CaptureFixture[str], models: Path, two_sockets: Path) -> None:
    documented = (ROOT / "docs" / "check.md").read_text()

    def names(part: object) -> set[str]:
        if isinstance(part, dict):
            free = {"formats", "options", "relations", "distances"}  # objects with names of their own
            return set(part) | {name for key, value in part.items() if key not in free for name in names(value)}
        return {name for item in part for name in names(item)} if isinstance(part, list) else set()

    used = names(facts(capsys, models)) | names(facts(capsys, "--root", two_sockets))
    assert len(used) > 30
    assert [name for name in sorted(used) if f"| `{name}` |" not in documented] == []


def alone(*words: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`loadspan check` in a process of its own, by way of *prefix*."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "HOME": "/nonexistent"}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "loadspan", "check", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd="/",
        timeout=120,
    )


def can(*prefix: str) -> bool:
    return bool(shutil.which(prefix[0])) and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0


AS_NOBODY = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
NOBODY_CAN = can(*AS_NOBODY) and not alone(prefix=AS_NOBODY).returncode
"""Whether there is another user to become, who may read this project and this Python: below root's home nobody else may."""
IN_NAMESPACE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork")  # a /proc of its own has options of its own


@pytest.fixture
def outside(models: Path) -> Iterator[Path]:
    """The model folder where other users can get at it, which they cannot below pytest's own."""
    with tempfile.TemporaryDirectory(prefix="loadspan-") as folder:
        Path(folder).chmod(0o755)
        yield shutil.copytree(models, Path(folder) / "llama")


@pytest.mark.skipif(not NOBODY_CAN, reason="needs the right to become another user, and one who can read this project and this Python")
def test_an_ordinary_user_is_told_what_he_may_know(outside: Path) -> None:
    done = alone(outside, "--json", prefix=AS_NOBODY)
    assert (done.returncode, done.stderr) == (0, "")
    (place,) = json.loads(done.stdout)["paths"]
    assert (place["files"], place["size"]) == (2, 2 << 20)
    # Whose files they are not is not told what of them is cached.
    assert "cached" not in place["storage"][0]


def hidden(*commands: str, then: tuple[str, ...] = ()) -> tuple[str, ...]:
    """A prefix that runs in a mount namespace after *commands*."""
    return (*IN_NAMESPACE, "sh", "-c", " && ".join(commands) + ' && exec "$@"', "sh", *then)


@pytest.mark.skipif(not can(*IN_NAMESPACE), reason="needs the right to mount")
@pytest.mark.parametrize(
    "commands",
    [
        ("umount -l /sys",),
        ("mount -t tmpfs none /sys",),
        ("mount -t tmpfs none /sys/bus", "mount -t tmpfs none /sys/devices"),
        ("mount -t proc -o hidepid=2 proc /proc",),
        ("mount -t tmpfs none /sys", "mount -t tmpfs none /proc"),
    ],
    ids=["no sys", "empty sys", "no pci", "hidepid", "no proc"],
)
def test_what_is_hidden_is_left_out_and_nothing_else_happens(commands: tuple[str, ...], outside: Path) -> None:
    for then in ((), AS_NOBODY) if NOBODY_CAN else ((),):
        prefix = hidden(*commands, then=then)
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this mount is not allowed here")
        done = alone(outside, prefix=prefix)
        assert (done.returncode, done.stderr) == (0, ""), then
        assert "2.10 MB  2 files: 2 safetensors" in done.stdout
        assert not re.search(r"None|N/A|nan|Traceback", done.stdout)


@pytest.mark.skipif(not can(*IN_NAMESPACE), reason="needs the right to mount")
def test_files_of_an_overlay_are_followed_to_their_disk_and_a_capture_knows_it(outside: Path) -> None:
    top = outside.parent
    for name in ("upper", "work", "mnt"):
        (top / name).mkdir()
    mount = f"mount -t overlay overlay -o lowerdir={outside},upperdir={top}/upper,workdir={top}/work {top}/mnt"
    if subprocess.run([*hidden(mount), "true"], capture_output=True, check=False).returncode:
        pytest.skip("no overlay here")
    done = alone(f"{top}/mnt", "--json", "--save", f"{top}/m.tar.gz", prefix=hidden(mount))
    assert done.returncode == 0
    there = json.loads(done.stdout)
    (storage,) = there["paths"][0]["storage"]
    assert (storage["filesystem"], storage["kind"]) == ("overlay", "overlay")
    again = json.loads(alone("--root", f"{top}/m.tar.gz", "--json").stdout)
    assert again == {**there, "captured": True}
