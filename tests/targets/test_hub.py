"""huggingface_hub against a hub on this machine: what is in the cache and what is downloaded, and how many bytes came."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from hosts import failure, the, told

import loadspan
from hubserver import Hub, serving
from loadspan import LoadspanInstrumentor
from loadspan.instrument.live import recorder
from recorded import check, outline, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from recorded import Spans

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
BIG, LESS = 24 << 20, 5 << 20
CHUNK = 10 << 20  # the library writes so much at a time; of a chunk that was broken off nothing is kept


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # other tests ask for it before they import it
    model = tmp_path / "served" / "org" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / FIRST).write_bytes(bytes(range(256)) * (BIG // 256))
    (model / SECOND).write_bytes(bytes(LESS))
    with serving(tmp_path / "served") as hub:
        yield hub


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Callable[..., Any]:
    """Ask for one file of the model."""

    def ask(file: str = FIRST, **options: Any) -> Any:
        return huggingface_hub.hf_hub_download("org/model", file, endpoint=hub.url, cache_dir=tmp_path / "cache", **options)

    return ask


@pytest.fixture
def snapshot(hub: Hub, tmp_path: Path) -> Callable[..., Any]:
    """Ask for all its files."""

    def ask(**options: Any) -> Any:
        return huggingface_hub.snapshot_download("org/model", endpoint=hub.url, cache_dir=tmp_path / "cache", **options)

    return ask


def all_of(tree: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [span["attributes"] for span in walk(tree) if span["name"] == name]


def test_the_first_time_a_file_is_downloaded_and_the_second_time_it_is_there(ask: Callable[..., Any], spans: Spans) -> None:
    with loadspan.load("first"):
        path = ask()
    with loadspan.load("second"):
        assert ask() == path
    first, second = spans.loads()
    check(first)
    check(second)
    assert outline(first) == [{"load model": [{"cache": ["download"]}]}]
    assert outline(second) == [{"load model": ["cache"]}]
    download, miss, hit = the(first, "download"), the(first, "cache"), the(second, "cache")
    assert download["loadspan.size"] == BIG
    assert 0 < download["loadspan.throughput"] == pytest.approx(BIG / all_times(first, "download"), rel=0.05)
    assert download["server.address"] == "127.0.0.1"
    assert download["file.path"] == path
    assert download["file.size"] == BIG
    assert "system.filesystem.type" in download
    assert (miss["loadspan.cache.hit"], hit["loadspan.cache.hit"]) == (False, True)
    assert (miss["loadspan.size"], hit["loadspan.size"]) == (BIG, BIG)
    assert "loadspan.throughput" not in miss
    assert "loadspan.throughput" not in hit
    assert (miss["file.path"], hit["file.path"]) == (path, path)


def all_times(tree: dict[str, Any], name: str) -> float:
    return float(sum(span["duration"] for span in walk(tree) if span["name"] == name))


def test_a_check_of_the_version_is_part_of_the_lookup_and_no_download(ask: Callable[..., Any], hub: Hub, spans: Spans) -> None:
    ask()
    spans.finish()
    before = hub.asked()
    with loadspan.load("again"):
        ask()
    assert [line.split()[0] for line in hub.asked()[len(before) :]] == ["HEAD"]
    assert outline(spans.loads()[-1]) == [{"load model": ["cache"]}]


def test_all_files_of_a_model_are_one_load_whose_pool_downloads_them(snapshot: Callable[..., Any], spans: Spans) -> None:
    snapshot()
    tree = spans.load()
    check(tree)
    assert tree["attributes"]["loadspan.loader"] == "huggingface_hub"
    assert tree["attributes"]["loadspan.model.name"] == "org/model"
    assert tree["attributes"]["loadspan.coverage"] >= 0.99
    assert the(tree, "cache")["loadspan.cache.hit"] is False
    assert the(tree, "cache")["loadspan.size"] == BIG + LESS + 2
    downloads = all_of(tree, "download")
    assert sum(found["loadspan.size"] for found in downloads) == BIG + LESS + 2
    assert len({found.get("thread.name") for found in downloads}) > 1


def test_what_is_missing_of_a_model_is_downloaded_and_the_rest_is_not(
    ask: Callable[..., Any], snapshot: Callable[..., Any], spans: Spans
) -> None:
    ask()
    spans.finish()
    with loadspan.load("the rest"):
        snapshot()
    with loadspan.load("again"):
        snapshot()
    rest, again = spans.loads()[-2:]
    assert (the(rest, "cache")["loadspan.cache.hit"], the(again, "cache")["loadspan.cache.hit"]) == (False, True)
    assert the(rest, "cache")["loadspan.size"] == LESS + 2
    assert sum(found["loadspan.size"] for found in all_of(rest, "download")) == LESS + 2
    assert all_of(again, "download") == []
    assert the(again, "cache")["loadspan.size"] == BIG + LESS + 2
    assert the(again, "cache")["loadspan.file.count"] == 3


@pytest.mark.parametrize(("ranges", "came"), [(1, BIG), (0, BIG + CHUNK)], ids=["goes on", "begins again"])
def test_a_download_that_breaks_off_has_the_bytes_that_came(
    ask: Callable[..., Any], hub: Hub, spans: Spans, ranges: int, came: int
) -> None:
    hub.set(broken=CHUNK + (1 << 20), ranges=ranges)
    with loadspan.load("broken"):
        ask()
    tree = spans.load()
    check(tree)
    assert outline(tree) == [{"load model": [{"cache": ["download"]}]}]
    assert the(tree, "download")["loadspan.size"] == came
    assert len([line for line in hub.asked("GET") if FIRST in line]) == 2
    assert told(tree) == []


def test_what_an_earlier_try_has_left_is_not_counted(hub: Hub, spans: Spans, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, loadspan.load("resumed"):
        file.write(bytes(range(256)) * 4096)
        huggingface_hub.file_download.http_get(
            f"{hub.url}/org/model/resolve/main/{FIRST}", file, resume_size=1 << 20, expected_size=BIG, headers={}
        )
    with (tmp_path / "file").open("ab") as file, loadspan.load("complete"):
        huggingface_hub.file_download.http_get("http://nowhere", file, resume_size=BIG, expected_size=BIG, headers={})
    resumed, complete = spans.loads()
    assert the(resumed, "download")["loadspan.size"] == BIG - (1 << 20)
    assert outline(complete) == ["load model"]
    assert (tmp_path / "file").read_bytes() == bytes(range(256)) * (BIG // 256)


def test_a_file_that_does_not_exist_is_an_answer(ask: Callable[..., Any], spans: Spans) -> None:
    LoadspanInstrumentor().uninstrument()
    bare = failure(lambda: ask("adapter_config.json"))
    LoadspanInstrumentor().instrument(tracer_provider=spans.provider)
    with loadspan.load("model"):
        ours = failure(lambda: ask("adapter_config.json"))
    assert [part if isinstance(part, type) else None for part in ours] == [part if isinstance(part, type) else None for part in bare]
    tree = spans.load()
    assert outline(tree) == [{"load model": ["cache"]}]
    assert [span["error"] for span in walk(tree)] == [None, None]
    assert "loadspan.cache.hit" not in the(tree, "cache")
    assert told(tree) == []


def test_a_download_that_is_refused_fails_where_it_was_refused(ask: Callable[..., Any], hub: Hub, spans: Spans) -> None:
    hub.set(refused=1)
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError), loadspan.load("refused"):
        ask()
    tree = spans.load()
    assert outline(tree) == [{"load model": [{"cache": ["download"]}]}]
    assert [bool(span["error"]) for span in walk(tree)] == [True, True, True]
    assert [name for name, _ in told(tree)] == ["download"]
    assert the(tree, "download")["loadspan.size"] == 0


def test_a_failed_download_has_the_bytes_that_came_before(ask: Callable[..., Any], hub: Hub, spans: Spans) -> None:
    hub.set(short=1000)
    with pytest.raises(OSError, match="Consistency check failed"), loadspan.load("short"):
        ask()
    assert the(spans.load(), "download")["loadspan.size"] == BIG - 1000


def test_bytes_are_told_while_they_come(ask: Callable[..., Any], hub: Hub, spans: Spans) -> None:
    hub.set(slow=30e6)
    seen: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen.extend(load.progress(recorder.stages) for load in list(recorder.loads))

    watcher = threading.Thread(target=watch, daemon=True)  # a test that fails must not wait for it
    watcher.start()
    with loadspan.load("slow"):
        ask()
    over.set()
    watcher.join()
    assert seen == sorted(seen)
    assert any(0 < size < BIG for size in seen)
    spans.finish()


@pytest.mark.parametrize("what", ["a small file", "a data set", "what is there"])
def test_a_server_may_ask_for_such_things_all_day(what: str, hub: Hub, ask: Callable[..., Any], spans: Spans, tmp_path: Path) -> None:
    if what == "a small file":
        ask("config.json")
    elif what == "a data set":
        cache = tmp_path / "cache"
        huggingface_hub.hf_hub_download("org/model", FIRST, repo_type="dataset", endpoint=hub.url, cache_dir=cache)
    else:
        for _ in range(3):
            ask("config.json")
    assert recorder.loads == []
    assert spans.loads() == []


def test_a_file_downloaded_and_then_read_is_one_load(ask: Callable[..., Any], tmp_path: Path, spans: Spans) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = tmp_path / "served" / "org" / "model" / "small.safetensors"
    save_file({"a": torch.ones(1_000_000)}, file)
    state = load_file(ask("small.safetensors"))
    tree = spans.load()
    assert outline(tree) == [{"load model": [{"cache": ["download"]}, "deserialize"]}]
    assert the(tree, "download")["loadspan.size"] == file.stat().st_size
    assert the(tree, "deserialize")["loadspan.size"] == 4_000_000
    assert state["a"].sum() == 1_000_000


def test_a_dry_run_is_neither_hit_nor_miss(ask: Callable[..., Any], spans: Spans) -> None:
    with loadspan.load("dry"):
        ask(dry_run=True)
    assert outline(spans.load()) == ["load model"]


class Session:
    """Stands for the sessions of hf_xet, whose storage cannot be had here: it writes the file and tells of its progress."""

    def new_file_download_group(self, progress_callback: Any, **_: Any) -> Any:
        """One group of one file."""
        self.tell = progress_callback
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start_download_file(self, _info: Any, path: str) -> None:
        """As if it came."""

        class Report:
            total_bytes = total_bytes_completed = 3_000_000
            total_transfer_bytes_completed = 2_000_000
            total_bytes_completion_rate = total_transfer_bytes_completion_rate = None

        with open(path, "wb") as file:  # noqa: PTH123 - as it comes
            file.write(bytes(3_000_000))
        time.sleep(0.01)
        thread = threading.Thread(target=self.tell, args=(Report(), {}))  # theirs comes from a thread of its own
        thread.start()
        thread.join()


def test_of_chunks_by_their_content_those_count_that_came_over_the_network(
    spans: Spans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from huggingface_hub.utils import _xet

    monkeypatch.setattr(_xet, "get_xet_session", Session)
    answer = SimpleNamespace(endpoint="http://cas", access_token="x", expiration_unix_epoch=0)  # noqa: S106 - none
    monkeypatch.setattr(_xet, "refresh_xet_connection_info", lambda **_: answer)
    data = _xet.XetFileData(file_hash="0" * 64, refresh_route="http://cas.example/token")
    with loadspan.load("model"):
        huggingface_hub.file_download.xet_get(
            incomplete_path=tmp_path / "file.incomplete", xet_file_data=data, headers={}, expected_size=3_000_000
        )
    download = the(spans.load(), "download")
    assert download["loadspan.size"] == 2_000_000
    assert download["file.size"] == 3_000_000
    assert download["file.path"] == str(tmp_path / "file")
    assert download["server.address"] == "cas.example"
