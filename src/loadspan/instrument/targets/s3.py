"""
boto3 and botocore: objects of S3 and of what speaks like it.

`download_file` and `download_fileobj` fetch parts of an object in a pool of threads, which work for the call; the bodies that they read
tell the bytes, so a part that had to be fetched twice counts twice. A body that the program reads itself is tallied.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from loadspan import names
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Args, Kind, Kwargs, Target, argument
from loadspan.instrument.targets import transfers

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad, OpenStage

_FETCHES = ("GetObject", "HeadObject")


def _length(body: Any) -> int:
    """Bytes that a body has in all, as its answer says; 0 where it does not."""
    try:
        return int(body._content_length)  # noqa: SLF001 - the only place that knows it
    except (TypeError, ValueError, AttributeError):
        return 0


def _worth_asking(args: Args, kwargs: Kwargs) -> bool:
    return bool(recorder.loads) or _length(args[0]) >= transfers.OPENS


def _size(result: Any, args: Args, kwargs: Kwargs) -> int | None:
    return result if isinstance(result, int) else len(result)


def _body(attribute: str, why: str) -> Target:
    return Target(
        module="botocore.response",
        attribute=attribute,
        kind=Kind.FINE,
        stage=names.DOWNLOAD,
        when=_worth_asking,
        alone=lambda args, kwargs: _length(args[0]) >= transfers.OPENS,
        size=_size,
        why=why,
    )


def _describe_file(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    client = getattr(getattr(args[0], "_manager", None), "client", None)
    _describe(transfers.stage_of(frame), client, argument(args, kwargs, 2, "key"), argument(args, kwargs, 3, "filename"))


def _describe_fileobj(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    _describe(transfers.stage_of(frame), args[0], argument(args, kwargs, 2, "Key"), None)


def _describe(stage: OpenStage, client: Any, key: Any, path: Any) -> None:
    stage.attributes |= transfers.host(getattr(getattr(client, "meta", None), "endpoint_url", None))
    stage.opens = transfers.may_be_weights(key)
    if path is not None:
        stage.attributes[names.FILE_PATH] = os.fspath(path)
    transfers.missed()


def _measure_file(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    path = argument(args, kwargs, 3, "filename")
    stage.attributes.pop(names.FILE_PATH, None)
    stage.file(path)
    if stage.inner_size is None:
        stage.size = os.stat(path).st_size  # noqa: PTH116 - no Path object on the recording side; the transfer is not Python's
    _measure(frame, result, args, kwargs)


def _measure(frame: OpenStage | OpenLoad, result: Any, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    transfers.forget_small(stage)
    transfers.arrived(stage.size_known or 0)


def _fetches(args: Args, kwargs: Kwargs) -> bool:
    return bool(recorder.loads) and argument(args, kwargs, 1, "operation_name") in _FETCHES


def _describe_call(frame: OpenStage | OpenLoad, args: Args, kwargs: Kwargs) -> None:
    stage = transfers.stage_of(frame)
    stage.opens = False
    stage.attributes |= transfers.host(getattr(getattr(args[0], "meta", None), "endpoint_url", None))


ROWS = (
    Target(
        module="boto3.s3.transfer",
        attribute="S3Transfer.download_file",
        stage=names.DOWNLOAD,
        describe=_describe_file,
        measure=_measure_file,
        why="an object into a file, part by part",
    ),
    Target(
        module="boto3.s3.inject",
        attribute="download_fileobj",
        stage=names.DOWNLOAD,
        describe=_describe_fileobj,
        measure=_measure,
        why="an object into memory or a file that is open",
    ),
    Target(
        module="botocore.client",
        attribute="BaseClient._make_api_call",
        stage=names.DOWNLOAD,
        when=_fetches,
        describe=_describe_call,
        why="the wait for the first byte",
    ),
    _body("StreamingBody.read", "the bytes, chunk by chunk or all"),
    _body("StreamingBody.readinto", "the same into a buffer"),
)
