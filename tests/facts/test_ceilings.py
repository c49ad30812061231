"""Ceilings are kept from one run to the next, by place; whatever a file of them holds, reading it harms nobody."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadspan.errors import UserError
from loadspan.facts import ceilings
from loadspan.facts.ceilings import Ceilings, Device, Mount, Processor
from loadspan.facts.rates import Rate

DISK = Mount("ext4", "/models", "/dev/nvme0n1")
CARD = Device("cuda", "NVIDIA H200", "0000:19:00.0")
DIRECT = Rate("read direct", 1 << 30, 0.5, 4, 1 << 20, verified=True, source="storage")
CACHED = Rate("read buffered", 1 << 30, 0.1, 1, 1 << 20, verified=False, source="page cache", note="only 3 % of it came from storage")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "ceilings.json"


def test_what_is_saved_is_read_again_where_it_belongs(path: Path) -> None:
    ceilings.save([DIRECT, CACHED], DISK, {"file": "20.0 GB"}, path)
    ceilings.save([Rate("copy to device, pinned", 1 << 30, 0.02)], CARD, path=path)
    ceilings.save([Rate("decrypt AES-256-GCM, cryptography", 1 << 30, 0.2)], Processor(), path=path)
    kept = ceilings.read(path)
    assert [entry.rate for entry in kept.for_mount(DISK)] == [DIRECT, CACHED]
    assert dict(kept.for_mount(DISK)[0].conditions) | {"file": "20.0 GB", "kernel": os.uname().release} == dict(
        kept.for_mount(DISK)[0].conditions
    )
    assert [entry.rate.rate for entry in kept.for_device(CARD)] == [(1 << 30) / 0.02]
    assert len(kept.for_processor()) == 1
    assert kept.for_mount(Mount("ext4", "/", "/dev/nvme0n1")) == kept.for_device(Device("cuda")) == ()


def test_the_page_cache_is_no_ceiling_of_a_storage(path: Path) -> None:
    ceilings.save([CACHED, DIRECT], DISK, path=path)
    best = ceilings.best(ceilings.read(path).for_mount(DISK), "read")
    assert best is not None
    assert best.rate == DIRECT
    assert ceilings.best((), "read") is None


def test_what_the_page_cache_gave_does_not_replace_what_the_storage_gave(path: Path) -> None:
    of_storage = Rate("read buffered", 1 << 30, 1.0, 1, 1 << 20, verified=True, source="storage")
    for rate in (of_storage, CACHED, CACHED):
        ceilings.save([rate], DISK, path=path)
    assert {entry.rate for entry in ceilings.read(path).for_mount(DISK)} == {of_storage, CACHED}
    best = ceilings.best(ceilings.read(path).for_mount(DISK), "read buffered")
    assert best is not None
    assert best.rate == of_storage


def test_the_newer_of_two_stays_and_other_hosts_keep_theirs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings.save([DIRECT], DISK, path=path)
    ceilings.save([Rate("read direct", 5, 1.0, 4), Rate("read direct", 7, 1.0, 16)], DISK, path=path)
    assert [entry.rate.size for entry in ceilings.read(path).for_mount(DISK)] == [5, 7]
    here = ceilings.this_host()
    monkeypatch.setattr(ceilings, "this_host", lambda: "another")
    assert ceilings.read(path).for_mount(DISK) == ()
    ceilings.save([DIRECT], DISK, path=path)
    assert [entry.rate for entry in ceilings.read(path).for_mount(DISK)] == [DIRECT]
    assert len(ceilings.read(path).for_mount(DISK, here)) == 2


def test_a_host_is_the_same_in_another_process_and_its_name_is_no_identifier() -> None:
    code = "from loadspan.facts import ceilings; print(ceilings.this_host())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ceilings.this_host() + "\n"
    assert len(ceilings.this_host()) == 16
    identifier = Path("/etc/machine-id")
    assert not identifier.exists() or identifier.read_text().strip()[:8] not in done.stdout


def test_only_the_owner_may_read_it_and_nothing_else_is_left(path: Path) -> None:
    ceilings.save([DIRECT], DISK, path=path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["ceilings.json"]


def test_the_place_is_the_cache_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert ceilings.location() == tmp_path / ".cache" / "loadspan" / "ceilings.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert ceilings.save([DIRECT], DISK) == tmp_path / "x" / "loadspan" / "ceilings.json"
    assert len(ceilings.read().entries) == 1


def test_where_nothing_can_be_written_the_user_is_told_and_reading_finds_nothing() -> None:
    path = Path("/proc/loadspan/ceilings.json")
    with pytest.raises(
        UserError, match=r"^/proc/loadspan/ceilings.json: cannot be written \(.+\). Set XDG_CACHE_HOME to a folder that can.$"
    ):
        ceilings.save([DIRECT], DISK, path=path)
    assert ceilings.read(path) == Ceilings()


def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"version": 2, "entries": {}}')
    with pytest.raises(UserError, match="newer loadspan"):
        ceilings.save([DIRECT], DISK, path=path)
    assert path.read_text() == '{"version": 2, "entries": {}}'
    assert ceilings.read(path) == Ceilings()


def test_two_processes_that_save_at_once_lose_nothing(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from loadspan.facts import ceilings; from loadspan.facts.rates import Rate\n"
        "for n in range(20): ceilings.save([Rate(f'probe {sys.argv[2]} {n}', 1, 1.0)], ceilings.Processor(), path=Path(sys.argv[1]))"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, path, str(number)]) for number in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert len(ceilings.read(path).for_processor()) == 60


def test_paths_that_are_no_text_are_kept(path: Path) -> None:
    mount = Mount("ext4", os.fsdecode(b"/mod\xffels\n"), None)
    ceilings.save([DIRECT], mount, path=path)
    assert len(ceilings.read(path).for_mount(mount)) == 1


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff\xfe", b"null", b"[]", b"3", b'{"version": 1}', b'{"version": 1, "entries": 7}', b'{"version": true, "entries": []}'),
        *(
            b"[" * 200_000,
            b'{"entries":' * 50_000,
            b'{"version": ' + b"9" * 10_000 + b"}",
            b"x" * (5 << 20),
            b'{"version": 1, "entries": [null]}',
        ),
    ],
    ids=lambda content: content[:20].decode("latin-1"),
)
def test_what_is_no_file_of_ceilings_holds_none_and_is_replaced(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert ceilings.read(path) == Ceilings()
    ceilings.save([DIRECT], DISK, path=path)
    assert len(ceilings.read(path).entries) == 1


def test_a_pipe_or_a_folder_in_its_place_holds_none_and_blocks_nobody(path: Path) -> None:
    path.mkdir(parents=True)
    assert ceilings.read(path) == Ceilings()
    with pytest.raises(UserError, match="cannot be written"):
        ceilings.save([DIRECT], DISK, path=path)
    path.rmdir()
    os.mkfifo(path)
    assert ceilings.read(path) == Ceilings()


HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 10**30, 10**400, 1e308, 1e-308, -0.0, float("nan"), float("inf"), "", "x", "\x1b[31m", "\ud800"),
    *("9" * 5000, [], {}, [[]], {"": 0}, {"filesystem": 1}, {"filesystem": "ext4", "mountpoint": "/", "extra": "x"}, {"type": ["cuda"]}),
]


def spoiled(value: Any, chance: random.Random) -> Any:
    """*value* with something in it replaced, removed or added."""
    if chance.random() < 0.15:
        return chance.choice(HOSTILE)
    if isinstance(value, dict) and value:
        key = chance.choice(list(value))
        if chance.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: spoiled(value[key], chance)} | ({"mount": chance.choice(HOSTILE)} if chance.random() < 0.05 else {})
    if isinstance(value, list) and value:
        place = chance.randrange(len(value))
        return [*value[:place], spoiled(value[place], chance), *value[place + 1 :]]
    return chance.choice(HOSTILE)


def check(kept: Ceilings) -> None:
    """Every entry is what `save` writes, however it came there."""
    for entry in kept.entries:
        assert isinstance(entry.rate, Rate)
        assert type(entry.rate.size) is type(entry.rate.depth) is int
        assert type(entry.rate.seconds) is float
        assert 0 < entry.rate.rate <= 1e14
        texts = (
            entry.rate.probe,
            entry.rate.note or "-",
            entry.host,
            entry.measured,
            *(text for pair in entry.conditions for text in pair),
        )
        assert all(isinstance(text, str) and text.isprintable() and len(text) <= 4096 for text in texts)
        assert isinstance(entry.place, Mount | Device | Processor)
        hash(entry)
    kept.for_mount(DISK)
    ceilings.best(kept.entries)


def test_a_spoiled_file_never_raises_and_never_tells_a_wild_number(path: Path) -> None:
    ceilings.save([DIRECT, CACHED], DISK, {"file": "x"}, path)
    ceilings.save([Rate("copy to device, pinned", 1 << 30, 0.02)], CARD, path=path)
    document, text = json.loads(path.read_text()), path.read_bytes()
    chance = random.Random(20)  # noqa: S311 - the same each time, and no secret
    survivors = 0
    for _ in range(1500):
        places = [0, 1, 2] if chance.random() < 0.5 else [chance.randrange(3)]
        entries = [spoiled(entry, chance) if place in places else entry for place, entry in enumerate(document["entries"])]
        path.write_text(json.dumps(spoiled(document, chance) if chance.random() < 0.2 else {**document, "entries": entries}))
        kept = ceilings.read(path)
        check(kept)
        survivors += len(kept.entries)
    for _ in range(1500):
        place, length = chance.randrange(len(text)), chance.choice((1, 1, 1, 4, 100))
        path.write_bytes(text[:place] + chance.randbytes(chance.choice((0, 1, length))) + text[place + length :])
        check(ceilings.read(path))
    assert survivors > 1000  # what is whole stays
    ceilings.save([DIRECT], DISK, path=path)
    assert ceilings.read(path).for_mount(DISK)
