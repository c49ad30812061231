"""
huggingface_hub: what is asked for is in the local cache, or is downloaded into it.

A lookup is a `cache` stage: the local folders, the server's answer about the file's version, the wait for a lock. Only the transfer inside
it is a `download`, and has the bytes that came, not those that an earlier try had left. A file that the server says does not exist is an
answer, not a failure: transformers asks for half a dozen of them.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.guard import safely
from loadspan.instrument import late
from loadspan.instrument.described import model_name
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import roots, transfers

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage


_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".onnx", ".msgpack", ".h5", ".keras", ".ggml", ".npz", ".nemo")
_TEMPORARY = re.compile(r"(\.[0-9a-f]{8})?\.incomplete$")
_COMMIT = re.compile("[0-9a-f]{40}")
_LOCAL = "/.cache/huggingface/download/"
_WHOLE = 200  # the status of an answer that is the whole file, where 206 is a part
_MODULE = "huggingface_hub.file_download"


class _Transfer:
    """Bytes that came in one download, those of its retries included."""

    def __init__(self, file: Any, resumed: int) -> None:
        self._file = file
        self._before = 0
        """Bytes of the tries before this one."""
        self._mark = file.tell()
        self._size: int | None = _size(file)
        """Of the file, if somebody may write it by its name, as hf_transfer does."""
        self._resumed = resumed

    def again(self, resumed: int) -> None:
        """The connection broke, and another begins."""
        self._before, self._mark, self._resumed = self.so_far(), self._file.tell(), resumed
        self._size = None

    def from_the_start(self) -> None:
        """The server sends the whole file, though a part was asked for; what was there is thrown away."""
        self._mark, self._resumed = self._mark - self._resumed, 0

    def so_far(self) -> int:
        """Bytes that have come."""
        came = self._file.tell() - self._mark
        if not came and self._size is not None:
            came = _size(self._file) - self._size
        return int(self._before + came)


class _Chunks:
    """Bytes that came in one download of content-addressed chunks: over the network, where what is in a chunk cache does not come."""

    def __init__(self) -> None:
        self.reporter: Any = None

    def so_far(self) -> int | None:
        """Bytes that have come, as far as that is told."""
        found = getattr(self.reporter, "_prev_transfer_bytes_completed", None)
        return found if isinstance(found, int) else None


def _size(file: Any) -> int:
    return os.fstat(file.fileno()).st_size if hasattr(file, "fileno") else 0


class _Asked(threading.local):
    """What this thread asked for last."""

    model = True
    """Whether it was a model's, and no data set's."""
    file: str | None = None
    revision = "main"


_asked = _Asked()


# Downloads


def _coming(stage: OpenStage | OpenLoad | None) -> Any:
    """What counts the bytes of a download that runs."""
    return getattr(getattr(stage, "arriving", None), "__self__", None)


def _begin(stage: OpenStage, url: Any, expected: Any) -> None:
    stage.attributes |= transfers.host(url)
    stage.opens = _asked.model and isinstance(expected, int) and expected >= roots.OPENS
    transfers.missed()


def _describe_http(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    file, resumed = argument(args, kwargs, 1, "temp_file"), kwargs.get("resume_size") or 0
    expected = kwargs.get("expected_size")
    outer = _coming(next(transfers.around(names.DOWNLOAD), None))
    if isinstance(outer, _Transfer):
        outer.again(resumed)
        return
    if expected is not None and expected == resumed:
        stage.cancelled = True  # all of it is there: nothing is asked of the server
        return
    _begin(stage, argument(args, kwargs, 0, "url"), expected)
    stage.arriving = _Transfer(file, resumed).so_far


def _measure_http(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    transfer = _coming(stage)
    if transfer is not None:
        _arrived(stage, transfer.so_far(), getattr(argument(args, kwargs, 1, "temp_file"), "name", None))


def _arrived(stage: OpenStage | OpenLoad, size: int | None, path: Any) -> None:
    if isinstance(path, str | os.PathLike):
        # Now: soon it has another name, but its storage is the same.
        full_paths, now = recorder.settings.full_paths, os.fspath(path)
        final = safely(_final, now) or now
        named = {names.FILE_PATH: final if full_paths else os.path.basename(final)}  # noqa: PTH119 - no Path object on the recording side
        stage.attributes = late.files((now,), full_paths=full_paths) | named | stage.attributes
    if size is None:
        return
    stage.size = size
    transfers.arrived(size)


def _final(path: str) -> str:
    """Where the temporary file *path* goes when it is complete, under the name that its readers know it by."""
    final, file = _TEMPORARY.sub("", path), _asked.file
    folder, _, _ = path.partition(_LOCAL)
    if file is None:
        return final
    if folder != path:
        return os.path.join(folder, file)  # noqa: PTH118 - no Path object on the recording side
    storage, _, _ = final.rpartition("/blobs/")
    if not storage:
        return final
    commit = _asked.revision
    if not _COMMIT.fullmatch(commit):
        with open(f"{storage}/refs/{commit}") as known:  # noqa: PTH123 - as above
            commit = known.read()
    return f"{storage}/snapshots/{commit}/{file}"


def _describe_xet(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    data = kwargs.get("xet_file_data")
    _begin(stage, getattr(data, "endpoint", None) or getattr(data, "refresh_route", None), kwargs.get("expected_size"))
    stage.arriving = _Chunks().so_far


def _measure_xet(stage: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    path, chunks = kwargs.get("incomplete_path"), _coming(stage)
    size = chunks.so_far() if isinstance(chunks, _Chunks) else None
    if isinstance(chunks, _Chunks) and chunks.reporter is None and isinstance(path, os.PathLike):
        size = os.stat(path).st_size  # noqa: PTH116 - no Path object on the recording side; a version that does not tell what came
    _arrived(stage, size, path)


def _replace_enter(original: Any) -> Any:
    @functools.wraps(original)
    def enter(self: Any, *args: Any, **kwargs: Any) -> Any:
        safely(_told_to, self)
        return original(self, *args, **kwargs)

    return enter


def _told_to(reporter: Any) -> None:
    chunks = _coming(next(transfers.around(names.DOWNLOAD), None))
    if isinstance(chunks, _Chunks):
        chunks.reporter = reporter


def _replace_raise_for_status(original: Any) -> Any:
    @functools.wraps(original)
    def hf_raise_for_status(*args: Any, **kwargs: Any) -> Any:
        safely(_answered, args, kwargs)
        return original(*args, **kwargs)

    return hf_raise_for_status


def _answered(args: Args, kwargs: Kwargs) -> None:
    transfer = _coming(next(transfers.around(names.DOWNLOAD), None))
    if isinstance(transfer, _Transfer) and getattr(argument(args, kwargs, 0, "response"), "status_code", None) == _WHOLE:
        transfer.from_the_start()


# Lookups


def _describe_lookup(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    stage.rated = False
    _asked.model = kwargs.get("repo_type") in (None, "model")
    repository, file = argument(args, kwargs, 0, "repo_id"), argument(args, kwargs, 1, "filename")
    if _asked.model and isinstance(repository, str):
        stage.attributes[names.MODEL_NAME] = model_name(repository) or repository
    folder, revision = kwargs.get("subfolder"), kwargs.get("revision")
    _asked.file = f"{folder}/{file}" if isinstance(folder, str) and folder else file if isinstance(file, str) else None
    _asked.revision = getattr(revision, "resolved", revision) or "main"
    # Of a whole snapshot somebody wants to load what is in it.
    stage.opens = _asked.model and (not isinstance(file, str) or file.endswith(_WEIGHTS))


def _describe_guess(stage: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    _describe_lookup(stage, args, kwargs)
    transfers.stage_of(stage).opens = False


def _describe_question(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    stage.rated = stage.opens = False


def _measure_lookup(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    if not isinstance(result, str):
        stage.cancelled = True  # a dry run, or a file that is known not to be there
        return
    if names.CACHE_HIT not in stage.attributes:
        stage.attributes[names.CACHE_HIT] = True
        if stage.inner_size is None and os.path.isfile(result):  # noqa: PTH113 - no Path object on the recording side
            stage.size = os.stat(result).st_size  # noqa: PTH116 - as above
    if not stage.paths:
        stage.file(result)
    load = stage.load
    if not load.explicit and load.name is None:
        load.known_as(stage.attributes.get(names.MODEL_NAME))


def _no_such_file(error: BaseException) -> bool:
    return any(kind.__name__ == "EntryNotFoundError" for kind in type(error).__mro__)


def _question(module: str, attribute: str, why: str) -> Target:
    return Target(module=module, attribute=attribute, stage=names.CACHE, describe=_describe_question, answer=_no_such_file, why=why)


ROWS = (
    _question("huggingface_hub.hf_api", "HfApi.resolve_revision", "which commit a name stands for, since 2.0"),
    _question("huggingface_hub.hf_api", "HfApi.model_info", "which files a model has: pipelines ask before they download"),
    _question(_MODULE, "get_hf_file_metadata", "the version of a file"),
    Target(
        module="huggingface_hub._snapshot_download",
        attribute="snapshot_download",
        stage=names.CACHE,
        describe=_describe_lookup,
        measure=_measure_lookup,
        answer=_no_such_file,
        why="all files of a model, several at once",
    ),
    Target(
        module=_MODULE,
        attribute="hf_hub_download",
        stage=names.CACHE,
        describe=_describe_lookup,
        measure=_measure_lookup,
        answer=_no_such_file,
        why="one file: looked up, asked about, downloaded if need be",
    ),
    Target(
        module=_MODULE,
        attribute="try_to_load_from_cache",
        stage=names.CACHE,
        describe=_describe_guess,
        measure=_measure_lookup,
        why="transformers asks for files of a known commit without asking the server",
    ),
    Target(
        module=_MODULE,
        attribute="http_get",
        stage=names.DOWNLOAD,
        describe=_describe_http,
        measure=_measure_http,
        why="the transfer; calls itself after a broken connection",
    ),
    Target(
        module=_MODULE,
        attribute="hf_raise_for_status",
        kind=Kind.REPLACE,
        replace=_replace_raise_for_status,
        why="tells whether the server goes on where the last try ended",
    ),
    Target(
        module=_MODULE,
        attribute="xet_get",
        stage=names.DOWNLOAD,
        describe=_describe_xet,
        measure=_measure_xet,
        why="the transfer of files in content-addressed chunks, since 0.30",
    ),
    Target(
        module="huggingface_hub.utils._xet_progress_reporting",
        attribute="XetDownloadProgressReporter.__enter__",
        kind=Kind.REPLACE,
        replace=_replace_enter,
        why="knows how many bytes came",
    ),
)
