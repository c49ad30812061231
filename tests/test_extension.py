"""Rows that a distribution brings by an entry point: a real one on the path, in real processes, under each way of instrumenting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from loadspan import names
from loadspan.errors import UserError
from loadspan.report import tracefile
from loadspan.targets import Kind, Target

if TYPE_CHECKING:
    from pathlib import Path

    from loadspan.model import Load

LIBRARY = '''
import time


class Model:
    def read_tensor(self, name):
        time.sleep(0.002)
        return bytes(1000)


def load(path, device="cpu"):
    """Bring a model."""
    time.sleep(0.01)
    model = Model()
    model.tensors = [model.read_tensor(str(index)) for index in range(10)]
    return pack(model, device)


def pack(model, device):
    time.sleep(0.01)
    if device == "broken":
        raise OSError("no such device", device)
    return sum(map(len, model.tensors))
'''
ROWS = """
from loadspan.targets import Kind, Target, argument


def _describe(call, args, kwargs):
    call.set(path=argument(args, kwargs, 0, "path"), model="acme-7b")


def _packed(call, args, kwargs):
    call.set(device=argument(args, kwargs, 1, "device"))
    call.uses(args[0])


def _size(call, result, args, kwargs):
    call.set(size=result)
    call.makes(args[0])


ROWS = [
    Target(module="acme", attribute="load", kind=Kind.ROOT, describe=_describe, why="brings a model"),
    Target(
        module="acme",
        attribute="Model.read_tensor",
        kind=Kind.FINE,
        stage="deserialize",
        size=lambda result, args, kwargs: len(result),
        path=lambda args, kwargs: "weights.acme",
        format="acme",
        why="tensor by tensor",
    ),
    Target(module="acme", attribute="pack", stage="to_device", describe=_packed, measure=_size, why="to the device"),
    Target(module="acme", attribute="gone", stage="read", why="an older version had it"),
    Target(module="acme.later", attribute="gone", stage="read", why="not imported by anybody"),
]


def rows():
    return iter(ROWS)
"""
PROGRAM = """
import sys
imported = "acme_rows" in sys.modules
import acme
print(imported, "acme_rows" in sys.modules, acme.load("weights.acme", device="npu:1"), acme.load.__name__, acme.load.__doc__)
try:
    acme.load("x", device="broken")
except OSError as error:
    print(error.args)
"""


def distribution(folder: Path, name: str, entry_points: str, **modules: str) -> None:
    """A distribution in *folder*, as pip leaves one."""
    information = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[loadspan_targets]\n{entry_points}\n")
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages with the library and its rows."""
    folder = tmp_path / "site"
    distribution(folder, "acme-loadspan", "acme = acme_rows:ROWS", acme_rows=ROWS, acme=LIBRARY)
    return folder


def start(site: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LOADSPAN_"))}
    kept |= {"PYTHONPATH": str(site)} | environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept, cwd=site.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def run(site: Path, program: str, **environment: str) -> tuple[list[Load], subprocess.CompletedProcess[str]]:
    """Run *program* under `loadspan run`."""
    folder = site.parent / "run"
    command = (sys.executable, "-m", "loadspan", "run", "--quiet", "-o", str(folder), "--", sys.executable, "-c", program)
    done = start(site, *command, **environment)
    return tracefile.read(folder).loads, done


def check(loads: list[Load]) -> None:
    __tracebackhide__ = True
    load, failed = loads
    assert load.text(names.LOADER) == "acme"
    assert load.text(names.MODEL_NAME) == load.text(names.REQUEST_MODEL) == "acme-7b"
    deserialize, to_device = load.children
    assert (deserialize.name, deserialize.size, deserialize.number(names.OPERATION_COUNT)) == ("deserialize", 10_000, 10)
    assert (deserialize.text(names.FORMAT), deserialize.text(names.FILE_PATH)) == ("acme", "weights.acme")
    assert (to_device.name, to_device.size) == ("to_device", 10_000)
    assert (to_device.text(names.DEVICE_TYPE), to_device.number(names.DEVICE_INDEX)) == ("npu", 1)
    assert failed.text(names.ERROR_TYPE) == "OSError"


def test_under_loadspan_run_rows_are_loaded_once_their_library_was_imported(site: Path) -> None:
    loads, done = run(site, PROGRAM)
    check(loads)
    assert done.stdout == "False True 10000 load Bring a model.\n('no such device', 'broken')\n"
    assert "loadspan:" not in done.stderr


def test_under_opentelemetry_instrument(site: Path) -> None:
    launcher = os.path.join(os.path.dirname(sys.executable), "opentelemetry-instrument")  # noqa: PTH118, PTH120 - plain text
    folder = site.parent / "run"
    exporters = {"OTEL_TRACES_EXPORTER": "loadspan", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    start(site, launcher, sys.executable, "-c", PROGRAM, LOADSPAN_DIR=str(folder), **exporters)
    check(tracefile.read(folder).loads)


BY_HAND = """
import json, sys
if {after!r}: import acme; by_name = acme.pack
from loadspan import LoadspanInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
counts = []
for _ in range(2):
    LoadspanInstrumentor().instrument(tracer_provider=provider)
    import acme
    acme.load("weights.acme")
    LoadspanInstrumentor().uninstrument()
    counts.append(len(exporter.get_finished_spans()))
    acme.load("weights.acme")
    counts.append(len(exporter.get_finished_spans()))
print(json.dumps([counts, hasattr(acme.load, "__wrapped__"), hasattr(acme.Model.read_tensor, "__wrapped__")]))
"""


@pytest.mark.parametrize("after", [True, False], ids=["library first", "loadspan first"])
def test_by_hand_and_uninstrumented_and_once_more(site: Path, *, after: bool) -> None:
    done = start(site, sys.executable, "-c", BY_HAND.format(after=after))
    assert json.loads(done.stdout) == [[3, 3, 6, 6], False, False]
    assert done.stderr == ""


def test_a_function_may_give_the_rows(site: Path) -> None:
    (site / "acme_loadspan-1.0.dist-info" / "entry_points.txt").write_text("[loadspan_targets]\nacme = acme_rows:rows\n")
    check(run(site, PROGRAM)[0])


def test_where_the_library_is_absent_or_not_imported_nothing_is_loaded_or_said(site: Path) -> None:
    distribution(site, "absent-loadspan", "absent = absent_rows:ROWS", absent_rows="raise RuntimeError('looked at')")
    program = "import sys; print('acme' in sys.modules, 'acme_rows' in sys.modules, 'absent_rows' in sys.modules)"
    with pytest.raises(UserError):
        run(site, program)
    done = start(site, sys.executable, "-m", "loadspan", "run", "--quiet", "--", sys.executable, "-c", program)
    assert done.stdout == "False False False\n"
    assert "warn" not in done.stderr.lower()
    assert "looked at" not in done.stderr


BROKEN = {
    "raises": ("raise RuntimeError('no such thing')", "raises_rows:ROWS", "RuntimeError: no such thing"),
    "missing": ("", "missing_rows:ROWS", "AttributeError: module 'missing_rows' has no attribute 'ROWS'"),
    "imports": ("import nowhere_to_be_found", "imports_rows:ROWS", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    "listless": ("ROWS = 3", "listless_rows:ROWS", "TypeError: 'int' object is not iterable"),
    "strange": ("ROWS = ['acme.load']", "strange_rows:ROWS", "TypeError: 'acme.load' is not a loadspan.targets.Target"),
    "fails": ("def ROWS(): raise KeyError('x')", "fails_rows:ROWS", "KeyError: 'x'"),
    "staged": (
        "from loadspan.targets import Target\nROWS = [Target(module='json', attribute='loads', stage='think', why='')]",
        "staged_rows:ROWS",
        "ValueError: loadspan: row json.loads: 'think' is not a stage.",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_entry_point_costs_one_warning_that_names_it_and_nothing_else(site: Path, name: str) -> None:
    text, value, told = BROKEN[name]
    distribution(site, f"{name}-loadspan", f"acme = {value}", **{f"{name}_rows": text})
    loads, done = run(site, PROGRAM)
    check(loads)
    assert done.stdout.startswith("False True 10000")
    [warning] = [line for line in done.stderr.splitlines() if "loadspan: entry point" in line]
    assert f"loadspan: entry point acme = {value} of {name}-loadspan: {told}" in warning
    assert warning.endswith("Its rows are left out.")
    assert "Traceback" not in done.stderr


def test_an_entry_point_that_is_named_after_no_module_is_told_of(site: Path) -> None:
    distribution(site, "odd-loadspan", "my-library = odd_rows:ROWS", odd_rows="")
    _, done = run(site, PROGRAM)
    assert "entry point my-library = odd_rows:ROWS of odd-loadspan: its name is not that of a module." in done.stderr


def test_callbacks_that_fail_cost_one_warning_and_the_load_goes_on(site: Path) -> None:
    broken = ROWS.replace('call.set(path=argument(args, kwargs, 0, "path"), model="acme-7b")', 'call.set(colour="red")')
    (site / "acme_rows.py").write_text(broken.replace("len(result)", "result.length"))
    loads, done = run(site, PROGRAM)
    assert [span.name for span in loads[0].walk()] == ["load model", "deserialize", "to_device"]
    assert loads[0].children[0].number(names.OPERATION_COUNT) == 10
    assert loads[0].children[0].size is None
    [warning] = [line for line in done.stderr.splitlines() if "loadspan:" in line]
    assert "_describe failed: TypeError: loadspan: unknown fact 'colour'" in warning
    assert done.stdout.startswith("False True 10000")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"stage": "think"}, "'think' is not a stage"),
        ({}, "'' is not a stage"),
        ({"kind": Kind.ROOT, "stage": "read"}, "a root is a load and no stage"),
        ({"kind": Kind.FINE, "stage": "read", "describe": print}, "fine calls are counted"),
        ({"stage": "read", "size": len}, "are of fine calls"),
    ],
)
def test_a_row_whose_fields_do_not_go_together_says_so(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Target(module="acme", attribute="load", why="", **fields)
