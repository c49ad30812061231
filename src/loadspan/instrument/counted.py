"""What the kernel counted during a load."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from loadspan.facts import counters

if TYPE_CHECKING:
    from loadspan.instrument.frames import OpenLoad

_LATE = 100_000_000  # nanoseconds after which the process's counters are no more those of a load that has ended


def of_load(load: OpenLoad) -> tuple[counters.IoFacts | None, counters.Counters | None]:
    """The difference over *load*, which ends now, and the reading at its end; None where it was not looked at in time."""
    before = load.surroundings.before
    if not load.explicit:
        # It ended with its last stage, and this is a while after. The sampler looks a tenth of a second after a fine call.
        after = load.after
        if after is None or after.at < load.last_end:
            if time.perf_counter_ns() - load.last_end > _LATE:
                return None, None
            after = counters.of_process()  # the process ends, and with it the load
        own = after.at - load.last_end <= load.last_end - load.start  # else most of what was counted came after it
        return (counters.difference(before, after), after) if own else (None, None)
    after = counters.of_process()
    whole = counters.difference(before, after)
    if threading.get_ident() != load.thread:
        return whole, after
    return counters.with_blocked(whole, counters.difference(load.before, counters.of_thread(load.thread))), after
