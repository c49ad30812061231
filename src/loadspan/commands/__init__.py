"""
The command line: lists the commands, parses, and alone turns exceptions into one line and an exit code.

Exit codes: 0 done, 2 the user has to change something, 130 interrupted, 141 the reader of a pipe went away; `run` passes its command's.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from loadspan.errors import UserError
from loadspan.report.text import clean
from loadspan.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

_USER_ERROR, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141

_EXAMPLE = """\
example:
  $ loadspan run -- python serve.py     record a program; its waterfalls appear as its models load
  $ loadspan show                       the waterfalls of the newest run again
"""


class Command(Protocol):
    """One command; its docstring is its help."""

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it. Returns the exit code; raises UserError for what the user has to change."""


def commands() -> dict[str, Command]:
    """All commands, in the order of the help."""
    # Imported here so that `import loadspan.commands` stays cheap for whoever needs only one of them.
    from loadspan.commands.check import Check
    from loadspan.commands.demo import Demo
    from loadspan.commands.run import Run
    from loadspan.commands.show import Show
    from loadspan.commands.view import View

    return {"run": Run(), "show": Show(), "view": View(), "check": Check(), "demo": Demo()}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other error of ours."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help")


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the example's lines, and shows every default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or isinstance(action.default, bool) else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    # No abbreviations: an option added later must not change what a script's `--no` means.
    parser = _Parser(
        prog="loadspan",
        description="Shows where a model's load time goes, and why.",
        epilog=_EXAMPLE,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"loadspan {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, command in commands().items():
        text = (command.__doc__ or "").strip()
        subparser = subparsers.add_parser(
            name, help=text.splitlines()[0], description=_dedented(text), formatter_class=_Help, allow_abbrev=False
        )
        command.prepare(subparser)
        subparser.set_defaults(selected=command)
    return parser


def _dedented(docstring: str) -> str:
    return "\n".join(line.strip() for line in docstring.splitlines())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (default: this process's) and return its exit code."""
    _open_streams()
    argv = sys.argv[1:] if argv is None else list(argv)
    name = f"loadspan {argv[0]}" if argv and argv[0] in commands() else "loadspan"
    try:
        parser = _parser()
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help(sys.stderr)
            return _USER_ERROR
        code: int = arguments.selected.run(arguments)
        sys.stdout.flush()  # here, where a reader that left is still ours to handle
    except UserError as error:
        return _refuse(name, str(error))
    except BrokenPipeError:
        # `loadspan show | head`. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        if error.errno == errno.ENOSPC and not error.filename:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails once more at exit
        thing = f"{error.filename}: " if error.filename else ""
        return _refuse(name, f"{thing}{(error.strerror or str(error)).lower()}.")
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _open_streams() -> None:
    """Somewhere to print to for a process that was started with its standard output or error closed."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open for as long as the process runs
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - as above


def _refuse(name: str, message: str) -> int:
    with contextlib.suppress(OSError):  # standard error is gone as well: the exit code has to say it
        print(clean(f"{name}: {message}"), file=sys.stderr)
    return _USER_ERROR
