"""Programs that import libraries, instrument and load, in one order or another; each in a process of its own, which tells what it saw."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

PRELUDE = '''
import importlib, json, os, sys, threading, types
from pathlib import Path
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import loadspan, loadspan.guard
loadspan.guard.raising = True
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
folder = Path(sys.argv[1])
OURS = str(Path(loadspan.__file__).parent)

def instrument():
    loadspan.LoadspanInstrumentor().instrument(tracer_provider=provider)

def uninstrument():
    loadspan.LoadspanInstrumentor().uninstrument()

def user(code):
    """A module of the program, with names of its own."""
    module = types.ModuleType("user")
    sys.modules["user"] = module
    exec(code, module.__dict__)
    return module

def is_ours(thing):
    thing = thing.__func__ if isinstance(thing, (staticmethod, classmethod, types.MethodType)) else thing
    return isinstance(thing, types.FunctionType) and thing.__code__.co_filename.startswith(OURS)

def everything():
    """Every name of every module and class that is not ours."""
    for place, module in list(sys.modules.items()):
        if place.partition(".")[0] == "loadspan" or not isinstance(module, types.ModuleType):
            continue
        for name, thing in list(vars(module).items()):
            if place == "__main__" and name in ("is_ours", "instrument", "uninstrument"):
                continue
            yield f"{place}.{name}", thing
            if isinstance(thing, type) and not str(thing.__module__).startswith("loadspan"):
                for part, inner in list(vars(thing).items()):
                    yield f"{place}.{name}.{part}", inner

def left():
    return sorted(name for name, thing in everything() if is_ours(thing))

def missed():
    """Copies of functions that others have by name, and that are not recorded."""
    patches = loadspan.LoadspanInstrumentor()._patches._installed
    patches = [patch for patch in patches if isinstance(patch.owner, types.ModuleType) and hasattr(patch.ours, "__loadspan_target__")]
    raws = {id(patch.raw): patch for patch in patches if isinstance(patch.raw, types.FunctionType)}
    return sorted(name for name, thing in everything() if id(thing) in raws and raws[id(thing)].raw is thing)

def loads():
    """Of each outermost load: library, and bytes by stage."""
    from loadspan.instrument.live import recorder
    recorder.close_all()
    spans = exporter.get_finished_spans()
    by_id = {span.context.span_id: span for span in spans}
    def root(span):
        while span.parent is not None and span.parent.span_id in by_id:
            span = by_id[span.parent.span_id]
        return span.context.span_id
    found = {}
    for span in sorted(spans, key=lambda span: span.start_time):
        if span.parent is None:
            found[span.context.span_id] = {"loader": span.attributes.get("loadspan.loader")}
    for span in spans:
        stage = span.attributes.get("loadspan.stage")
        if stage:
            sizes = found[root(span)]
            sizes[stage] = sizes.get(stage, 0) + span.attributes.get("loadspan.size", 0)
    exporter.clear()
    return list(found.values())

def tell(**more):
    print(json.dumps(more))
'''


def child(script: str, folder: Path, work: Path) -> dict[str, Any]:
    """What the program *script* tells with `tell`."""
    program = work / "program.py"
    program.write_text(PRELUDE + script)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), str(folder)], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert "loadspan: " not in done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
