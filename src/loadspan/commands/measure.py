"""`loadspan check --measure`: says what it will do, measures, shows how far it is, and keeps what it found."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from loadspan import units
from loadspan.checkup.schema import Measured
from loadspan.facts import ceilings, storage
from loadspan.facts.rates import Rate
from loadspan.probes import crypto
from loadspan.probes import device as device_probe
from loadspan.probes import storage as storage_probe
from loadspan.report.text import clean, cut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadspan.checkup.schema import Checkup
    from loadspan.facts.ceilings import Place
    from loadspan.probes import Outcome, Plan

_INTERVAL = 0.1
_COLUMNS = 79


def measure(found: Checkup, scratch: str | None, device: str | None) -> Iterator[Measured]:
    """Every ceiling of the paths of *found*, of folder *scratch*, of one core and of the devices; of *device* alone if that is given."""
    line = _Line()
    seen: list[ceilings.Mount] = []
    for path, folder in [*((place.resolved, None) for place in found.paths), *([(scratch, scratch)] if scratch else [])]:
        facts = storage.of_file(path)
        mount = None if facts is None else ceilings.Mount(facts.filesystem, facts.mountpoint, facts.device or facts.source)
        if mount is not None and mount in seen and folder is None:
            continue  # two paths on one filesystem
        seen += [mount] if mount is not None else []
        yield from _run(storage_probe.plan(path, scratch=folder), path, mount, line)
    yield from _run(crypto.plan(), None, ceilings.Processor(), line)
    for one in found.devices:
        name = one.torch_name or device
        if name is None:
            continue
        place = ceilings.Device(one.type or name.partition(":")[0], None, one.pci_address)
        yield from _run(device_probe.plan(name), name if name == one.label else f"{one.label} ({name})", place, line)


def kept(found: Checkup) -> tuple[Measured, ...]:
    """What earlier runs measured of the filesystems and devices of *found*."""
    known = ceilings.read()
    answers: list[Measured] = []
    for storages in (place.storage for place in found.paths):
        for one in storages:
            mount = ceilings.Mount(one.filesystem or "", one.mountpoint or "", one.device or one.source)
            answers += [_kept(entry, one.mountpoint) for entry in known.for_mount(mount)]
    for device in found.devices:
        of_device = ceilings.Device(device.type or "", None, device.pci_address)
        answers += [_kept(entry, device.label) for entry in known.for_device(of_device)]
    return tuple(dict.fromkeys(answers))


def _kept(entry: ceilings.Ceiling, about: str | None) -> Measured:
    return replace(_measured(entry.rate, about), measured=entry.measured)


def _run(plan: Plan, about: str | None, place: Place | None, line: _Line) -> Iterator[Measured]:
    """Run *plan* and keep its rates."""
    for text in plan.lines:
        line.say(f"loadspan check: {text}")
    rates = []
    for outcome in plan.run(line.progress):
        line.clear()
        if isinstance(outcome, Rate):
            rates.append(outcome)
        yield _measured(outcome, about)
    if rates and place is not None:
        ceilings.save(rates, place)


def _measured(outcome: Outcome, about: str | None) -> Measured:
    if isinstance(outcome, Rate):
        return Measured(
            probe=outcome.probe,
            about=about,
            rate=outcome.rate,
            size=outcome.size,
            duration=outcome.seconds,
            depth=outcome.depth,
            block=outcome.block,
            verified=outcome.verified,
            source=outcome.source,
            note=outcome.note,
        )
    return Measured(probe=outcome.probe, about=about, depth=outcome.depth, skipped=outcome.reason)


class _Line:
    """One line on a terminal that says how far a probe is; nothing of it in a file or pipe."""

    def __init__(self) -> None:
        self._drawn = False
        self._last = 0.0
        self._shown = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(clean(text), file=sys.stderr)

    def progress(self, what: str, done: int, most: int) -> None:
        """How far it is."""
        now = time.monotonic()
        if self._shown and now - self._last >= _INTERVAL:
            self._last, self._drawn = now, True
            text = cut(clean(f"  {what}  {units.size(done)} of {units.size(most)} at most"), _COLUMNS)
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take it away."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._drawn = False
