"""Costs of the parts: a call, a load, an idle patch, a start, memory and spans. Each function returns rows of the table."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
import timeit
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _measure
import _scenarios
from _measure import Row, differences

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_US, _MS, _MB = 1e6, 1e3, 1e6
_KIB = 1024
_BATCHES = 20
_READ = 64 << 10
_SPIN = 0.0015
"""Seconds of a coarse call: over the millisecond from which it has a span."""
_HOSTS = ("torch", "numpy", "safetensors", "transformers", "diffusers", "peft", "cryptography", "Crypto", "nacl")
_START = "import sys; print(*(name for name in {hosts!r} if name in sys.modules))"


def _decrypt() -> Callable[[], Any]:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher, nonce = AESGCM(bytes(32)), bytes(12)
    sealed = cipher.encrypt(nonce, bytes(_KIB), None)
    return lambda: cipher.decrypt(nonce, sealed, None)


def _typical(call: Callable[[], Any], count: int) -> float:
    """Seconds of one call: the median of batches, which other programs disturb only here and there."""
    size, found = max(1, count // _BATCHES), []
    for _ in range(_BATCHES):
        begun = time.perf_counter()
        for _ in range(size):
            call()
        found.append((time.perf_counter() - begun) / size)
    return statistics.median(found)


# Calls inside a load

_Ready = Callable[[], AbstractContextManager[Callable[[], Any]]]
"""Makes what is called, in the load."""


def _in_a_load(ready: _Ready, count: int, *, open_load: bool) -> float:
    import loadspan

    with loadspan.load("benchmark") if open_load else contextlib.nullcontext(), ready() as call:
        return _typical(call, count)


def _spinner(seconds: float) -> Callable[[], Any]:
    """`load_state_dict` of a module whose own part takes an exact time."""
    import torch

    class Module(torch.nn.Linear):  # type: ignore[misc] # torch is not needed to check us
        def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
            until = time.perf_counter() + seconds
            super()._load_from_state_dict(*args, **kwargs)
            while time.perf_counter() < until:
                pass

    module = Module(4, 4)
    state = module.state_dict()
    return lambda: module.load_state_dict(state)


@contextlib.contextmanager
def _tensors(path: Path) -> Iterator[Callable[[], Any]]:
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        keys, get = itertools.cycle(file.keys()), file.get_tensor
        yield lambda: get(next(keys))


@contextlib.contextmanager
def _reads(path: Path) -> Iterator[Callable[[], Any]]:
    with open(path, "rb") as file:  # noqa: PTH123 - what hosts call
        yield lambda: file.read(_READ)


def calls(folder: Path, pairs: int, scale: float) -> list[Row]:
    """A call inside a load, and the load itself."""
    import torch  # noqa: F401 - what tensors are made with

    count, pairs = max(_BATCHES, round(20_000 * scale)), 3 * pairs
    _scenarios.write_flat(folder / _scenarios.MODEL, count, (4,))
    plain = folder / "plain"
    with plain.open("wb") as file:
        file.truncate(max(64 << 20, count * _READ))  # a hole: as quick as a page cache can be

    def row(what: str, ready: _Ready, count: int, most: float) -> Row:
        measure = partial(_in_a_load, ready, count)
        found = differences(partial(measure, open_load=False), partial(measure, open_load=True), pairs, folder / "runs")
        return Row(what=f"{what}, over bare", unit="us", values=[value * _US for value in found], most=most)

    def plainly(call: Callable[[], Any]) -> _Ready:
        return lambda: contextlib.nullcontext(call)

    return [
        row("fine call: safe_open.get_tensor", partial(_tensors, folder / _scenarios.MODEL), count, 3),
        row("fine call: AESGCM.decrypt of 1 KiB", plainly(_decrypt()), count, 3),
        row("fine call: read(64 KiB) of a large file", partial(_reads, plain), count, 3),
        row("coarse call: load_state_dict of 1.5 ms", plainly(_spinner(_SPIN)), 2 * _BATCHES, 100),
        row("short coarse call: load_state_dict of 4 x 4", plainly(_spinner(0)), max(_BATCHES, count // 10), 100),
        _open_close(folder, pairs),
    ]


def _open_close(folder: Path, pairs: int) -> Row:
    import loadspan

    def load() -> None:
        with loadspan.load("benchmark"):
            pass

    found = differences(lambda: 0.0, lambda: _typical(load, _BATCHES), pairs, folder / "runs")
    return Row(what="load, opened and closed", unit="ms", values=[value * _MS for value in found], most=2)


# Patched functions while no load is open


def _quick(call: Callable[[], Any], number: int) -> float:
    """Seconds of one call: the least of several loops, which other programs disturbed least."""
    return min(timeit.repeat(call, number=number, repeat=9)) / number


def _submits(number: int) -> Callable[[], Any]:
    """Submit jobs while the worker waits, then let it do them: two threads in turn would measure the scheduler."""

    def work() -> None:
        gate = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(gate.wait)
            for _ in range(number):
                pool.submit(int)
            gate.set()

    return work


def _thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def _opened(path: Path, mode: str) -> Callable[[], Any]:
    return lambda: open(path, mode).close()  # noqa: PTH123 - what hosts call


def idle(folder: Path, pairs: int, scale: float) -> list[Row]:
    """Patched functions while nothing is being loaded."""
    import torch  # noqa: F401 - a program that has loaded its model, so that everything is patched

    pairs, number = 3 * pairs, max(10, round(500 * scale))
    small = folder / "small.txt"
    small.write_text("small\n" * 100)

    def row(what: str, call: Callable[[], Any], number: int, each: int = 1) -> Row:
        found = differences(partial(_quick, call, number), partial(_quick, call, number), pairs, folder / "runs")
        values = [value / each * _US for value in found]
        return Row(what=f"no load open: {what}, over bare", unit="us", values=values, most=0.5)

    return [
        row("AESGCM.decrypt of 1 KiB", _decrypt(), 4 * number),
        row("open() of a small text file", _opened(small, "r"), number),
        row("open() of a small binary file", _opened(small, "rb"), number),
        row("ThreadPoolExecutor.submit and its job", _submits(number), 1, number),
        row("Thread.start, run and join", _thread, number // 4 + 1),
    ]


# Start of a program


def start(folder: Path, pairs: int, scale: float) -> list[Row]:  # noqa: ARG001 - it has no size
    """Start of Python programs, instrumented as by the launcher, with loadspan and without."""
    from opentelemetry.instrumentation import auto_instrumentation

    hook = str(Path(auto_instrumentation.__file__).parent)
    base = os.environ | {f"OTEL_{kind}_EXPORTER": "none" for kind in ("TRACES", "METRICS", "LOGS")} | {"PYTHONPATH": hook}
    # As after an installation: compiled, whatever the environment says of that. The round that does not count compiles.
    base["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    base.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", _START.format(hosts=_HOSTS)]
    imported: set[str] = set()

    def seconds(environ: dict[str, str]) -> tuple[float, float]:
        begun, cpu = time.perf_counter(), _children_cpu()
        done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
        imported.update(done.stdout.split())
        return time.perf_counter() - begun, _children_cpu() - cpu

    without = base | {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "loadspan"}
    walls, cpus = [], []
    for number in range(3 * pairs + 1):
        first = seconds(base if number % 2 else without)
        second = seconds(without if number % 2 else base)
        (wall, cpu), (bare_wall, bare_cpu) = (first, second) if number % 2 else (second, first)
        if number:
            walls.append((wall - bare_wall) * _MS)
            cpus.append((cpu - bare_cpu) * _MS)
    note = f"CPU time {_measure.spread(cpus)} ms"
    return [
        Row(what="import loadspan and instrument(), over opentelemetry-instrument", unit="ms", values=walls, most=30, note=note),
        Row(what="host libraries imported by it", values=[len(imported)], most=0, note=", ".join(sorted(imported))),
    ]


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# Memory and spans


def _peaks(steps: Sequence[Callable[[], Any]]) -> list[float]:
    """Most bytes of Python objects at a time, in each step and while the load is closed."""
    from loadspan.instrument.live import recorder

    found = []
    tracemalloc.start()
    try:
        kept = []
        for step in (*steps, recorder.close_all):
            tracemalloc.reset_peak()
            kept.append(step())
            found.append(float(tracemalloc.get_traced_memory()[1]))
    finally:
        tracemalloc.stop()
    return found


def _more_memory(what: str, steps: Callable[[], Sequence[Callable[[], Any]]], folder: Path) -> list[Row]:
    """Memory and spans of loadspan for a load: in the step in which it needs most."""
    found = {}
    for kind in ("warm-up", "bare", "instrumented"):
        work = steps()
        gc.collect()
        with _measure.recording(folder) if kind == "instrumented" else contextlib.nullcontext():
            found[kind] = _peaks(work)
    most = max(more - bare for more, bare in zip(found["instrumented"], found["bare"], strict=True))
    loads = _measure.loads_in(folder)
    return [
        Row(what=f"memory of a load: {what}", unit="MB", values=[most / _MB], most=2),
        Row(what=f"spans of a load: {what}", values=[_measure.span_count(loads)] if loads else [], most=500),
    ]


def _get_all(path: Path, keys: Sequence[str]) -> None:
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        for key in keys:
            file.get_tensor(key)


def _whole(folder: Path) -> Sequence[Callable[[], Any]]:
    """The steps of a load whose calls take all tensors at once."""
    import safetensors.torch

    module, state = _scenarios.fresh_flat(folder), {}
    return (
        lambda: state.update(safetensors.torch.load_file(folder / _scenarios.MODEL)),
        lambda: module.load_state_dict(state),
        module.half,
    )


def memory(folder: Path, pairs: int, scale: float) -> list[Row]:  # noqa: ARG001 - memory does not vary
    """Memory and spans at many tensors, tensor by tensor and in calls that take them all."""
    rows = []
    for full in (20_000, 100_000):
        count = max(10, round(full * scale))
        place = folder / str(full)
        place.mkdir()
        # Large enough for an implicit load to be worth showing.
        _scenarios.write_flat(place / _scenarios.MODEL, count, (64,))
        keys = [f"p{index}" for index in range(count)]
        one_by_one = partial(_get_all, place / _scenarios.MODEL, keys)
        rows += _more_memory(f"{count:,} get_tensor calls", lambda work=one_by_one: (work,), place / "fine")  # type: ignore[misc] # mypy does not infer defaults
        rows += _more_memory(f"{count:,} tensors, load_file, load_state_dict, .half()", partial(_whole, place), place / "coarse")
    return rows


# What reads the machine


def _sampled(folder: Path, seconds: float, threads: int) -> float:
    """CPU seconds of the sampler by the seconds of a load in which *threads* read a file, each in a stage."""
    import loadspan
    from loadspan import names

    def read(until: float) -> None:
        with loadspan.stage("read", path=folder / "plain"), (folder / "plain").open("rb") as file:
            while time.perf_counter() < until:
                file.read(_READ)
                file.seek(0)
                time.sleep(0.001)

    with _measure.recording(folder / "runs"), loadspan.load("benchmark"), ThreadPoolExecutor(threads) as pool:
        until = time.perf_counter() + seconds
        list(pool.map(read, [until] * threads))
    (load,) = _measure.loads_in(folder / "runs")
    shutil.rmtree(folder / "runs")
    return (load.number(names.SAMPLER_TIME) or 0.0) / (load.duration or seconds)


def _looked_at(folder: Path, count: int) -> list[float]:
    """Seconds in which a load looks at a file that it has not met."""
    from loadspan.instrument.surroundings import Surroundings

    places, found = [folder / f"file-{number}" for number in range(count)], []
    for place in places:
        with place.open("wb") as file:
            file.truncate(1 << 30)  # a hole: read into the page cache as any file
        with place.open("rb") as file:
            file.read(256 << 20)
    surroundings = Surroundings(outermost=True)
    for place in places:
        begun = time.perf_counter()
        surroundings.meet([str(place)])
        found.append(time.perf_counter() - begun)
    return found


def sampler(folder: Path, pairs: int, scale: float) -> list[Row]:
    """The thread that looks at the machine while a load is open, and the look at a file before it is read."""
    with (folder / "plain").open("wb") as file:
        file.truncate(64 << 20)
    seconds = max(0.5, 3 * scale)
    rows = [
        Row(
            what=f"CPU time of the sampler / load: {threads} {'thread reads' if threads == 1 else 'threads read'}",
            values=[_sampled(folder, seconds, threads) for _ in range(pairs)],
            most=0.01,
        )
        for threads in (1, 16)
    ]
    looks = [value * _MS for value in _looked_at(folder, max(2, 3 * pairs))]
    return [*rows, Row(what="look at a file of 1 GiB before its first read", unit="ms", values=looks, most=1)]


PARTS = {"calls": calls, "sampler": sampler, "idle": idle, "start": start, "memory": memory}
NEEDS = {"calls": ("torch", "safetensors", "cryptography"), "idle": ("torch", "cryptography"), "memory": ("torch", "safetensors")}
