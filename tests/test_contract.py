"""What every patch owes the host: the same name, the same arguments, the same result, the same exception, and its own object back."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pickle
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest

import loadspan
from loadspan.instrument import children, propagation, targets
from loadspan.instrument.calls import wrap
from loadspan.instrument.live import recorder
from loadspan.instrument.patching import Kind, Patches, Target
from loadspan.instrument.telemetry import Telemetry
from loadspan.settings import Settings
from recorded import Spans, provider_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL_ROWS = [*propagation.ROWS, *children.ROWS, *targets.rows(Settings())]
NOTHING: Any = object()

NO_TAG = "the mode has no tag; one rule makes the rows of all modes"
RELEASE_4 = "transformers before release 5"
RELEASE_5 = "sentence-transformers before release 6; the modules are signposts now, and warn"
NOT_HERE = {
    **{f"Crypto.Cipher._mode_{mode.lower()}:{mode}Mode.decrypt_and_verify": NO_TAG for mode in ("Ctr", "Cbc", "Cfb", "Ofb", "Ecb")},
    "Crypto.Cipher._mode_openpgp:OpenPgpMode.decrypt_and_verify": NO_TAG,
    "Crypto.Cipher.ChaCha20:ChaCha20Cipher.decrypt_and_verify": NO_TAG,
    "Crypto.Cipher.Salsa20:Salsa20Cipher.decrypt_and_verify": NO_TAG,
    "transformers.modeling_utils:PreTrainedModel._finalize_load_state_dict": "transformers 5.0",
    "transformers.modeling_utils:PreTrainedModel._move_missing_keys_from_meta_to_cpu": RELEASE_4,
    "transformers.modeling_utils:_infer_parameter_dtype": RELEASE_4,
    "transformers.pipelines:infer_framework_load_model": RELEASE_4,
    "diffusers.models.modeling_utils:ModelMixin._convert_deprecated_attention_blocks": "its name in older releases of diffusers",
    "transformers.modeling_utils:_load_state_dict_into_meta_model": RELEASE_4,
    "sentence_transformers.SentenceTransformer:SentenceTransformer.__init__": RELEASE_5,
    "sentence_transformers.cross_encoder.CrossEncoder:CrossEncoder.__init__": RELEASE_5,
    "sentence_transformers.models.Module:Module.load": RELEASE_5,
    "sentence_transformers.models.Dense:Dense.load": RELEASE_5,
    "sentence_transformers.models.StaticEmbedding:StaticEmbedding.load": RELEASE_5,
    "sentence_transformers.models.Transformer:Transformer.__init__": RELEASE_5,
    "sentence_transformers.model_card:SentenceTransformerModelCardData.__init__": RELEASE_5,
    "sentence_transformers.model_card:SentenceTransformerModelCardData.set_base_model": RELEASE_5,
    "transformers.models.auto.modeling_auto:AutoModelForVision2Seq.from_pretrained": "AutoModelForImageTextToText since release 5",
}
"""Rows whose attribute the installed version of the library lacks, and why that is right."""

OTHER_ARRAYS = "an environment of its own has what loads models without torch"
STREAMERS = "an environment of its own has streamers and what decrypts for them"
NOT_INSTALLED = {
    "Cryptodome": "pycryptodomex is pycryptodome under another name; both at once are not installed",
    **dict.fromkeys(
        ("flax", "h5py", "jax", "keras", "onnxruntime", "openvino", "orbax", "safetensors.flax", "safetensors.tensorflow", "tensorflow"),
        OTHER_ARRAYS,
    ),
    **dict.fromkeys(("fastsafetensors", "pyrage", "runai_model_streamer", "tensorizer", "tink"), STREAMERS),
}
"""Libraries and modules that are not installed or cannot be imported here, and why that is right."""


def place(row: Target) -> str:
    return f"{row.module}:{row.attribute}"


INSTALLED = [row for row in ALL_ROWS if not {row.module, row.module.partition(".")[0]} & NOT_INSTALLED.keys()]
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
    try:
        owner, name, _ = look(row.module, row.attribute)
        found = hasattr(owner, name)
    except (ImportError, AttributeError, DeprecationWarning):
        found = False
    assert found != (place(row) in NOT_HERE), NOT_HERE.get(place(row), "the attribute is missing")


def test_the_tables_of_exceptions_name_rows_that_there_are() -> None:
    assert set(NOT_HERE) <= {place(row) for row in ALL_ROWS}
    assert set(NOT_INSTALLED) <= {name for row in ALL_ROWS for name in (row.module, row.module.partition(".")[0])}
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
    with loadspan.load():
        call = recorder.begin_fine(row.stage)  # None if one of those before were still running
        assert call is not None
        recorder.end_fine(call, None)


@every_wrapper
def test_the_wrapper_looks_like_the_function_it_wraps(row: Target) -> None:
    function = Host(None).function()
    ours = wrap(row, function)
    assert (ours.__name__, ours.__doc__, ours.__module__) == ("host_function", "Does its work.", __name__)
    assert ours.__wrapped__ is function
    assert inspect.signature(ours) == inspect.signature(function)


def test_instrument_and_uninstrument_leave_every_object_as_it_was(spans: Spans) -> None:
    loadspan.LoadspanInstrumentor().uninstrument()

    def held() -> dict[str, Any]:
        return {place(row): look(row.module, row.attribute)[2] for row in HERE}

    before = held()
    for _ in range(3):
        loadspan.LoadspanInstrumentor().instrument(tracer_provider=spans.provider)
        patched = {name for name, raw in held().items() if raw is not before[name]}
        # An inherited method whose base is patched is not patched twice; and what Keras uses waits for it.
        assert set(before) - patched <= {"peft.tuners.lora.model:LoraModel._unload_and_optionally_merge", "zipfile:ZipExtFile.read"}
        loadspan.LoadspanInstrumentor().uninstrument()
        after = held()
        assert [name for name in before if after[name] is not before[name]] == []


# Rows that wait for their library


def test_rows_are_given_for_every_library_that_they_are_of() -> None:
    given = {place(row) for library in targets.LIBRARIES for row in targets.of(library)} | {
        place(row) for row in targets.at_once(Settings())
    }
    assert given == {place(row) for row in targets.rows(Settings())}


def test_rows_of_a_library_are_imported_with_it() -> None:
    program = (
        "import sys, loadspan; loadspan.LoadspanInstrumentor().instrument()\n"
        "def there(): return [name for name in ('torch', 'safetensors') if f'loadspan.instrument.targets.{name}' in sys.modules]\n"
        "print(there()); import safetensors; print(there()); print(hasattr(safetensors.safe_open.get_tensor, '__wrapped__'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["[]", "['safetensors']", "True", ""]
