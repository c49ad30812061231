"""
Which process of a group this is, as its launcher says in the environment: torchrun, Open MPI, Slurm.

What its processes have in common is the name of the run or job where there is one; else the trace that all of them were started in; else
where their first rank is to be met. It is the same for every process, whatever trace its loads are in.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Rank, rank on this machine, processes, and what they have in common. torchrun first: the others' variables may be those of what starts it.
_LAUNCHERS = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_NAMESPACE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_JOB_ID"),
)
_NAMELESS = {"", "none"}  # torchrun's run id where nobody gave one
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Group:
    """A process among others that load together."""

    rank: int
    world_size: int
    rank_local: int | None = None
    id: str | None = None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def of_process(environment: Mapping[str, str] | None = None) -> Group | None:
    """The group that *environment* (default: this process's) tells of; None for a process that is alone."""
    environment = os.environ if environment is None else environment
    for rank, local, size, name in _LAUNCHERS:
        number, count = _number(environment.get(rank)), _number(environment.get(size))
        if number is None or count is None or not number < count:
            continue
        if count == 1:
            return None
        common = environment.get(name, "")
        return Group(number, count, _number(environment.get(local)), common if common not in _NAMELESS else _in_common(environment))
    return None


def _in_common(environment: Mapping[str, str]) -> str | None:
    """Of a group without a name."""
    traces = (_TRACE.match(environment.get(key, "")) for key in ("traceparent", "TRACEPARENT"))
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    return next((trace[1] for trace in traces if trace is not None), f"{address}:{port}" if address and port else None)
