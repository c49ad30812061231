"""Programs that are started in a load are told of it in their environment, which is otherwise what it would have been."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import loadspan
from loadspan import LoadspanInstrumentor
from loadspan.instrument.children import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from recorded import Spans

SHOW = [sys.executable, "-c", "import os, sys; sys.stdout.buffer.write(b'\\0'.join(b'%b=%b' % item for item in os.environb.items()))"]
OTHER = f"00-{1:032x}-{2:016x}-01"
OWN = f"00-{3:032x}-{4:016x}-01"


def parsed(output: bytes) -> dict[bytes, bytes]:
    return dict(variable.partition(b"=")[::2] for variable in output.split(b"\0") if variable)


def child(*arguments: Any, **options: Any) -> dict[bytes, bytes]:
    """The environment of a child that `subprocess.Popen` starts."""
    with subprocess.Popen(*(arguments or (SHOW,)), stdout=subprocess.PIPE, **options) as process:
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0
    return parsed(output)


def spawned(environ: Any, name: str = "posix_spawn") -> dict[bytes, bytes]:
    """The environment of a child that `os.posix_spawn` starts."""
    reader, writer = os.pipe()
    pid = getattr(os, name)(sys.executable, SHOW, environ, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        output = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return parsed(output)


def parent_of(load: dict[str, Any]) -> bytes:
    return f"00-{load['trace_id']:032x}-{load['span_id']:016x}".encode()


def parent_in(found: dict[bytes, bytes]) -> bytes:
    """The parent that a child was told of, without the flags."""
    return found.pop(b"TRACEPARENT")[:-3]


@pytest.fixture(autouse=True)
def no_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACEPARENT", "TRACESTATE", "traceparent", "tracestate"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def unseen() -> Iterator[bytes]:
    """A variable that a library in C has set: `os.environ` does not know it."""
    library = ctypes.CDLL(None)
    library.setenv(b"LOADSPAN_TEST_UNSEEN", b"of C", 1)
    yield b"LOADSPAN_TEST_UNSEEN"
    library.unsetenv(b"LOADSPAN_TEST_UNSEEN")


WAYS = {
    "inherited": {},
    "inherited, close_fds=False": {"close_fds": False},
    "inherited, another folder": {"cwd": "/"},
    "inherited, a session of its own": {"start_new_session": True},
    "given": {"env": {"PATH": "/usr/bin", "NAME": "value"}},
    "given as bytes": {"env": {b"PATH": b"/usr/bin", b"NAME": b"\xff", "TEXT": "\udcfe"}},
    "given, close_fds=False": {"env": {"PATH": "/usr/bin", "NAME": ""}, "close_fds": False},
    "given: the own": {"env": os.environ},
}


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())
def test_a_child_finds_the_load_in_its_environment_and_else_what_it_finds_without_us(spans: Spans, options: dict[str, Any]) -> None:
    given = options.get("env")
    before = None if given is None else dict(given)
    LoadspanInstrumentor().uninstrument()
    bare = child(**options)
    LoadspanInstrumentor().instrument(tracer_provider=spans.provider)
    outside = child(**options)
    with loadspan.load("model"):
        inside = child(**options)
    after = child(**options)
    assert bare == outside == after
    (load,) = spans.loads()
    assert parent_in(inside) == parent_of(load)
    assert inside == bare
    assert (None if given is None else dict(given)) == before
    assert "TRACEPARENT" not in os.environ


@pytest.mark.parametrize("command", ["exec env -0", "env -0", "sh -c 'env -0'"])
def test_what_a_shell_starts_finds_it_too(spans: Spans, command: str) -> None:
    with loadspan.load("model"):
        found = child(command, shell=True)  # noqa: S604 - that is what is tested
    assert parent_in(found) == parent_of(spans.load())


@pytest.mark.parametrize(
    "given", [{"PATH": "/usr/bin", "N": "1"}, {b"PATH": b"/usr/bin", b"N": b"\xff"}, os.environ], ids=["text", "bytes", "own"]
)
@pytest.mark.parametrize("name", ["posix_spawn", "posix_spawnp"])
def test_a_child_of_posix_spawn_finds_it(spans: Spans, given: Any, name: str) -> None:
    before = dict(given)
    with loadspan.load("model"):
        inside = spawned(given, name)
    outside = spawned(given, name)
    assert parent_in(inside) == parent_of(spans.load())
    assert inside == outside
    assert dict(given) == before


@pytest.mark.parametrize("key", ["TRACEPARENT", b"TRACEPARENT"])
def test_a_parent_that_the_host_names_wins(spans: Spans, key: Any) -> None:
    given = {"PATH": "/usr/bin", key: os.fsencode(OTHER) if isinstance(key, bytes) else OTHER}
    with loadspan.load("model"):
        found = [child(env=given), child(env=given, close_fds=False), spawned(given)]
    assert [each[b"TRACEPARENT"].decode() for each in found] == [OTHER] * 3
    assert spans.loads()


def test_the_parent_that_this_process_was_given_itself_is_replaced(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", OWN)
    monkeypatch.setenv("TRACESTATE", "vendor=value")
    assert child()[b"TRACEPARENT"].decode() == OWN
    with loadspan.load("model"):
        found = [child(), child(env={**os.environ, "MORE": "1"}), spawned(os.environ)]
    load = spans.load()
    assert load["trace_id"] == 3
    assert {parent_in(each) for each in found} == {parent_of(load)}
    assert {each[b"TRACESTATE"] for each in found} == {b"vendor=value"}
    assert os.environ["TRACEPARENT"] == OWN


def test_an_empty_environment_stays_empty(spans: Spans) -> None:
    show = Path("/usr/bin/env")
    with loadspan.load("model"):
        assert child([show, "-0"], env={}) == child([show, "-0"], env={}, close_fds=False) == {}
    assert spans.loads()


def test_what_a_host_sets_between_fork_and_exec_is_seen_by_the_child(spans: Spans) -> None:
    with loadspan.load("model"):
        found = child(preexec_fn=lambda: os.environ.update(SET="late"))
        given = child(preexec_fn=lambda: None, env={"PATH": "/usr/bin"})
    assert found[b"SET"] == b"late"
    assert b"TRACEPARENT" not in found
    assert parent_in(given) == parent_of(spans.load())


REFUSED: list[dict[str, Any]] = [{"env": {"A=B": "1"}}, {"env": {"A": 1}}, {"env": {1: "1"}}, {"env": {"A\0": "1"}}, {"env": 7}]


@pytest.mark.parametrize("options", REFUSED, ids=str)
@pytest.mark.parametrize("close_fds", [True, False])
def test_what_is_refused_is_refused_in_the_same_words(spans: Spans, options: dict[str, Any], close_fds: bool) -> None:  # noqa: FBT001 - a test's parameter
    def refusal() -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
            child(**options, close_fds=close_fds)
        return repr(caught.value)

    outside = refusal()
    with loadspan.load("model"):
        assert refusal() == outside
    assert spans.loads()


def test_pass_fds_reach_the_child(spans: Spans) -> None:
    reader, writer = os.pipe()
    with loadspan.load("model"):
        subprocess.run([sys.executable, "-c", f"import os; os.write({writer}, b'here')"], pass_fds=[writer], check=True)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"here"
    assert spans.loads()


def test_each_of_several_threads_tells_its_children_of_its_own_load(spans: Spans) -> None:
    found: dict[str, bytes] = {}

    def work(name: str) -> None:
        with loadspan.load(name):
            found[name] = parent_in(child())

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {load["attributes"]["loadspan.model.name"]: parent_of(load) for load in spans.loads()}


def test_a_load_that_is_not_recorded_is_not_told_of(recording: Callable[..., Spans]) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    spans = recording(sampler=ALWAYS_OFF)
    with loadspan.load("model"):
        assert b"TRACEPARENT" not in child()
    assert not spans.loads()


def test_the_environment_is_read_as_it_is_now(unseen: bytes) -> None:
    found = environment()
    assert found == {**found, **os.environb, unseen: b"of C"}
