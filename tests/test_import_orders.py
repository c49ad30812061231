"""Programs that import the library before or after instrument(), by name or lazily: recorded once, and nothing left."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PRELUDE = """
import json, sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
import loadspan, loadspan.guard
loadspan.guard.raising = True
path = sys.argv[1]
def instrument():
    before = set(sys.modules)
    loadspan.LoadspanInstrumentor().instrument(tracer_provider=provider)
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not new & {"torch", "safetensors", "numpy", "peft", "cryptography", "Crypto", "nacl"}, new
def uninstrument():
    loadspan.LoadspanInstrumentor().uninstrument()
def finish():
    loadspan.LoadspanInstrumentor().uninstrument()
    spans = exporter.get_finished_spans()
    import safetensors, safetensors.torch, torch
    wrapped = [
        name for name, thing in {
            "load_file": safetensors.torch.load_file, "torch.load": torch.load, "torch.serialization.load": torch.serialization.load,
            "load_state_dict": torch.nn.Module.load_state_dict, "_apply": torch.nn.Module._apply,
            "get_tensor": safetensors.safe_open.get_tensor, "mine": globals().get("load_file"), "open": open,
        }.items() if hasattr(thing, "__wrapped__")
    ]
    import builtins, io
    assert builtins.open is io.open
    print(json.dumps({"stages": sorted(span.name for span in spans), "left": wrapped}))
"""
USE = """
def use(load_file):
    import torch
    model = torch.nn.Linear(1000, 500, bias=False)
    model.load_state_dict(load_file(path))
    model.half()
"""
EXPECTED = ["convert", "deserialize", "load model", "load_state_dict"]

ORDERS = {
    "library, then instrument": "import safetensors.torch\ninstrument()\nuse(safetensors.torch.load_file)",
    "instrument, then library": "instrument()\nimport safetensors.torch\nuse(safetensors.torch.load_file)",
    "name, then instrument": "from safetensors.torch import load_file\ninstrument()\nuse(load_file)",
    "instrument, then name": "instrument()\nfrom safetensors.torch import load_file\nuse(load_file)",
    "lazily in a function": (
        "instrument()\ndef lazily():\n    from safetensors.torch import load_file\n    use(lambda path: load_file(path))\nlazily()"
    ),
    "name in a module of the program": (
        "import types\nuser = types.ModuleType('user')\nsys.modules['user'] = user\n"
        "exec('from safetensors.torch import load_file', user.__dict__)\ninstrument()\nuse(user.load_file)"
    ),
    "two calls": "instrument()\ninstrument()\nimport safetensors.torch\ninstrument()\nuse(safetensors.torch.load_file)",
    "instrument, uninstrument, instrument": (
        "import safetensors.torch\ninstrument()\nuninstrument()\ninstrument()\nuse(safetensors.torch.load_file)"
    ),
    "the same before the library": ("instrument()\nuninstrument()\ninstrument()\nfrom safetensors.torch import load_file\nuse(load_file)"),
    "library between": (
        "instrument()\nuninstrument()\nfrom safetensors.torch import load_file\nassert not hasattr(load_file, '__wrapped__')\n"
        "instrument()\nuse(load_file)"
    ),
}


@functools.cache
def _file() -> bytes:
    import safetensors.torch
    import torch

    return safetensors.torch.save({"weight": torch.zeros(500, 1000)})


def child(script: str, tmp_path: Path) -> dict[str, Any]:
    """What a program of its own prints at its end."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(_file())
    program = tmp_path / "program.py"
    program.write_text(PRELUDE + USE + script + "\nfinish()\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    # OpenTelemetry's own remark on a second instrument() or uninstrument() is no fault of anybody's here.
    said = [line for line in done.stderr.splitlines() if not line.startswith("Attempting to ")]
    assert (done.returncode, said) == (0, []), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_in_every_order_of_import_the_load_is_recorded_once_and_nothing_is_left(order: str, tmp_path: Path) -> None:
    assert child(ORDERS[order], tmp_path) == {"stages": EXPECTED, "left": []}


def test_after_uninstrument_nothing_is_recorded_whatever_names_the_program_kept(tmp_path: Path) -> None:
    script = """
instrument()
from safetensors.torch import load_file
kept = [load_file]
uninstrument()
use(kept[0])
use(load_file)
"""
    assert child(script, tmp_path) == {"stages": [], "left": []}
