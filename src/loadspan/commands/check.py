"""`loadspan check`: what can be known of a path and the devices before anything is loaded."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loadspan.checkup import answers, capture, captured, manifest, schema, survey
from loadspan.checkup.scrub import Scrub
from loadspan.commands import chosen, show
from loadspan.errors import UserError
from loadspan.facts.tree import HERE, Tree
from loadspan.report import checkup as report
from loadspan.report.text import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadspan.checkup.answers import Answers, Place
    from loadspan.checkup.schema import Checkup, Measured


class Check:
    """
    Look at paths, devices and this machine without loading anything.

    PATH is a file or a model folder. A PCIe link is read while it is idle, which says what it could do and nothing about what it does
    under load: record one with `loadspan run`. What cannot be known is left out.
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of `check`."""
        parser.add_argument("paths", nargs="*", metavar="PATH", help="file or folder with weights (default: only machine and devices)")
        parser.add_argument("--device", metavar="DEVICE", help="only this one: cuda:0, GPU0 or a PCI address")
        parser.add_argument(
            "--measure",
            action="store_true",
            help="also measure what storage, one core and the devices can do, and keep it for later findings. It says what it will read; "
            "each probe is bounded by 10 s and 4.29 GB",
        )
        parser.add_argument(
            "--scratch", metavar="DIR", help="with --measure: also measure DIR, with a file that is written there and removed"
        )
        parser.add_argument(
            "--root", metavar="DIR|FILE", help="read DIR/sys and DIR/proc, or a FILE.tar.gz of --save, and not this machine"
        )
        parser.add_argument(
            "--save", metavar="FILE", help="also write the kernel files that were read to a new FILE.tar.gz, to send to somebody"
        )
        parser.add_argument("--json", action="store_true", help="print the same facts as JSON instead; docs/check.md describes the fields")
        parser.add_argument("--width", type=int, metavar="N", help="columns to draw in (default: the terminal's, 100 where there is none)")
        parser.add_argument(
            "--color",
            action=argparse.BooleanOptionalAction,
            help="colors, or none with --no-color (default: colors on a terminal, unless NO_COLOR is set)",
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Print what was found."""
        _refuse(arguments)
        tree, told = _recorded(arguments.root, arguments.paths) if arguments.root else _here(arguments.paths, recorded=bool(arguments.save))
        found = survey.make(tree, told)
        if arguments.device:
            found = chosen.choose(arguments.device, found)
        if not arguments.root:
            found = replace(found, measured=_measured(found, arguments))
            told = replace(told, measured=found.measured)
        if arguments.json:
            print(json.dumps(schema.as_json(found), indent=2))
        else:
            look = show.look(sys.stdout, width=arguments.width, color=arguments.color)
            print(*report.lines(found, look), sep="\n")
        if isinstance(tree, capture.Recorder):
            _save(arguments.save, tree, told, sys.stderr if arguments.json else sys.stdout)
        return 0


def _refuse(arguments: argparse.Namespace) -> None:
    """Options that contradict each other or name nothing, before anything is read."""
    for name in ("device", "root", "save", "scratch"):
        if getattr(arguments, name) == "":  # a variable of the shell that is not set: the answer would be about something else
            raise UserError(f"--{name}: names nothing. Give it a value, or leave it out.")
    for name in ("save", "measure"):
        if getattr(arguments, name) and arguments.root:
            raise UserError(f"--{name}: not together with --root, which is about another machine. Leave one of them out.")
    if arguments.save and os.path.lexists(arguments.save):
        raise UserError(f"{arguments.save}: exists already. Name a new file with --save, or remove this one.")
    if arguments.scratch and not arguments.measure:
        raise UserError("--scratch: nothing is measured without --measure. Add it.")
    if arguments.scratch and not os.path.isdir(arguments.scratch):  # noqa: PTH112 - a path as the user gave it
        raise UserError(f"{arguments.scratch}: not a folder. Name one with --scratch that can be written.")


def _measured(found: Checkup, arguments: argparse.Namespace) -> tuple[Measured, ...]:
    """What is measured now, or else what was earlier."""
    from loadspan.commands.measure import kept, measure

    return tuple(measure(found, arguments.scratch, _named(arguments.device))) if arguments.measure else kept(found)


def _named(device: str | None) -> str | None:
    """*device* where it is a name that torch understands."""
    return device if device and chosen.TORCH_NAME.fullmatch(device) else None


def _here(paths: Sequence[str], *, recorded: bool) -> tuple[Tree, Answers]:
    """This machine."""
    for path in paths:
        _refuse_missing(path)
    tree = capture.Recorder() if recorded else HERE
    return tree, answers.ask(paths, os.environ, tree)


def _refuse_missing(path: str) -> None:
    try:
        os.stat(path)  # noqa: PTH116 - for its error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: {reason.lower()}. Give a file or folder with weights.") from None


def _recorded(root: str, paths: Sequence[str]) -> tuple[Tree, Answers]:
    """The machine below or in *root*. This one is not asked anything."""
    if os.path.isdir(root):  # noqa: PTH112 - a path as the user gave it
        tree = Tree(os.path.abspath(root))  # noqa: PTH100 - as above
        tree.here = False
        if not tree.names("sys") and not tree.names("proc"):
            raise UserError(
                f"{root}: neither sys nor proc in it. Give a folder that holds them, or a FILE.tar.gz of loadspan check --save."
            )
    elif not os.path.exists(root):  # noqa: PTH110 - as above
        raise UserError(f"{root}: no such file or directory. Give a folder that holds sys and proc, or a FILE.tar.gz.")
    elif stat.S_ISREG(os.stat(root).st_mode):  # noqa: PTH116 - as above
        tree = captured.read(root)
    else:
        raise UserError(f"{root}: neither a folder nor a file. Give a folder that holds sys and proc, or a FILE.tar.gz.")
    told = manifest.parse(captured.manifest(tree))
    if not paths:
        return tree, told
    return tree, replace(told, places=tuple(_place(path, told, root) for path in paths))


def _place(path: str, told: Answers, root: str) -> Place:
    """The place of the captured machine that *path* names."""
    found = next((place for place in told.places if path.rstrip("/") in (place.path.rstrip("/"), place.resolved)), None)
    if found is not None:
        return found
    if told.places or not path.startswith("/"):
        # Of a capture only the mounts of its own paths are known: for another one the answer would be wrong.
        known = ", ".join(place.path for place in told.places)
        raise UserError(f"{path}: not in {root}. " + (f"It has {known}." if known else "Give an absolute path of the machine there."))
    resolved = os.path.normpath(path)
    return answers.Place(path, resolved, groups=(answers.Group(resolved),))


def _save(path: str, tree: capture.Recorder, told: Answers, stream: Any) -> None:
    """Write the capture and tell what is in it."""
    places = [
        name
        for place in told.places
        for name in (place.path, place.resolved, *(file for group in place.groups for file in (group.file, group.below) if file))
    ]
    scrub = Scrub(os.uname().nodename, places)
    written = capture.write(path, tree, manifest.as_json(manifest.scrubbed(told, scrub)), scrub)
    print(f"\nsaved: {clean(path)}, {written.size} bytes. It holds what was read of", file=stream)
    for line in report.listing(written.files, show.look(stream).width):
        print(line, file=stream)
    kept = "It says which paths were asked about and where they are mounted. " if places else ""
    kept += "Serial numbers, UUIDs, host and server names and addresses are left out or replaced. Look into it before you send it."
    print(*report.words(kept, show.look(stream).width), sep="\n", file=stream)
