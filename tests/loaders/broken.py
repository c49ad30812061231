"""Cases that are wrong in one way each, on purpose: the harness has to see it. They need no library but loadspan."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from case import Case, Truth

import loadspan
from loadspan import variables

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 10_000_000


def recorded() -> bool:
    """Whether this half is the recorded one."""
    return variables.RUN_DIR in os.environ


def write(folder: Path) -> Truth:
    (folder / "weights").write_bytes(b"x" * 100)
    return {"read": SIZE}


def load(folder: Path, *, loader: str = "made", size: int = SIZE, stages: int = 1) -> list[bytes]:
    """A load of 50 ms, most of it explained."""
    with loadspan.load("model", loader=loader):
        for _ in range(stages):
            with loadspan.stage("read", size=size // stages):
                time.sleep(0.05 / stages)
    return [(folder / "weights").read_bytes()]


def after(what: Callable[[], Any]) -> Callable[[Path], Any]:
    """A load, and then *what* in the recorded half alone."""

    def loading(folder: Path) -> Any:
        result = load(folder)
        changed = what() if recorded() else None
        return result if changed is None else changed

    return loading


def failing(folder: Path) -> None:
    with loadspan.load("model", loader="made"), loadspan.stage("read", size=SIZE):
        time.sleep(0.05)
        raise KeyError(folder.name)


def failing_otherwise(folder: Path) -> None:
    try:
        failing(folder)
    except KeyError as error:
        if recorded():
            error.args = (*error.args, "more")
        raise


def with_another_cause(_: Path) -> None:
    try:
        Path("recorded" if recorded() else "bare").read_text()
    except FileNotFoundError as error:
        raise KeyError("same") from error


class Thing:
    """Holds what a test says."""

    def __init__(self, held: Any) -> None:
        self.held = held


def unwritable(_: Path) -> Truth:
    raise OSError("no room")


def dying(_: Path) -> None:
    os._exit(3)


def internal_error(folder: Path) -> Any:
    sys.stderr.write("loadspan: internal error, the load goes on unrecorded in part: 7\n" if recorded() else "")
    return load(folder)


def a_case(name: str, loading: Callable[[Path], Any] = load, writing: Callable[[Path], Truth] = write, **more: Any) -> Case:
    return Case(name=name, library="loadspan", write=writing, load=loading, **{"loader": "made", "stages": ("read",)} | more)


RIGHT = [
    a_case("as it has to be"),
    a_case("a failing load", failing, raises="KeyError"),
    a_case("a little off", lambda folder: load(folder, size=SIZE + 9_000)),
    a_case("the same, used", use=len),
]
WRONG = {
    "bytes: read 10,011,000, not 10,000,000": a_case("too many bytes", lambda folder: load(folder, size=SIZE + 11_000)),
    "bytes: read 0, not 10,000,000": a_case("bytes of no stage", lambda _: None, loads=0, stages=()),
    "no stage decrypt": a_case("a stage less", stages=("read", "decrypt")),
    "unknown stages raed": a_case("a stage that there is not", sizes=lambda truth: {**truth, "raed": 0}),
    "loader other, not made": a_case("another loader", lambda folder: load(folder, loader="other")),
    "2 loads, not 1": a_case("two loads", lambda folder: [load(folder, size=SIZE // 2), load(folder, size=SIZE // 2)]),
    "6 spans, more than 5": a_case("too many spans", lambda folder: load(folder, stages=5), spans=5),
    "raises KeyError, not anything": a_case("an exception that nobody expects", failing),
    "raises nothing, not KeyError": a_case("no exception where one is expected", raises="KeyError"),
    "'more')": a_case("another message", failing_otherwise, raises="KeyError"),
    "FileNotFoundError [Errno 2] No such file or directory: 'bare'": a_case(
        "another cause", with_another_cause, lambda _: {}, raises="KeyError", loads=0, stages=()
    ),
    "result[0] b'y'": a_case("another result", after(lambda: [b"y"])),
    "result.held 2": a_case("another attribute", lambda folder: [load(folder), Thing(1 + recorded())][1]),
    "[1] is result[0]": a_case("one object in place of two", lambda folder: [(one := load(folder)), one if recorded() else list(one)]),
    "prints more": a_case("something printed", after(lambda: print("more"))),  # noqa: T201 - it is what is looked for
    "says more": a_case("something said", after(lambda: sys.stderr.write("more\n") and None)),
    "warns UserWarning more": a_case("a warning", after(lambda: warnings.warn("more", stacklevel=1))),
    "result 4": a_case("another use", use=lambda _: 4 if recorded() else 3),
    "write ended with 1: OSError: no room": a_case("files that cannot be written", writing=unwritable),
    "load ended with 3: it said nothing": a_case("a dead process", dying),
    "load recorded: loadspan: internal error, the load": a_case("a failure of our own", internal_error),
}
"""By what the harness has to say of each."""

CASES = [*RIGHT, *WRONG.values()]
