"""
The command of `loadspan run` as a child process: its environment, its signals, its end.

The child must not notice that it is one: it inherits standard streams and open files, the process group, the signal mask and the
dispositions that a shell would have given it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loadspan import names, variables
from loadspan.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

INSTALL = "pip install 'loadspan[cli]'"
_SI_KERNEL = 0x80  # siginfo code of what the terminal sends; the whole foreground group has it, the child included
_PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGWINCH,
    signal.SIGTSTP,
)
# Python ignores these two when it starts; a program started by a shell would not find them ignored.
_PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)


def environment(base: Mapping[str, str], folder: Path, service: str) -> dict[str, str]:
    """
    *base* with what makes Python programs below it record into *folder*.

    Raises:
        UserError: the packages of the `cli` extra are not installed.
    """
    hook = str(_hook_folder())
    changed = dict(base)
    # Unlike opentelemetry-instrument this leaves the current folder out: the program must find the modules it finds without us.
    paths = [path for path in base.get("PYTHONPATH", "").split(os.pathsep) if path and path != hook]
    changed["PYTHONPATH"] = os.pathsep.join([hook, *paths])
    exporters = [name.strip() for name in base.get("OTEL_TRACES_EXPORTER", "").split(",")]
    kept = [name for name in exporters if name not in {"", "none", names.SCOPE}]
    changed["OTEL_TRACES_EXPORTER"] = ",".join([*kept, names.SCOPE])
    changed.setdefault("OTEL_METRICS_EXPORTER", "none")
    changed.setdefault("OTEL_LOGS_EXPORTER", "none")
    if "service.name=" not in base.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        changed.setdefault("OTEL_SERVICE_NAME", service)
    changed[variables.RUN_DIR] = str(folder.absolute())
    return changed


def _hook_folder() -> Path:
    """The folder whose `sitecustomize` instruments every Python that starts with it on its path."""
    try:
        import opentelemetry.distro
        import opentelemetry.sdk.trace.export  # noqa: F401 - the exporter needs it; better said now than by every child
        from opentelemetry.instrumentation import auto_instrumentation
    except ImportError as error:
        raise UserError(f"{error.name or 'opentelemetry'}: not installed. Run: {INSTALL}") from None
    return Path(auto_instrumentation.__file__).absolute().parent


def find(program: str, base: Mapping[str, str]) -> str:
    """
    Path of the executable that a shell would start for *program*.

    Raises:
        UserError: there is none.
    """
    found = shutil.which(program, path=base.get("PATH", os.defpath))
    if found is None:
        hint = f" Put its interpreter in front: python {program}" if program.endswith(".py") and Path(program).is_file() else ""
        wrong = "not executable" if os.path.dirname(program) and Path(program).exists() else "command not found"  # noqa: PTH120 - Path drops the "./" that tells a path from a name
        raise UserError(f"{program}: {wrong}.{hint or ' Check the name and PATH.'}")
    return found


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended: an exit code, or the signal that killed it."""

    exit_code: int | None
    signal: int | None

    @property
    def signal_name(self) -> str | None:
        """`SIGKILL`; `signal 40` for a real-time one, which has no name."""
        if self.signal is None:
            return None
        return next((known.name for known in signal.Signals if known == self.signal), f"signal {self.signal}")

    @property
    def shell_code(self) -> int:
        """The number that a shell shows."""
        return self.exit_code if self.exit_code is not None else 128 + (self.signal or 0)


class Child:
    """
    A running command. Inside `with`, signals to us wait until `follow` takes them.

    Raises:
        UserError: the executable cannot be started.
    """

    def __init__(self, executable: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        # A signal ignored since before we started (nohup, a background job) stays ignored for both of us.
        self._signals = {*(number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN), signal.SIGCHLD}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        # Ignored SIGCHLD would throw away the exit code.
        self._on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            self.pid = os.posix_spawn(executable, list(command), environ, setsigmask=self._mask, setsigdef=_PYTHON_IGNORES)
        except OSError as error:
            self._restore()
            raise UserError(f"{executable}: {(error.strerror or 'cannot be started').lower()}. Check that it is a program.") from None

    def __enter__(self) -> Child:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        while signal.sigtimedwait(self._signals, 0) is not None:
            pass  # a second ^C that came with the child's end is not meant for what we print now
        self._restore()

    def _restore(self) -> None:
        if self._on_child is not None:
            signal.signal(signal.SIGCHLD, self._on_child)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def follow(self, interval: float, tick: Callable[[], None], before_stop: Callable[[], None]) -> Ending:
        """Pass signals on and call *tick* every *interval* seconds until the child ends; *before_stop* before ^Z takes effect."""
        while True:
            ending = self._ended()
            if ending is not None:
                return ending
            info = signal.sigtimedwait(self._signals, interval)
            if info is not None and info.si_signo != signal.SIGCHLD:
                self._take(info, before_stop)
            else:
                tick()

    def _take(self, info: signal.struct_siginfo, before_stop: Callable[[], None]) -> None:
        if info.si_code != _SI_KERNEL:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended, or became another user's
                os.kill(self.pid, info.si_signo)
        if info.si_signo == signal.SIGTSTP:
            before_stop()
            os.kill(os.getpid(), signal.SIGSTOP)  # SIGTSTP itself is blocked; the shell sees the job stopped and takes the terminal

    def _ended(self) -> Ending | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        code = os.waitstatus_to_exitcode(status)
        return Ending(code, None) if code >= 0 else Ending(None, -code)
