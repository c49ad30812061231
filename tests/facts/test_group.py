"""Which process of a group this is, as launchers say in the environment."""

from __future__ import annotations

import pytest

from loadspan.facts.group import Group, of_process

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "job", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, Group(5, 8, 1, "job")),
        ({**TORCHRUN, "TRACEPARENT": PARENT}, Group(5, 8, 1, "job")),
        ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none"}, Group(5, 8, 1, "node0:29500")),
        ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none", "TRACEPARENT": PARENT}, Group(5, 8, 1, TRACE)),
        ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none", "traceparent": PARENT}, Group(5, 8, 1, TRACE)),
        ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none", "TRACEPARENT": "of no use"}, Group(5, 8, 1, "node0:29500")),
        ({"RANK": "0", "WORLD_SIZE": "2"}, Group(0, 2, None, None)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "2", "WORLD_SIZE": "2"}, None),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, None),
        ({"RANK": "x", "WORLD_SIZE": "2"}, None),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, Group(1, 2, 1, None)),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77"}, Group(3, 4, 0, "77")),
        ({**TORCHRUN, "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "77"}, Group(5, 8, 1, "job")),
        ({}, None),
    ],
)
def test_what_the_launcher_says(environment: dict[str, str], expected: Group | None) -> None:
    assert of_process(environment) == expected
