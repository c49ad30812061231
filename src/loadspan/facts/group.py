"""Which process of a group this is, as its launcher says in the environment: torchrun, Open MPI, Slurm."""

from __future__ import annotations

import os
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
        return Group(number, count, _number(environment.get(local)), None if common in _NAMELESS else common)
    return None
