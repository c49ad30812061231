"""fsspec, s3fs and boto3 against a server of our own: bytes and rates of downloads, local caches, and spans of others."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from hosts import failure, the

import loadspan
import objectserver
from loadspan import LoadspanInstrumentor
from loadspan.instrument.live import recorder
from recorded import check, outline, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from recorded import Spans

BIG, SMALL = 20 << 20, 100_000


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = tmp_path / "served" / "bucket"
    bucket.mkdir(parents=True)
    (bucket / "model.safetensors").write_bytes(bytes(range(256)) * (BIG // 256))
    (bucket / "picture.jpeg").write_bytes(bytes(BIG))
    (bucket / "small.bin").write_bytes(bytes(SMALL))
    with objectserver.serving(tmp_path / "served") as url:
        yield url


@pytest.fixture
def client(url: str, spans: Spans) -> Any:
    """A client made after loadspan came: the class of one made before keeps the `download_fileobj` that it was made with."""
    import boto3

    assert spans.recorder.active
    return boto3.client("s3", endpoint_url=url)


def system(kind: str, url: str) -> tuple[Any, str]:
    """A file system of fsspec, and what its paths begin with."""
    import fsspec

    if kind == "s3":
        return fsspec.filesystem("s3", endpoint_url=url, skip_instance_cache=True), "bucket"
    return fsspec.filesystem("http", skip_instance_cache=True), f"{url}/bucket"


def content(found: Any) -> bytes:
    """What was downloaded, into memory or a file."""
    return found if isinstance(found, bytes) else bytes(found.read_bytes())


def by_chunks(file: Any, size: int) -> bytes:
    found = []
    while chunk := file.read(size):
        found.append(chunk)
    return b"".join(found)


S3_WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "download_file": lambda client, path: client.download_file("bucket", "model.safetensors", str(path)) or path,
    "download_fileobj": lambda client, _: client.download_fileobj("bucket", "model.safetensors", got := io.BytesIO()) or got.getvalue(),
    "a body": lambda client, _: client.get_object(Bucket="bucket", Key="model.safetensors")["Body"].read(),
    "a body by chunks": lambda client, _: by_chunks(client.get_object(Bucket="bucket", Key="model.safetensors")["Body"], 1 << 16),
}


@pytest.mark.parametrize("way", S3_WAYS)
def test_an_object_is_a_download_of_its_bytes(way: str, client: Any, tmp_path: Path, spans: Spans) -> None:
    call = S3_WAYS[way]
    found = call(client, tmp_path / "file")
    tree = spans.load()
    assert content(found) == bytes(range(256)) * (BIG // 256)
    check(tree)
    assert {span["name"] for span in walk(tree)} == {"load model", "download"}
    assert tree["attributes"]["loadspan.size"] == BIG
    assert tree["attributes"]["loadspan.coverage"] > (0.5 if "chunks" in way else 0.95)
    assert tree["attributes"]["loadspan.loader"] in ("boto3", "botocore")
    [download] = [span["attributes"] for span in walk(tree) if "loadspan.throughput" in span["attributes"]]
    assert download["loadspan.size"] == BIG
    if way == "download_file":
        assert download["file.path"] == str(tmp_path / "file")
    if way.startswith("download"):
        assert download["server.address"] == "127.0.0.1"


@pytest.mark.parametrize("way", S3_WAYS)
def test_in_a_load_the_wait_for_the_first_byte_is_a_download_too(way: str, client: Any, tmp_path: Path, spans: Spans) -> None:
    with loadspan.load("model"):
        S3_WAYS[way](client, tmp_path / "file")
    tree = spans.load()
    check(tree)
    assert {span["name"] for span in walk(tree)} == {"load model", "download"}
    assert sum(span["attributes"].get("loadspan.size", 0) for span in walk(tree) if span["name"] == "download") == BIG


def test_a_server_may_call_s3_all_day(client: Any, tmp_path: Path, spans: Spans) -> None:
    client.download_file("bucket", "picture.jpeg", str(tmp_path / "picture"))
    client.get_object(Bucket="bucket", Key="small.bin")["Body"].read()
    assert recorder.loads == []
    client.download_file("bucket", "small.bin", str(tmp_path / "small"))  # might be weights by its name
    assert spans.loads() == []


def test_what_s3_refuses_is_refused_in_the_same_words(client: Any, tmp_path: Path, spans: Spans) -> None:
    def call() -> None:
        client.download_file("bucket", "none.bin", str(tmp_path / "none"))

    LoadspanInstrumentor().uninstrument()
    bare = failure(call)
    LoadspanInstrumentor().instrument(tracer_provider=spans.provider)
    with loadspan.load("model"):
        ours = failure(call)
    assert str(ours[:2]) == str(bare[:2])
    assert the(spans.load(), "download")["error.type"] == "botocore.exceptions.ClientError"


FS_WAYS: dict[str, Callable[[Any, str, Path], Any]] = {
    "get": lambda fs, place, path: (fs.get(place, str(path)), path)[1],
    "get_file": lambda fs, place, path: (fs.get_file(place, str(path)), path)[1],
    "cat": lambda fs, place, _: fs.cat(place),
    "cat_file": lambda fs, place, _: fs.cat_file(place),
    "open": lambda fs, place, _: by_chunks(fs.open(place, "rb"), 1 << 20),
    "open and read": lambda fs, place, _: fs.open(place, "rb").read(),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # aiohttp's sessions, which nobody closes
@pytest.mark.parametrize("kind", ["s3", "http"])
@pytest.mark.parametrize("way", FS_WAYS)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "implicit"])
def test_a_file_of_fsspec_is_a_download_of_its_bytes(
    way: str, kind: str, url: str, tmp_path: Path, spans: Spans, *, declared: bool
) -> None:
    import contextlib

    fs, root = system(kind, url)
    with loadspan.load("model") if declared else contextlib.nullcontext():
        found = FS_WAYS[way](fs, f"{root}/model.safetensors", tmp_path / "file")
    tree = spans.load()
    assert content(found) == bytes(range(256)) * (BIG // 256)
    check(tree)
    assert {span["name"] for span in walk(tree)} == {"load model", "download"}
    # Of http, fsspec fetches four megabytes twice when a file is read bit by bit.
    assert the(tree, "download")["loadspan.size"] == BIG + (4 << 20 if (way, kind) == ("open", "http") else 0)
    assert the(tree, "download")["loadspan.throughput"] > 0
    if not declared:
        assert tree["attributes"]["loadspan.loader"] == "fsspec"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
def test_what_fsspec_has_in_its_local_folder_is_not_downloaded_again(url: str, tmp_path: Path, spans: Spans) -> None:
    import fsspec

    def read() -> bytes:
        place = f"simplecache::{url}/bucket/model.safetensors"
        with fsspec.open(place, "rb", simplecache={"cache_storage": str(tmp_path / "cache")}) as file:
            return bytes(file.read())

    with loadspan.load("first"):
        first = read()
    with loadspan.load("second"):
        assert read() == first
    miss, hit = spans.loads()
    assert outline(miss) == [{"load model": [{"cache": ["download"]}, "read"]}]
    assert outline(hit) == [{"load model": ["cache", "read"]}]
    assert (the(miss, "cache")["loadspan.cache.hit"], the(hit, "cache")["loadspan.cache.hit"]) == (False, True)
    assert the(miss, "download")["loadspan.size"] == the(hit, "read")["loadspan.size"] == BIG


def test_local_files_are_reads_and_memory_is_nothing(tmp_path: Path, spans: Spans) -> None:
    import fsspec

    (tmp_path / "file.bin").write_bytes(bytes(BIG))
    with loadspan.load("local"):
        assert len(fsspec.filesystem("file").cat(str(tmp_path / "file.bin"))) == BIG
    memory = fsspec.filesystem("memory")
    memory.pipe("/file.bin", bytes(BIG))
    with loadspan.load("memory"):
        assert len(memory.cat("/file.bin")) == BIG
    local, nothing = spans.loads()
    assert outline(local) == [{"load model": ["read"]}]
    assert the(local, "read")["loadspan.size"] == BIG
    assert outline(nothing) == ["load model"]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "implicit"])
def test_spans_of_botocore_are_neither_repeated_nor_moved(client: Any, spans: Spans, *, declared: bool) -> None:
    instrumentors = pytest.importorskip("opentelemetry.instrumentation.botocore")
    import contextlib

    theirs = instrumentors.BotocoreInstrumentor()
    theirs.instrument(tracer_provider=spans.provider)
    tracer = spans.provider.get_tracer("program")
    try:
        with tracer.start_as_current_span("request"), loadspan.load("model") if declared else contextlib.nullcontext():
            client.get_object(Bucket="bucket", Key="model.safetensors")["Body"].read()
    finally:
        theirs.uninstrument()
    spans.finish()
    [request] = spans.all()
    every = list(walk(request))
    assert [span["name"] for span in every if span["scope"].endswith("botocore")] == ["S3.GetObject"]
    [call] = [span for span in every if span["name"] == "S3.GetObject"]
    above = next(span for span in every if span["span_id"] == call["parent"])
    assert above["name"] == ("load model" if declared else "request") or (declared and above["name"] == "download")


@pytest.mark.parametrize("library", ["requests", "httpx"])
def test_spans_of_http_clients_stay_where_they_were(library: str, url: str, spans: Spans) -> None:
    package = pytest.importorskip(f"opentelemetry.instrumentation.{library}")
    client = pytest.importorskip(library)
    theirs = getattr(package, {"requests": "RequestsInstrumentor", "httpx": "HTTPXClientInstrumentor"}[library])()
    theirs.instrument(tracer_provider=spans.provider)
    tracer = spans.provider.get_tracer("program")
    try:
        with tracer.start_as_current_span("request"):
            assert len(client.get(f"{url}/bucket/model.safetensors").content) == BIG
        with tracer.start_as_current_span("request"), loadspan.load("model"):
            client.get(f"{url}/bucket/small.bin")
    finally:
        theirs.uninstrument()
    spans.finish()
    assert outline(spans.all()) == [{"request": ["GET"]}, {"request": [{"load model": ["GET"]}]}]
