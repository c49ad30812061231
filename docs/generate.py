"""
Writes docs/reference.md and the fields in docs/check.md from the code: `python docs/generate.py`.

With `--check` it says whether they are up to date. The tests run that, so the pages cannot fall behind.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

from loadspan import commands, findings, metric_names, names, units, variables
from loadspan.checkup import schema
from loadspan.findings import ranks
from loadspan.instrument import targets
from loadspan.settings import Settings

PAGE = Path(__file__).with_name("reference.md")
CHECK = Path(__file__).with_name("check.md")
FIELDS = ("<!-- fields: made by generate.py -->", "<!-- end of fields -->")

HEAD = """# Reference

Made by `python docs/generate.py` from `src/loadspan/names.py`, the target rows and the commands. Do not edit it by hand.
"""

STAGES = {
    names.DOWNLOAD: "bytes from a hub or object store to this host",
    names.READ: "bytes from a file or mount into memory, uninterpreted",
    names.DECRYPT: "ciphertext to plaintext; key derivation is part of it and told apart",
    names.DESERIALIZE: "bytes to tensors: headers, unpickling, views on a mapped file",
    names.INITIALIZE: "modules constructed, code imported, or the first use of a device",
    names.LOAD_STATE_DICT: "tensors copied or assigned into a module",
    names.CONVERT: "weights changed where they are: cast, quantize, dequantize, repack",
    names.MERGE_LORA: "an adapter injected into a model, merged into its weights, or taken out again",
    names.TO_DEVICE: "weights to another device, a cast on the way included",
    names.COMPILE: "graph or kernel compilation, compiled artifacts",
    names.CACHE: "a shared-memory or application cache asked or filled",
}


def _summary(command: commands.Command) -> str:
    return (command.__doc__ or "").strip().splitlines()[0]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(name: str) -> str:
    return f"`{name}`"


def page() -> str:
    """The whole page."""
    rows: dict[str, list[str]] = {}
    for row in targets.rows(Settings()):
        rows.setdefault(row.module.partition(".")[0], []).append(f"`{row.module}.{row.attribute}`")
    return (
        "\n\n".join(
            [
                HEAD.rstrip(),
                "## Commands",
                table(
                    ("command", "what it does"),
                    [(f"`loadspan {name}`", _summary(command)) for name, command in commands.commands().items()],
                ),
                "## Stages",
                "The name of a stage is the name of its span and its `loadspan.stage`.",
                table(("stage", "what it is"), [(f"`{stage}`", STAGES[stage]) for stage in names.STAGES]),
                "## Attributes",
                "Sizes are bytes, durations seconds. A value that is not known is absent.",
                table(
                    ("attribute", "type", "unit", "on", "meaning"),
                    [(f"`{item.name}`", item.type, item.unit, item.on, item.meaning) for item in names.ATTRIBUTES],
                ),
                "## Findings",
                (
                    "What should be done about a load, told by its span (`loadspan.findings`) and below its waterfall, the most seconds "
                    f"first. Only outermost loads have them; those of less than {units.seconds(findings.LONG)} only that of their link. "
                    "A finding is not told where what it needs is absent. The last two are of a group of ranks: `show` and `run` tell them."
                ),
                table(
                    ("finding", "when", "why it costs time", "attributes"),
                    [
                        (f"`{rule.id}`", rule.when, rule.mechanism, ", ".join(map(_code, rule.needs + rule.uses)))
                        for rule in (*findings.RULES, *ranks.RULES)
                    ],
                ),
                "## Metrics",
                (
                    "Recorded when a load ends, with the attributes that are known, and with the load's trace as exemplar. "
                    f"An attribute has the first {metric_names.VALUES} values that a process meets; what comes later goes without it. "
                    "Where processes share a "
                    "`service.instance.id`, `process.pid` tells their series apart."
                ),
                table(
                    ("metric", "instrument", "unit", "attributes", "meaning"),
                    [
                        (f"`{item.name}`", item.instrument, item.unit, ", ".join(f"`{name}`" for name in item.attributes), item.meaning)
                        for item in metric_names.METRICS
                    ],
                ),
                "## Environment variables",
                table(
                    ("variable", "default", "values", "meaning"),
                    [
                        (f"`{item.name}`", f"`{item.default}`" if item.default else "", item.values, item.meaning)
                        for item in variables.VARIABLES
                    ],
                ),
                "## What is wrapped",
                "A row waits for its library; one that a version does not have is skipped.",
                table(("library", "functions"), [(library, ", ".join(functions)) for library, functions in rows.items()]),
            ]
        )
        + "\n"
    )


def _kind(annotation: str) -> str:
    """How JSON has a field of that type, and a link to the part that it is."""
    plain = annotation.removesuffix(" | None")
    inner = plain.removeprefix("tuple[").removesuffix(", ...]")
    many = "list of " if plain.startswith("tuple[") else ""
    if inner in {part.__name__ for part in schema.SCHEMA}:
        return f"{many}[{inner}](#{inner.lower()})"
    types = {
        "str": "string",
        "int": "integer",
        "float": "number",
        "bool": "boolean",
        "Mapping[str, str]": "object",
        "Mapping[str, int]": "object",
    }
    return many + types[inner]


def fields() -> str:
    """The fields of the JSON of `loadspan check`."""
    found = []
    for part in schema.SCHEMA:
        rows = [
            (f"`{field.name}`", _kind(str(field.type)), field.metadata["unit"], field.metadata["meaning"])
            for field in dataclasses.fields(part)
        ]
        found += [f"### {part.__name__}", (part.__doc__ or "").strip(), table(("field", "type", "unit", "meaning"), rows)]
    return "\n\n".join(found)


def check_page() -> str:
    """The page about `loadspan check`, its fields as the code has them."""
    start, end = FIELDS
    return re.sub(f"{start}.*{end}", lambda _: f"{start}\n\n{fields()}\n\n{end}", CHECK.read_text(), flags=re.DOTALL)


def main() -> int:
    """Write the pages, or check them."""
    for path, text in ((PAGE, page()), (CHECK, check_page())):
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif path.read_text() != text:
            print(f"{path}: out of date. Run: python docs/generate.py", file=sys.stderr)  # noqa: T201 - a script speaks
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
