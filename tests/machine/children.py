"""
Loads in a child process, in a control group, as another user or among mounts of its own; what they recorded comes back as trees.

A child's program is Python code. `setup` runs before loadspan is imported, in a process that may still do anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NOBODY = 65534
SKIPPED = 77
UNSHARE = ("unshare", "--mount", "--propagation", "private")
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")

_PROGRAM = """
{setup}
import children
children.begin()
{program}
children.tell()
"""
_CONTROLLERS = {
    # Version 1: controller, file, content. Version 2: the same.
    "memory": (("memory", "memory.limit_in_bytes", "{limit}"), ("memory", "memory.max", "{limit}")),
    "read": (("blkio", "blkio.throttle.read_bps_device", "{device} {limit}"), ("io", "io.max", "{device} rbps={limit}")),
}
_TOP = Path("/sys/fs/cgroup")


def loads(program: str, *arguments: object, setup: str = "", inside: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The loads that *program* recorded, started through the command *inside*. It must print nothing on standard error."""
    if inside and not shutil.which(inside[0]):
        pytest.skip(f"no {inside[0]} here")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LOADSPAN_"))}
    environment["PYTHONPATH"] = _path()
    code = _PROGRAM.format(setup=setup, program=program)
    command = [*inside, sys.executable, "-W", "error", "-B", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120, cwd="/")
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _path() -> str:
    return os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests", HERE)))


def need_root() -> None:
    """Skip the test where it is not root's."""
    if os.geteuid():
        pytest.skip("mounting, limits and other users need root")


@lru_cache(maxsize=1)
def _nobody_can() -> bool:
    command = [*AS_NOBODY, sys.executable, "-c", "import loadspan, recorded, opentelemetry.sdk"]
    environment = {**os.environ, "PYTHONPATH": _path()}
    return bool(shutil.which(command[0])) and not subprocess.run(command, capture_output=True, check=False, env=environment).returncode


def need_nobody() -> None:
    """Skip the test where we cannot start a program as an ordinary user who may read this project."""
    need_root()
    if not _nobody_can():
        pytest.skip("an ordinary user cannot read this project or this Python")


@contextmanager
def control_group(what: str) -> Iterator[Path]:
    """A control group in which memory ("memory") or what is read from a device ("read") can be limited; removed afterwards."""
    need_root()
    controllers = [controller for controller, _, _ in _CONTROLLERS[what]]
    places = [place for version, controller in enumerate(controllers, 1) if (place := _above(version, controller)) is not None]
    if not places:
        pytest.skip(f"no control groups with a controller {' or '.join(controllers)}")
    folder = places[0] / f"loadspan-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        yield folder
    finally:
        for _ in range(50):
            with suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


def _above(version: int, controller: str) -> Path | None:
    """Folder in which a group can be made: of version 1 our own, of version 2 the one around it, where it has none of its own."""
    named = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if version == 1:
        folder = _TOP / controller / named.get(controller, "-").lstrip("/")
        return folder if folder.is_dir() else None
    for top in (_TOP, _TOP / "unified"):
        folder = (top / named.get("", "-").lstrip("/")).parent if named.get("", "/") != "/" else top
        with suppress(OSError):
            if controller in (folder / "cgroup.subtree_control").read_text().split():
                return folder
    return None


# In the child


def limit(group: str, what: str, most: int, device: str = "") -> None:
    """Limit what a control group may have, and move this process there."""
    found = [(Path(group) / file, content) for _, file, content in _CONTROLLERS[what] if (Path(group) / file).exists()]
    if not found:
        skip(f"the control group has no limit of {what}")
    file, content = found[0]
    try:
        file.write_text(content.format(limit=most, device=device))
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        skip(f"{file}: {error}")


def shell(commands: str) -> None:
    """Run *commands*; the test is skipped where one fails: what it lacks is on standard error."""
    done = subprocess.run(["/bin/sh", "-ec", commands], capture_output=True, text=True, check=False)
    if done.returncode:
        skip(f"{commands.strip().splitlines()[0]}: {' '.join(done.stderr.split()) or done.returncode}")


def skip(reason: str) -> None:
    """End this process and the test with *reason*."""
    sys.stderr.write(f"{reason}\n")
    sys.stderr.flush()
    os._exit(SKIPPED)


_exporter: Any = None


def begin() -> None:
    """Record from now on; our own failures are seen."""
    global _exporter  # noqa: PLW0603 - the child has one
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    import loadspan.guard
    from recorded import provider_of

    _exporter = InMemorySpanExporter()
    loadspan.guard.raising = True
    loadspan.LoadspanInstrumentor().instrument(tracer_provider=provider_of(_exporter))


def tell() -> None:
    """Print what was recorded."""
    import loadspan
    from loadspan.instrument.live import recorder
    from recorded import tree_of

    recorder.close_all()
    recorder.waiting.deliver()
    print(json.dumps(tree_of(_exporter.get_finished_spans())))  # noqa: T201 - for the parent
    loadspan.LoadspanInstrumentor().uninstrument()
