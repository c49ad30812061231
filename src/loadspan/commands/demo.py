"""`loadspan demo`: a real server, real files, real waterfalls, without a model of one's own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadspan import units
from loadspan.errors import UserError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "cryptography": "cryptography",
    "opentelemetry.sdk": "opentelemetry-sdk",
}
_SMALLEST = 5
_MEGABYTE = 1_000_000
_START_TIMEOUT = 300.0
_STOP_TIMEOUT = 60.0
_REQUEST_TIMEOUT = 600.0
_REQUESTS = (
    ("/generate?adapter=a", "the base model, read, decrypted and moved to the device, and adapter a merged into it"),
    ("/generate?adapter=b", "adapter b instead"),
    ("/generate?adapter=a", "adapter a again, from the server's cache"),
    ("/generate", "the base model alone"),
)
_PAUSE = 0.4  # the waterfall of one request is on the terminal before the next request is announced
_FAKE = "fakegpu"
# Nobody's proxy stands between us and the loopback interface.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back for one request: the server's JSON, or what went wrong."""

    path: str
    seconds: float
    content: dict[str, Any]
    error: str | None


class Demo:
    """Build a small encrypted model with two LoRA adapters, serve it and show where its load time goes."""

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--dir",
            type=Path,
            metavar="DIR",
            help="write the models to DIR, keep them and use them next time (default: a temporary folder)",
        )
        parser.add_argument("--size", type=int, default=300, metavar="MB", help="size of the models together (default: %(default)s)")
        parser.add_argument("--keep", action="store_true", help="keep the temporary folder instead of removing it at the end")

    def run(self, arguments: argparse.Namespace) -> int:
        """
        Write, serve, ask, stop. Return 0 if every request succeeded, else 1.

        Raises:
            UserError: a package or disk space is missing, or a part of the demonstration did not start.
        """
        _require_packages()
        if arguments.size < _SMALLEST:
            raise UserError(f"--size {arguments.size}: too small. Ask for {_SMALLEST} (megabytes) or more.")
        examples = find_examples()
        with _folder(arguments.dir, keep=arguments.keep) as folder:
            _require_space(folder, arguments.size)
            _make_models(examples, folder, arguments.size)
            answers, exit_code = _serve(examples, folder)
        _summarize(answers)
        return 0 if exit_code == 0 and len(answers) == len(_REQUESTS) and not any(answer.error for answer in answers) else 1


def find_examples() -> Path:
    """
    Return the folder with the example server: in the installed package, or beside `src` in a checkout.

    Raises:
        UserError: it is in neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "examples", package.parents[1] / "examples"):
        if (folder / "serve.py").is_file():
            return folder
    raise UserError(f"{package}: this installation has no examples folder. Run: pip install --force-reinstall 'loadspan[cli,demo]'")


def _require_packages() -> None:
    missing = [package for module, package in _NEEDED.items() if not _is_installed(module)]
    if missing:
        raise UserError(f"{', '.join(missing)}: not installed. Run: pip install 'loadspan[cli,demo]'")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that `module` would be in
        return False


@contextlib.contextmanager
def _folder(chosen: Path | None, *, keep: bool) -> Iterator[Path]:
    """Yield the folder for the models; a temporary one is removed again, also after a failure."""
    if chosen is not None:
        try:
            chosen.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{chosen}: not a folder. Name another with --dir.") from None
        except OSError as error:
            raise UserError(f"{chosen}: {(error.strerror or str(error)).lower()}. Name a folder you can write to with --dir.") from None
        yield chosen
        _say(f"the models stay in {chosen}")
        return
    folder = Path(tempfile.mkdtemp(prefix="loadspan-demo-"))
    try:
        yield folder
    finally:
        if keep:
            _say(f"the models stay in {folder}; to use them again: loadspan demo --dir {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _require_space(folder: Path, size: int) -> None:
    needed, free = int(1.1 * size * _MEGABYTE), shutil.disk_usage(folder).free
    present = sum(path.stat().st_size for path in folder.glob("*/*.enc"))
    there_already = 0.8 < present / (size * _MEGABYTE) < 1.2  # noqa: PLR2004 - the sizes that make_models.py gives come that close
    if free < needed and not there_already:
        raise UserError(
            f"{folder}: {units.size(free)} free, {units.size(needed)} needed. "
            "Name a folder on another disk with --dir, or ask for less with --size."
        )


def _make_models(examples: Path, folder: Path, size: int) -> None:
    _say(f"about {units.size(size * _MEGABYTE)} of encrypted models in {folder}")
    # A process of its own: this one stays without torch, and what it takes to make models is not there when they are served.
    made = subprocess.run([sys.executable, str(examples / "make_models.py"), str(folder), "--size", str(size)], check=False)  # noqa: S603 - our own program
    if made.returncode:
        raise UserError(f"make_models.py ended with exit code {made.returncode}. Its messages are above.")


def _serve(examples: Path, folder: Path) -> tuple[list[_Answer], int]:
    """Run the server under `loadspan run`, send the requests, stop it. Return the answers and the exit code."""
    with tempfile.TemporaryDirectory(prefix="loadspan-demo-") as scratch:
        ready = Path(scratch) / "address"
        server = [sys.executable, str(examples / "serve.py"), str(folder), "--port", "0", "--ready", str(ready)]
        _say(f"loadspan run -- python {' '.join(server[1:4])} 0")
        process = subprocess.Popen([sys.executable, "-m", "loadspan", "run", "--", *server])  # noqa: S603 - our own programs
        try:
            address = _wait_until_ready(ready, process)
            answers = []
            for path, purpose in _REQUESTS:
                answers.append(_ask(address, path, purpose))
                time.sleep(_PAUSE)
            with contextlib.suppress(OSError):  # it is gone already: then its exit code says so
                _fetch(address, "/stop", b"")
            return answers, process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise UserError(f"the server did not stop within {units.seconds(_STOP_TIMEOUT)}.") from None
        finally:
            _end(process)


def _wait_until_ready(ready: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the address that the server wrote."""
    until = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < until:
        if ready.exists() and (address := ready.read_text()):
            return address
        if process.poll() is not None:
            raise UserError(f"the server ended with exit code {process.returncode} before it answered. Its messages are above.")
        time.sleep(0.05)
    raise UserError(f"the server did not answer within {units.seconds(_START_TIMEOUT)}.")


def _ask(address: str, path: str, purpose: str) -> _Answer:
    _say(f"GET {path}  ({purpose})")
    begun = time.perf_counter()
    try:
        content, error = _fetch(address, path), None
    except urllib.error.HTTPError as refused:
        content, error = {}, json.load(refused).get("error", str(refused))
    except OSError as failed:
        content, error = {}, str(failed)
    return _Answer(path, time.perf_counter() - begun, content, error)


def _fetch(address: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    with _OPENER.open(f"{address}{path}", body, timeout=_REQUEST_TIMEOUT) as response:
        content: dict[str, Any] = json.load(response)
        return content


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what still runs, in order if it lets us."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _summarize(answers: list[_Answer]) -> None:
    """Print a line per request, and what its figures are worth."""
    width = max(len(answer.path) for answer in answers)
    for answer in answers:
        outcome = answer.error or f"loaded {answer.content['loaded']}{'  (cache hit)' if answer.content['cache_hit'] else ''}"
        _say(f"{answer.path:{width}}  {units.seconds(answer.seconds):>7}  {outcome}")
    devices = {answer.content["device"] for answer in answers if not answer.error}
    for device in sorted(devices):
        if device.startswith(_FAKE):
            _say(f"device {device}: no accelerator here. A stand-in in host memory was used: the to_device figures are host memory copies.")
        else:
            _say(f"device {device}")
    _say("your own program: loadspan run -- python PROGRAM.py")


def _say(text: str) -> None:
    print(f"loadspan demo: {text}", flush=True)
