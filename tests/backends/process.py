"""A real program as a child process: its ports, its log, how it is started, stopped, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nobody listens now: all different, as all are taken before the first is given back."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as asking:
        asking.settimeout(1)
        return asking.connect_ex(("127.0.0.1", port)) == 0


def get(url: str, patience: float = 60) -> bytes:
    """The body of a page; `urllib.error.HTTPError` where the answer is an error."""
    with urllib.request.urlopen(url, timeout=patience) as answer:  # noqa: S310 -- loopback, and our own children
        return bytes(answer.read())


def answers(url: str) -> bool:
    """Whether a page is there."""
    try:
        get(url, 2)
    except OSError:  # HTTP errors among them
        return False
    return True


def until(true: Callable[[], Any], what: str, patience: float = 30, pause: float = 0.05) -> Any:
    """Waits until something is true, and returns it."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if result := true():
            return result
        time.sleep(pause)
    raise TimeoutError(f"not within {patience:.0f} s: {what}")


def written(folder: Path, name: str, content: Mapping[str, Any]) -> Path:
    """A configuration as a file. JSON is YAML too."""
    path = folder / name
    path.write_text(json.dumps(content, indent=1))
    return path


class Process:
    """A child process that is ready when it says so; its log is kept over restarts."""

    patience = 60.0

    def __init__(self, command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.command = [str(part) for part in command]
        self.folder = folder
        self.environment = dict(environment or {})
        self.logged = folder / "log.txt"
        self.child: subprocess.Popen[bytes] | None = None
        self._seen = 0

    @property
    def log(self) -> str:
        """All that it has written, over all its starts."""
        return self.logged.read_text(errors="replace") if self.logged.exists() else ""

    @property
    def log_since_start(self) -> str:
        """What it has written since it was started last."""
        return self.logged.read_bytes()[self._seen :].decode(errors="replace") if self.logged.exists() else ""

    def ready(self) -> bool:
        """Whether it works already."""
        raise NotImplementedError

    def start(self) -> Self:
        """Starts it, and waits until it is ready."""
        self._seen = self.logged.stat().st_size if self.logged.exists() else 0
        with self.logged.open("ab") as log:
            self.child = subprocess.Popen(
                self.command, cwd=self.folder, env=os.environ | self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + self.patience
        while not self.ready():
            code = self.child.poll()
            if code is not None or time.monotonic() > end:
                what = f"ended with {code}" if code is not None else f"was not ready after {self.patience:.0f} s"
                self.kill()
                raise RuntimeError(f"{self.command[0]} {what}:\n{self.log_since_start[-3000:]}")
            time.sleep(0.05)
        return self

    def stop(self) -> int:
        """Asks it to end (SIGTERM) and waits; the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """Ends it without a word (SIGKILL)."""
        return self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Lets it hang: connections are taken, and nothing answers."""
        self._tell(signal.SIGSTOP)

    def go_on(self) -> None:
        """Ends a pause."""
        self._tell(signal.SIGCONT)

    def _tell(self, what: signal.Signals) -> None:
        assert self.child is not None, "it was never started"
        self.child.send_signal(what)

    def _end(self, how: signal.Signals) -> int:
        if self.child is None:
            return 0
        child, self.child = self.child, None
        if child.poll() is None:
            child.send_signal(how)
        try:
            return child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def restart(self) -> Self:
        """In order: asked to end, then started on the same ports with the same files."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
