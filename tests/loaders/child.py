"""One half of a case, in a process of its own: `child.py write|load LIBRARY NAME FOLDER OUTPUT`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import case
import digest


def main(action: str, library: str, name: str, folder: str, output: str) -> None:
    """Write the files, or load them; what came out of it goes to *output*."""
    found = case.find(library, name)
    if action == "write":
        outcome: object = found.write(Path(folder))
        os.sync()  # writing back later would disturb the loads
    else:
        begun = time.perf_counter()
        try:
            result = found.load(Path(folder))
        except Exception as error:  # noqa: BLE001 - compared, whatever it is
            result = error
        outcome = {"seconds": time.perf_counter() - begun, "digest": digest.of(result), "raised": isinstance(result, Exception)}
    Path(output).write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
