"""Time on the CPU that the load did not get."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import names, units
from loadspan.findings.rule import NOTABLE, Rule, Told, part

if TYPE_CHECKING:
    from loadspan.model import Load


def _cpu_wait(_load: Load, seconds: float, waited: float) -> Told | None:
    if waited < NOTABLE * seconds:
        return None
    return Told(
        "Give the process more CPU time, with a higher CPU limit or less other work on its CPUs: "
        f"the loading thread was ready to run and waited {part(waited, seconds)} for a CPU.",
        waited,
    )


RULES = (
    Rule(
        id="cpu-wait",
        when=f"the loading thread was ready to run and waited for a CPU for at least {units.share(NOTABLE)} of the load",
        mechanism="A thread that is ready to run waits while others have the CPUs that it may use.",
        needs=(names.RUN_QUEUE_TIME,),
        check=_cpu_wait,
    ),
)
