"""One half of a case, in a process of its own: `child.py write|load MODULE LIBRARY NAME FOLDER OUTPUT`."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path

import case
import digest


def main(action: str, module: str, library: str, name: str, folder: str, output: str) -> None:
    """Write the files, or load them; what came out of it goes to *output*."""
    found = case.find(module, library, name)
    if action == "write":
        Path(output).write_text(json.dumps(found.write(Path(folder))))
        os.sync()  # writing back later would disturb the loads
    else:
        Path(output).write_text(json.dumps(load(found, Path(folder))))


def load(found: case.Case, folder: Path) -> dict[str, object]:
    """What loading took, and everything that a user could tell one load from another by."""
    used, raised = None, ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        begun = time.perf_counter()
        try:
            result = found.load(folder)
        except Exception as error:  # noqa: BLE001 - compared, whatever it is
            result, raised = error, type(error).__name__
        seconds = time.perf_counter() - begun
        if found.use is not None and not raised:
            used = found.use(result)
    said = [f"warns {warning.category.__name__} {warning.message}" for warning in warned]
    return {"seconds": seconds, "raised": raised, "seen": [*digest.of(result), *digest.of(used), *said]}


if __name__ == "__main__":
    main(*sys.argv[1:])
