"""
The answers of a captured machine as its archive has them, in `loadspan.json`.

Anybody may have written it: what is not as `as_json` writes it is left out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loadspan.checkup import schema
from loadspan.checkup.answers import VARIABLES, Answers, Group, Place, Told
from loadspan.checkup.schema import Measured
from loadspan.facts import numa, pci

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loadspan.checkup.scrub import Scrub

_LARGEST = 1 << 62
_LONGEST = 1 << 13
_MOST = 1 << 12


def as_json(answers: Answers) -> dict[str, Any]:
    """*answers* for `loadspan.json`."""

    def known(part: Any) -> dict[str, Any]:
        found = {name: getattr(part, name) for name in part.__slots__}
        return {name: value for name, value in found.items() if value is not None}

    return {
        **known(answers),
        "accelerators": [known(told) for told in answers.accelerators],
        "measured": schema.as_json(answers.measured),
        "places": [{**known(place), "groups": [known(group) for group in place.groups]} for place in answers.places],
    }


def scrubbed(answers: Answers, scrub: Scrub) -> Answers:
    """*answers* without what *scrub* takes out, with the paths as its mounts have them."""
    places = []
    for place in answers.places:
        groups = [replace(group, file=scrub.path(group.file), below=group.below and scrub.path(group.below)) for group in place.groups]
        places.append(replace(place, path=scrub.path(place.path), resolved=scrub.path(place.resolved), groups=tuple(groups)))
    measured = [replace(one, about=one.about and scrub.path(one.about)) for one in answers.measured]
    environment = {name: scrub.text(text) for name, text in answers.environment.items()}
    return replace(answers, environment=environment, places=tuple(places), measured=tuple(measured))


def parse(manifest: Mapping[str, Any]) -> Answers:
    """The answers in *manifest*, a `loadspan.json`; what is not as `as_json` writes it is left out."""
    environment = manifest.get("environment")
    variables = environment if isinstance(environment, dict) else {}
    cpus = _text(manifest.get("cpus"))
    return Answers(
        environment={name: text for name in VARIABLES if (text := _text(variables.get(name), empty=True)) is not None},
        cpus=cpus if cpus and numa.parse_cpulist(cpus.encode()) else None,
        accelerators=tuple(_each(manifest.get("accelerators"), _parse_told)),
        nvlinks=tuple(_each(manifest.get("nvlinks"), _parse_nvlink)),
        places=tuple(_each(manifest.get("places"), _parse_place)),
        measured=tuple(_each(manifest.get("measured"), _parse_measured)),
    )


def _each(value: Any, parse: Callable[[Any], Any]) -> list[Any]:
    return [found for item in value[:_MOST] if (found := parse(item)) is not None] if isinstance(value, list) else []


def _text(value: Any, *, empty: bool = False) -> str | None:
    return value if isinstance(value, str) and len(value) <= _LONGEST and (value or empty) and "\0" not in value else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST else None


def _share(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else None


def _parse_told(item: Any) -> Told | None:
    address = pci.normalized(item["address"]) if isinstance(item, dict) and _text(item.get("address")) else None
    if address is None:
        return None
    whole = {name: _whole(item.get(name)) for name in ("memory", "c2c", "index")}
    return Told(address, _text(item.get("name")), **whole, visible=_flag(item.get("visible")))


def _parse_nvlink(item: Any) -> tuple[str, str, int] | None:
    if not isinstance(item, list) or len(item) != 3 or not _text(item[0]) or not _text(item[1]):  # noqa: PLR2004 - two ends and a count
        return None
    one, other, count = pci.normalized(item[0]), pci.normalized(item[1]), _whole(item[2])
    return (one, other, count) if one and other and count and count <= _MOST else None


def _parse_measured(item: Any) -> Measured | None:
    if not isinstance(item, dict) or _text(item.get("probe")) is None:
        return None
    parsers: dict[str, Callable[[Any], Any]] = {"str": _text, "bool": _flag, "int": _whole, "float": _rate}
    fields = {field.name: parsers[str(field.type).removesuffix(" | None")] for field in dataclasses.fields(Measured)}
    return Measured(**{name: parse(item.get(name)) for name, parse in fields.items()})


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _rate(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _LARGEST else None


def _parse_group(item: Any) -> Group | None:
    if not isinstance(item, dict):
        return None
    file, files, size = _text(item.get("file")), _whole(item.get("files")), _whole(item.get("size"))
    if file is None or not file.startswith("/"):
        return None
    below = _text(item.get("below"))
    group = Group(file, files, size, below=below if below is not None and below.startswith("/") else None)
    cached, cached_of = _share(item.get("cached")), _whole(item.get("cached_of"))
    if cached is None or not cached_of or size is None or cached_of > size:
        return group
    method, sampled = _text(item.get("method")), item.get("sampled") is True
    return replace(group, cached=cached, method=method, sampled=sampled, cached_of=cached_of, evicted=_share(item.get("evicted")))


def _parse_place(item: Any) -> Place | None:
    if not isinstance(item, dict):
        return None
    path, resolved, formats = _text(item.get("path")), _text(item.get("resolved")), item.get("formats")
    if path is None or resolved is None or not resolved.startswith("/"):
        return None
    counted = formats.items() if isinstance(formats, dict) and len(formats) <= _MOST else ()
    return Place(
        path=path,
        resolved=resolved,
        folder=_flag(item.get("folder")),
        formats={name: count for name, value in counted if _text(name) and (count := _whole(value))},
        unreadable=_whole(item.get("unreadable")) or 0,
        broken=_whole(item.get("broken")) or 0,
        complete=item.get("complete") is not False,
        groups=tuple(_each(item.get("groups"), _parse_group)),
    )
