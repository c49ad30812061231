"""What every patch owes the host: the same name, the same arguments, the same result, the same exception, and its own object back."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import pickle
import subprocess
import sys
import traceback
import types
from typing import TYPE_CHECKING, Any

import pytest

import loadspan
from loadspan.instrument import propagation, targets
from loadspan.instrument.calls import wrap
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Kind, Patches, Target
from loadspan.instrument.telemetry import Telemetry
from loadspan.settings import Settings
from recorded import Spans, provider_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALL_ROWS = [*propagation.ROWS, *targets.rows(Settings())]
NOTHING: Any = object()

NO_TAG = "the mode has no tag; one rule makes the rows of all modes"
NOT_HERE = {
    **{f"Crypto.Cipher._mode_{mode.lower()}:{mode}Mode.decrypt_and_verify": NO_TAG for mode in ("Ctr", "Cbc", "Cfb", "Ofb", "Ecb")},
    "Crypto.Cipher._mode_openpgp:OpenPgpMode.decrypt_and_verify": NO_TAG,
    "Crypto.Cipher.ChaCha20:ChaCha20Cipher.decrypt_and_verify": NO_TAG,
    "Crypto.Cipher.Salsa20:Salsa20Cipher.decrypt_and_verify": NO_TAG,
}
"""Rows whose attribute the installed version of the library lacks, and why that is right."""

NOT_INSTALLED = {"Cryptodome": "pycryptodomex is pycryptodome under another name; both at once are not installed"}
"""Libraries that are not installed here, and why that is right."""


def place(row: Target) -> str:
    return f"{row.module}:{row.attribute}"


INSTALLED = [row for row in ALL_ROWS if row.module.partition(".")[0] not in NOT_INSTALLED]
HERE = [row for row in INSTALLED if place(row) not in NOT_HERE]
WRAPPED = [row for row in ALL_ROWS if row.kind is not Kind.REPLACE]
every_row = pytest.mark.parametrize("row", HERE, ids=place)
every_wrapper = pytest.mark.parametrize("row", WRAPPED, ids=place)


def look(module: str, attribute: str) -> tuple[Any, str, Any]:
    """Owner, name, and what the owner's own dictionary has under it."""
    owner: Any = importlib.import_module(module)
    *path, name = attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, name, vars(owner).get(name, NOTHING)


def function_of(raw: Any) -> Any:
    return raw.__func__ if isinstance(raw, staticmethod | classmethod) else raw


def received(sent: bytes) -> Any:
    return pickle.loads(sent)  # noqa: S301 - sent by this test


@pytest.fixture
def patches() -> Iterator[Patches]:
    """Patches that are taken back whatever happens."""
    made = Patches(wrap)
    yield made
    made.restore()


# Each row where it belongs


@pytest.mark.parametrize("row", INSTALLED, ids=place)
def test_the_row_finds_its_attribute_or_the_table_says_why_not(row: Target) -> None:
    owner, name, _ = look(row.module, row.attribute)
    assert hasattr(owner, name) != (place(row) in NOT_HERE), NOT_HERE.get(place(row), "the attribute is missing")


def test_the_tables_of_exceptions_name_rows_that_there_are() -> None:
    assert set(NOT_HERE) <= {place(row) for row in ALL_ROWS}
    assert set(NOT_INSTALLED) <= {row.module.partition(".")[0] for row in ALL_ROWS}
    for library in NOT_INSTALLED:
        with pytest.raises(ImportError):
            importlib.import_module(library)


def test_no_attribute_has_two_rows() -> None:
    places = [place(row) for row in ALL_ROWS]
    assert sorted(places) == sorted(set(places))


@pytest.mark.parametrize("row", ALL_ROWS, ids=place)
def test_the_row_says_why_and_which_stage(row: Target) -> None:
    from loadspan.names import STAGES

    assert row.why
    assert row.stage in STAGES or row.kind in {Kind.ROOT, Kind.REPLACE}
    assert (row.replace is not None) == (row.kind is Kind.REPLACE)


@every_row
def test_restore_puts_back_the_very_object_and_installing_twice_wraps_once(row: Target, patches: Patches) -> None:
    places = [(row.module, row.attribute), *(tuple(alias.split(":")) for alias in row.aliases)]
    before = {places[0]: look(*places[0])}
    for alias in places[1:]:
        with contextlib.suppress(ImportError, AttributeError):  # an alias of another version of the library
            before[alias] = look(*alias)
    owner, name, raw = before[places[0]]
    patches.install([row])
    once = vars(owner).get(name, NOTHING)
    assert once is not raw
    assert type(once) is type(raw) or not isinstance(raw, staticmethod | classmethod)
    patches.install([row])
    assert vars(owner).get(name, NOTHING) is once
    patches.restore()
    for key, (_, _, original) in before.items():
        assert look(*key)[2] is original


@every_row
def test_restore_leaves_alone_what_somebody_wrapped_after_us(row: Target, patches: Patches) -> None:
    owner, name, raw = look(row.module, row.attribute)
    patches.install([row])
    ours = vars(owner)[name]

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return function_of(ours)(*args, **kwargs)

    setattr(owner, name, theirs)
    try:
        patches.restore()
        assert vars(owner)[name] is theirs
    finally:
        delattr(owner, name) if raw is NOTHING else setattr(owner, name, raw)


@every_row
def test_the_replacement_is_called_and_described_as_the_original_is(row: Target, patches: Patches) -> None:
    owner, name, _ = look(row.module, row.attribute)
    original = getattr(owner, name)
    patches.install([row])
    ours = getattr(owner, name)
    for attribute in ("__name__", "__qualname__", "__doc__", "__module__"):
        if getattr(original, attribute, None) is not None:
            assert getattr(ours, attribute) == getattr(original, attribute), attribute
    try:
        signature = inspect.signature(original)
    except ValueError:
        return  # a built-in that tells none
    assert inspect.signature(ours) == signature
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(original)
    assert inspect.isgeneratorfunction(ours) == inspect.isgeneratorfunction(original)


@every_row
def test_what_could_be_pickled_by_reference_still_can(row: Target, patches: Patches) -> None:
    owner, name, raw = look(row.module, row.attribute)
    try:
        # What is inherited is pickled as its base's, for which there is another row.
        sent = pickle.dumps(getattr(owner, name)) if raw is not NOTHING else None
    except Exception:  # noqa: BLE001 - pickle raises what it likes
        sent = None
    patches.install([row])
    if isinstance(owner, type):
        try:
            whole = pickle.dumps(owner)
        except pickle.PicklingError:
            whole = None  # a type that says it is in a module that does not have it, patched or not
        assert whole is None or received(whole) is owner
    if sent is not None:
        ours = getattr(owner, name)
        again = received(pickle.dumps(ours))
        assert again is ours or again == ours
        assert received(sent) is not None  # what was sent before we came arrives after


# Each wrapper around a function of our own, so that every call can be seen


class Refused(Exception):  # noqa: N818 - it is what the host raises
    """What the host's function raises."""


class Host:
    """Stands for the function of a library: remembers its calls."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def function(self) -> Any:
        """A function of its own."""

        def inside() -> Any:
            if isinstance(self.outcome, BaseException):
                raise self.outcome
            return self.outcome

        def host_function(*args: Any, **kwargs: Any) -> Any:
            """Does its work."""
            self.calls.append((args, kwargs))
            return inside()

        return host_function


class Odd:
    """An argument that fails at whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)

    def __len__(self) -> int:
        raise LookupError("len")

    def __str__(self) -> str:
        raise LookupError("str")

    def __fspath__(self) -> str:
        raise LookupError("path")


ARGUMENTS = [((), {}), ((1, 2, 3), {}), ((Odd(), Odd()), {"filename": Odd(), "device": Odd()}), ((b"x" * 100_000,) * 4, {"data": None})]


def check_result(ours: Any, host: Host) -> None:
    __tracebackhide__ = True
    for args, kwargs in ARGUMENTS:
        host.calls.clear()
        assert ours(*args, **kwargs) is host.outcome
        [(seen, named)] = host.calls
        assert len(seen) == len(args)
        assert all(one is other for one, other in zip(seen, args, strict=True))
        assert list(named) == list(kwargs)
        assert all(named[key] is kwargs[key] for key in kwargs)


def check_exception(ours: Any, host: Host) -> None:
    __tracebackhide__ = True
    for args, kwargs in ARGUMENTS:
        host.calls.clear()
        host.outcome.__traceback__ = None
        with pytest.raises(type(host.outcome)) as caught:
            ours(*args, **kwargs)
        assert caught.value is host.outcome
        assert caught.value.args == ("why", 3)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        assert len(host.calls) == 1
        assert [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)][-2:] == ["host_function", "inside"]


@pytest.fixture
def unpatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """Everything that records, and nothing of the host's patched: wrappers are made by hand."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = provider_of(exporter)
    monkeypatch.setattr(recorder, "telemetry", Telemetry(provider))
    monkeypatch.setattr(recorder, "settings", Settings())
    monkeypatch.setattr(recorder, "active", True)
    yield Spans(exporter, provider, recorder)
    recorder.close_all()
    left = list(recorder.loads)
    recorder.abandon()
    provider.shutdown()
    assert left == []


@every_wrapper
@pytest.mark.swallowing
def test_without_a_provider_the_call_passes_through(row: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "active", True)
    check_result(wrap(row, (host := Host(object())).function()), host)
    check_exception(wrap(row, (host := Host(Refused("why", 3))).function()), host)


@every_wrapper
@pytest.mark.swallowing
def test_a_wrapper_that_outlives_its_installation_passes_calls_through(
    row: Target, unpatched: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "active", False)
    check_result(wrap(row, (host := Host(object())).function()), host)
    check_exception(wrap(row, (host := Host(Refused("why", 3))).function()), host)
    assert recorder.loads == []
    assert unpatched.all() == []


@every_wrapper
@pytest.mark.swallowing
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
def test_a_recorded_call_is_the_hosts_call_once_whatever_our_callbacks_make_of_its_arguments(
    row: Target, unpatched: Spans, *, explicit: bool
) -> None:
    result, failure, interruption = Host(object()), Host(Refused("why", 3)), Host(KeyboardInterrupt("why", 3))
    with loadspan.load() if explicit else contextlib.nullcontext():
        check_result(wrap(row, result.function()), result)
        check_exception(wrap(row, failure.function()), failure)
        check_exception(wrap(row, interruption.function()), interruption)
    unpatched.finish()
    assert recorder.loads == []
    assert recorder.stages == []
    assert recorder._local.running == []  # noqa: SLF001 - a call left there would hide all that follow


@every_wrapper
def test_the_wrapper_looks_like_the_function_it_wraps(row: Target) -> None:
    function = Host(None).function()
    ours = wrap(row, function)
    assert (ours.__name__, ours.__doc__, ours.__module__) == ("host_function", "Does its work.", __name__)
    assert ours.__wrapped__ is function
    assert inspect.signature(ours) == inspect.signature(function)


# The engine, on a library of all kinds of attributes


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("a_library")
    exec(  # noqa: S102 - a module that nothing else knows
        """
class Base:
    def method(self, x, *, y=2):
        "Adds."
        return type(self).__name__, x, y
    @classmethod
    def made(cls, x=0):
        return cls.__name__, x
    @staticmethod
    def alone(x=0):
        return "alone", x
    def inherited(self):
        return "inherited", type(self).__name__
    @property
    def value(self):
        return 7

class Derived(Base):
    def method(self, x, *, y=3):
        return ("derived", *super().method(x, y=y))

class Slotted:
    __slots__ = ("x",)
    def method(self, x, *, y=2):
        return "slotted", x, y

def function(a, /, b, *args, c=1, **rest):
    return a, b, args, c, rest

async def coroutine(x):
    return x

def generator(n):
    yield from range(n)
    return "done"

constant = 5
alias = function
""",
        module.__dict__,
    )
    for kind in (module.Base, module.Derived, module.Slotted):
        kind.__module__ = "a_library"
    monkeypatch.setitem(sys.modules, "a_library", module)
    return module


def rows_for(*attributes: str, aliases: tuple[str, ...] = ()) -> list[Target]:
    return [
        Target(module="a_library", attribute=attribute, stage="read", why="a test", aliases=aliases if attribute == "function" else ())
        for attribute in attributes
    ]


def behavior(library: types.ModuleType) -> list[Any]:
    """What a program can see of the library."""
    import asyncio

    one, two = library.Base(), library.Derived()
    generator = library.generator(3)
    seen = [next(generator), next(generator), next(generator), next(generator, "end")]
    return [
        one.method(1),
        one.method(x=1, y=5),
        two.method(1),
        library.Base.method(two, 4),
        library.Base.made(3),
        library.Derived.made(3),
        two.made(),
        library.Base.alone(1),
        library.Derived.alone(2),
        two.alone(),
        one.inherited(),
        two.inherited(),
        library.Slotted().method(1),
        library.function(1, 2, 3, c=4, d=5),
        library.function(1, b=2),
        library.alias(1, 2),
        asyncio.run(library.coroutine(9)),
        seen,
        one.value,
        inspect.signature(library.function),
        inspect.signature(one.method),
        inspect.signature(library.Derived.made),
        inspect.iscoroutinefunction(library.coroutine),
        inspect.isgeneratorfunction(library.generator),
        library.Base.__subclasses__(),
        {name: type(value).__name__ for name, value in vars(library.Base).items()},
    ]


ATTRIBUTES = (
    "Base.method",
    "Base.made",
    "Base.alone",
    "Derived.method",
    "Derived.inherited",
    "Slotted.method",
    "function",
    "coroutine",
    "generator",
)


def contents(library: types.ModuleType) -> dict[str, Any]:
    return {
        f"{owner}:{name}": value
        for owner, holder in {"": library, **{kind: getattr(library, kind) for kind in ("Base", "Derived", "Slotted")}}.items()
        for name, value in vars(holder).items()
        if not name.startswith("__")
    }


@pytest.mark.parametrize("active", [True, False])
def test_a_library_behaves_the_same_patched_and_not(
    library: types.ModuleType, patches: Patches, spans: Spans, monkeypatch: pytest.MonkeyPatch, *, active: bool
) -> None:
    before, held = behavior(library), contents(library)
    monkeypatch.setattr(recorder, "active", active)
    patches.install(rows_for(*ATTRIBUTES))
    changed = {key for key, value in contents(library).items() if held.get(key) is not value}
    assert {key.replace(":", ".").lstrip(".") for key in changed} >= set(ATTRIBUTES)
    with loadspan.load():
        assert behavior(library) == before
    patches.restore()
    after = contents(library)
    assert list(after) == list(held)
    assert all(after[key] is held[key] for key in held)
    names = [child["name"] for child in spans.load()["children"]]
    assert names == (["read"] if active else [])


def test_a_missing_module_attribute_or_type_skips_the_row(
    library: types.ModuleType, patches: Patches, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "loadspan")
    held = contents(library)
    nowhere = Target(module="no_such_library", attribute="f", stage="read", why="a test")
    patches.install([nowhere, *rows_for("Base.nothing", "Nothing.method", "nothing", "function")])
    changed = {key for key, value in contents(library).items() if held.get(key) is not value}
    assert changed == {":function", ":alias"}
    assert [record.levelname for record in caplog.records] == ["DEBUG"] * 3
    assert "a_library has no Base.nothing, row skipped" in caplog.text


def test_an_attribute_that_cannot_be_set_skips_the_row(patches: Patches, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "loadspan")
    patches.install([Target(module="builtins", attribute="bytes.join", stage="read", why="a test")])
    assert "cannot be set" in caplog.text
    assert b",".join([b"a", b"b"]) == b"a,b"


def test_copies_that_modules_made_before_and_after_are_bound_to_ours_and_back(
    library: types.ModuleType, patches: Patches, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = types.ModuleType("a_user")
    user.early = library.function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_user", user)
    original = library.function
    patches.install(rows_for("function"))
    assert user.early is library.function is library.alias
    assert user.early is not original
    user.late = library.function  # type: ignore[attr-defined]
    patches.restore()
    assert user.early is user.late is library.function is library.alias is original


def test_a_module_that_comes_later_is_patched_when_it_comes(patches: Patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_late_library.py").write_text("def function():\n    return 3\n")
    (tmp_path / "a_later_library.py").write_text("def function():\n    return 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    rows = [Target(module=name, attribute="function", stage="read", why="a test") for name in ("a_late_library", "a_later_library")]
    patches.install(rows)
    late = importlib.import_module("a_late_library")
    assert hasattr(late.function, "__wrapped__")
    assert late.function() == 3
    patches.restore()
    assert not hasattr(late.function, "__wrapped__")
    assert not hasattr(importlib.import_module("a_later_library").function, "__wrapped__")  # nobody asks for it any more
    for name in ("a_late_library", "a_later_library"):
        del sys.modules[name]


def test_a_row_that_fails_while_it_is_installed_harms_neither_import_nor_other_rows(
    library: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loadspan.guard, "raising", False)

    def replace(original: Any) -> Any:
        raise LookupError(original)

    broken = Target(module="a_library", attribute="Base.method", kind=Kind.REPLACE, replace=replace, why="a test")
    held = contents(library)
    made = Patches(wrap)
    made.install([broken, *rows_for("function")])
    changed = {key for key, value in contents(library).items() if held.get(key) is not value}
    assert changed == {":function", ":alias"}
    made.restore()


def test_instrument_and_uninstrument_leave_every_object_as_it_was(spans: Spans) -> None:
    loadspan.LoadspanInstrumentor().uninstrument()

    def held() -> dict[str, Any]:
        return {place(row): look(row.module, row.attribute)[2] for row in HERE}

    before = held()
    for _ in range(3):
        loadspan.LoadspanInstrumentor().instrument(tracer_provider=spans.provider)
        patched = {name for name, raw in held().items() if raw is not before[name]}
        # An inherited method whose base is patched is not patched twice.
        assert set(before) - patched <= {"peft.tuners.lora.model:LoraModel._unload_and_optionally_merge"}
        loadspan.LoadspanInstrumentor().uninstrument()
        after = held()
        assert [name for name in before if after[name] is not before[name]] == []


# Orders of import, in processes of their own

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
