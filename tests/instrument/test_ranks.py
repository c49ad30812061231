"""Four processes of torchrun that load one checkpoint: each is told as what it is, and who was late is named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadspan import names
from loadspan.findings import ranks
from loadspan.report.tracefile import read

if TYPE_CHECKING:
    from loadspan.model import Load

BIN = Path(sys.executable).parent
MB = 1 << 20

LOAD = """
import os, time
import torch
from safetensors.torch import load_file, load

rank = int(os.environ["RANK"])
model = torch.nn.Linear(1024, 4096, bias=False)
if rank == 2:  # through a keyhole
    data = bytearray()
    with open("model.safetensors", "rb", buffering=0) as file:
        while block := file.read(64 << 10):
            data += block
            time.sleep(0.008)
    state = load(bytes(data))
else:
    state = load_file("model.safetensors")
model.load_state_dict(state)
"""

DECRYPT = """
import os, time
import loadspan

rank = int(os.environ["RANK"])
with loadspan.load("base", path="model.safetensors"):
    with loadspan.stage("read", path="model.safetensors", size=os.path.getsize("model.safetensors")):
        with open("model.safetensors", "rb") as file:
            file.read()
        time.sleep(0.05)
    with loadspan.stage("decrypt"):
        time.sleep(1.5 if rank == 1 else 0.1)
if rank == 3:
    os._exit(0)
"""

LAUNCH = """
import subprocess, sys
import loadspan

with loadspan.load("all"):
    subprocess.run(sys.argv[1:], check=True)
"""

SPAWN = """
import os
import loadspan
import torch.multiprocessing

def work(rank):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="1")
    with loadspan.load("base"):
        pass

if __name__ == "__main__":
    with loadspan.load("all"):
        torch.multiprocessing.spawn(work, nprocs=2)
    torch.multiprocessing.spawn(work, nprocs=2)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a checkpoint of 16 MB."""
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(4096, 1024)}, tmp_path / "model.safetensors")
    return tmp_path


def run(folder: Path, *command: str, launcher: tuple[str, ...] = ("-m", "loadspan", "run", "-o", "run", "--"), **variables: str) -> str:
    environ = {key: value for key, value in os.environ.items() if key not in {"TRACEPARENT", "traceparent"}}
    done = subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=folder,
        env={**environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def torchrun(folder: Path, program: str, *options: str) -> list[str]:
    (folder / "ranks.py").write_text(program)
    return [str(BIN / "torchrun"), "--nproc-per-node", "4", *options, "ranks.py"]


def attributes(loads: list[Load], name: str) -> list[Any]:
    return [load.attributes.get(name) for load in sorted(loads, key=lambda load: load.number(names.RANK) or 0)]


def test_who_was_late_and_what_was_read_four_times(folder: Path) -> None:
    shown = run(folder, *torchrun(folder, LOAD))
    loads = read(folder / "run").loads
    assert attributes(loads, names.RANK) == attributes(loads, names.RANK_LOCAL) == [0, 1, 2, 3]
    assert attributes(loads, names.WORLD_SIZE) == [4] * 4
    (name,) = set(attributes(loads, names.LOAD_ID))
    assert name
    assert len({load.trace_id for load in loads}) == 4, "nobody is above them: their name is what they have in common"
    (group,) = ranks.groups(loads)
    assert group.slowest == 2
    assert group.excess > 1.0
    (file,) = group.files
    size = (folder / "model.safetensors").stat().st_size
    assert (file.name, sorted(file.read), file.size) == ("model.safetensors", [0, 1, 2, 3], size)
    assert file.total == pytest.approx(4 * size, rel=0.001)
    for text in (
        shown,
        subprocess.run([sys.executable, "-m", "loadspan", "show", "run"], cwd=folder, capture_output=True, text=True, check=True).stdout,
    ):
        said = " ".join(text.split())
        assert re.search(r"4 ranks slowest rank 2: \d\.\d\d s \d\.\d\d s over the median of the others", said), text
        assert "model.safetensors read by 4 ranks, 67.1 MB in all" in said
        assert "straggler: Look at rank 2" in said
        assert "rank 2 of 4" in said


def test_ranks_below_a_load_are_one_trace_and_the_stage_that_was_longer_is_named(folder: Path) -> None:
    (folder / "launch.py").write_text(LAUNCH)
    shown = run(
        folder,
        sys.executable,
        "launch.py",
        *torchrun(folder, DECRYPT, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--rdzv-id=job7"),
    )
    (load,) = read(folder / "run").loads
    (group,) = ranks.groups([load])
    assert load.attributes[names.MODEL_NAME] == "all"
    assert {each.parent_id for each in group.loads.values()} == {load.span_id}
    assert {each.trace_id for each in group.loads.values()} == {load.trace_id}
    assert {each.attributes[names.LOAD_ID] for each in group.loads.values()} == {"job7"}
    assert (list(group.loads), group.slowest, group.longer[0][0]) == ([0, 1, 2, 3], 1, "decrypt")
    assert "4 ranks base slowest rank 1" in " ".join(shown.split())


def test_under_opentelemetry_instrument_ranks_have_the_trace_they_were_started_in(folder: Path) -> None:
    trace, parent = f"{7:032x}", f"00-{7:032x}-{8:016x}-01"
    launcher = (
        str(BIN / "opentelemetry-instrument"),
        "--traces_exporter",
        "loadspan",
        "--metrics_exporter",
        "none",
        "--logs_exporter",
        "none",
    )
    run(folder, *torchrun(folder, DECRYPT), launcher=launcher, LOADSPAN_DIR=str(folder / "run"), TRACEPARENT=parent)
    loads = read(folder / "run").loads
    assert attributes(loads, names.RANK) == [0, 1, 2, 3]
    assert {(load.trace_id, load.parent_id) for load in loads} == {(trace, f"{8:016x}")}
    assert len(set(attributes(loads, names.LOAD_ID))) == 1
    (group,) = ranks.groups(loads)
    assert group.slowest == 1


def test_what_torch_spawns_for_a_load_belongs_to_it(folder: Path) -> None:
    (folder / "program.py").write_text(SPAWN)
    run(folder, sys.executable, "program.py")
    loads = read(folder / "run").loads
    first, *alone = sorted(loads, key=lambda load: -len(load.children))
    assert [attributes(list(first.children), name) for name in (names.RANK, names.LOAD_ID)] == [[0, 1], [first.trace_id] * 2]  # type: ignore[arg-type] # they are loads
    assert [attributes(alone, name) for name in (names.RANK, names.LOAD_ID)] == [[0, 1], ["localhost:1"] * 2]
    found = json.loads(
        subprocess.run([sys.executable, "-m", "loadspan", "show", "run", "--json"], cwd=folder, capture_output=True, check=True).stdout
    )
    assert len(found) == 3
