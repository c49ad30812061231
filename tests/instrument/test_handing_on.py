"""Work that is handed on belongs to the load that handed it on: to threads, pools, tasks, processes, and to actors that get jobs sent."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loadspan import names
from loadspan.model import Load
from loadspan.report.tracefile import read

if TYPE_CHECKING:
    from pathlib import Path

START = """
import asyncio, concurrent.futures, multiprocessing, os, subprocess, sys, threading, time, warnings
import loadspan

warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of Python 3.12: the SDK has threads, with or without us

def load(name):
    with loadspan.load(name):
        with loadspan.stage("decrypt"):
            time.sleep(0.002)
"""

THREADS = """
pool = concurrent.futures.ThreadPoolExecutor(3)
pool.submit(load, "before").result()
with loadspan.load("first"):
    thread = threading.Thread(target=load, args=("thread",))
    thread.start()
    jobs = [pool.submit(load, f"job {number}") for number in range(6)]
    list(pool.map(load, ["mapped"]))
    timer = threading.Timer(0.01, load, ("timer",))
    timer.start()
    for each in (thread, timer):
        each.join()
    concurrent.futures.wait(jobs)
with loadspan.load("second"):
    pool.submit(load, "job of the second").result()
pool.submit(load, "after").result()
"""

OUTLIVED = """
pool = concurrent.futures.ThreadPoolExecutor(1)
gate = threading.Event()

def late():
    gate.wait()
    load("late")

with loadspan.load("first"):
    job = pool.submit(late)
gate.set()
job.result()
with loadspan.load("second"):
    pool.submit(load, "of the second").result()
"""

ASYNCIO = """
async def task(name):
    await asyncio.sleep(0.001)
    load(name)

async def one(name):
    with loadspan.load(name):
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            asyncio.create_task(task(f"{name}: task")),
            asyncio.to_thread(load, f"{name}: to_thread"),
            loop.run_in_executor(None, load, f"{name}: executor"),
            loop.run_in_executor(processes, load, f"{name}: process"),
        )
        await (await asyncio.create_subprocess_exec(sys.executable, "program.py", f"{name}: program")).wait()

async def main():
    await asyncio.gather(one("first"), one("second"))
    await asyncio.to_thread(load, "after")

if __name__ == "__main__":
    with concurrent.futures.ProcessPoolExecutor(1) as processes:
        asyncio.run(main()) if len(sys.argv) == 1 else load(sys.argv[1])
"""

PROCESS_POOL = """
def main(method):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        with loadspan.load("first"):
            list(pool.map(load, [f"first {number}" for number in range(4)]))
            # What is submitted in a thread of the load, and what was not called yet when the load ended.
            slow = [pool.submit(time.sleep, 0.2) for _ in range(2)]
            last = pool.submit(load, "last of the first")
        with loadspan.load("second"):
            pool.submit(load, name="second").result()
        pool.submit(load, "alone").result()
        last.result()

if __name__ == "__main__":
    main(sys.argv[1])
"""

FORKED_IN_STAGE = """
if len(sys.argv) > 1:
    load("program")
else:
    with loadspan.load("first"):
        with loadspan.stage("initialize"):
            if not (child := os.fork()):
                load("forked")
                subprocess.run([sys.executable, "program.py", "again"], check=True)
                os._exit(0)
            os.waitpid(child, 0)
            time.sleep(0.005)
"""

GENERATIONS = """
def generation(left):
    load(f"generation {left}")
    if left:
        subprocess.run([sys.executable, "program.py", str(left - 1)], check=True)

if __name__ == "__main__":
    if len(sys.argv) > 1:
        generation(int(sys.argv[1]))
    else:
        with loadspan.load("first"):
            child = multiprocessing.get_context("spawn").Process(target=generation, args=(2,))
            child.start()
            child.join()
"""

ACTOR = """
from opentelemetry import context, propagate

def actor(connection):
    while job := connection.recv():
        name, carrier = job
        token = context.attach(propagate.extract(carrier))
        load(name)
        context.detach(token)
        connection.send("done")

def ask(connection, name):
    carrier = {}
    propagate.inject(carrier)
    connection.send((name, carrier))
    connection.recv()

if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context(sys.argv[1]).Process(target=actor, args=(there,))
    process.start()
    for name in ("first", "second"):
        with loadspan.load(name):
            ask(here, f"{name}: job")
    ask(here, "alone")
    here.send(None)
    process.join()
"""

SIXTEEN = """
from concurrent.futures import ThreadPoolExecutor

pool = ThreadPoolExecutor(8)

def whole(number):
    with loadspan.load(f"model {number}"):
        jobs = [pool.submit(load, f"model {number}: part {part}") for part in range(4)]
        with loadspan.stage("read"):
            time.sleep(0.002)
        for job in jobs:
            job.result()

threads = [threading.Thread(target=whole, args=(number,)) for number in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""

DATALOADER = """
import torch

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.full((4,), index)

def batches(method):
    loader = torch.utils.data.DataLoader(Data(), batch_size=4, num_workers=2, multiprocessing_context=method)
    return [batch.sum().item() for batch in loader]

if __name__ == "__main__":
    expected = [24, 88, 152, 216]
    assert batches(sys.argv[1]) == expected
    with loadspan.load("first"):
        assert batches(sys.argv[1]) == expected
"""


def run(folder: Path, program: str, *arguments: str) -> list[Load]:
    (folder / "program.py").write_text(START + program)
    launcher = [sys.executable, "-m", "loadspan", "run", "--quiet", "-o", folder / "run", "--"]
    command = [*launcher, sys.executable, "program.py", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    return read(folder / "run").loads


def model(load: Load) -> str:
    return str(load.attributes[names.MODEL_NAME])


def outline(loads: list[Load]) -> dict[str, list[str]]:
    """Models by the load that they are in; each load has all its stages."""
    every = [span for load in loads for span in load.walk() if isinstance(span, Load)]
    assert all(load.end is not None for load in every)
    inner = {model(load): sorted(model(below) for below in load.walk() if isinstance(below, Load) and below is not load) for load in loads}
    assert {load.trace_id for load in every} == {load.trace_id for load in loads}
    return inner


def test_threads_and_jobs_of_a_pool_belong_to_the_load_that_gave_them_work(tmp_path: Path) -> None:
    assert outline(run(tmp_path, THREADS)) == {
        "before": [],
        "first": [*(f"job {number}" for number in range(6)), "mapped", "thread", "timer"],
        "second": ["job of the second"],
        "after": [],
    }


def test_a_job_that_outlives_its_load_is_below_it_and_the_next_job_is_not(tmp_path: Path) -> None:
    found = outline(run(tmp_path, OUTLIVED))
    assert found.pop("second") == ["of the second"]
    assert found in ({"first": ["late"]}, {"first": [], "late": []})


def test_tasks_and_what_they_run_elsewhere_belong_to_the_load_of_their_task(tmp_path: Path) -> None:
    parts = ("executor", "process", "program", "task", "to_thread")
    assert outline(run(tmp_path, ASYNCIO)) == {
        **{name: [f"{name}: {part}" for part in parts] for name in ("first", "second")},
        "after": [],
    }


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_job_of_a_process_pool_belongs_to_the_load_that_submitted_it(tmp_path: Path, method: str) -> None:
    assert outline(run(tmp_path, PROCESS_POOL, method)) == {
        "first": [*(f"first {number}" for number in range(4)), "last of the first"],
        "second": ["second"],
        "alone": [],
    }


def test_what_is_forked_in_a_stage_is_below_it_and_what_that_starts_is_in_the_load(tmp_path: Path) -> None:
    (load,) = loads = run(tmp_path, FORKED_IN_STAGE)
    assert outline(loads) == {"first": ["forked", "program"]}
    (stage,) = (child for child in load.children if child.name == "initialize")
    assert [model(below) for below in stage.children if isinstance(below, Load)] == ["forked"]


def test_children_of_children_belong_to_the_load_of_the_first(tmp_path: Path) -> None:
    assert outline(run(tmp_path, GENERATIONS)) == {"first": ["generation 0", "generation 1", "generation 2"]}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_jobs_of_an_actor_belong_to_the_load_whose_context_came_with_them(tmp_path: Path, method: str) -> None:
    assert outline(run(tmp_path, ACTOR, method)) == {"first": ["first: job"], "second": ["second: job"], "alone": []}


def test_sixteen_threads_that_load_at_once_and_share_a_pool_do_not_mix(tmp_path: Path) -> None:
    loads = run(tmp_path, SIXTEEN)
    expected = {f"model {number}": [f"model {number}: part {part}" for part in range(4)] for number in range(16)}
    assert outline(loads) == expected
    for load in loads:
        assert sum(load.partition.values()) == pytest.approx(load.duration, abs=1e-6)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_are_not_disturbed(tmp_path: Path, method: str) -> None:
    assert outline(run(tmp_path, DATALOADER, method)) == {"first": []}
