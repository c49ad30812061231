"""The alerts and what they are made of, as Prometheus reads them; thresholds are meant to be changed here or in a copy of the file."""

from __future__ import annotations

from dataclasses import dataclass, field

from .queries import DEGRADED, LAST, LOAD, RESIDENCY, mean, select, total

OWNER = "job, service_name, loadspan_model_name"
MACHINE = "job, service_name, host_name, k8s_node_name"
RANKS = "job, service_name, k8s_job_name, loadspan_model_name"
DEVICE = "{{ $labels.loadspan_device_type }} {{ $labels.loadspan_device_index }}"
MODEL = "{{ $labels.loadspan_model_name }}"
RECENT = "loadspan:load_duration_seconds:mean1h"
QUICK = "loadspan:load_last_duration_seconds:quartile"
COLD = f"last_over_time({select(RESIDENCY)}[1d])"
FAILED = total(select(f"{LOAD}_count", 'error_type!=""'), f"{OWNER}, error_type", "15m")
RANK = select(LAST, 'loadspan_rank!=""')
WHERE = "{{ or $labels.k8s_node_name $labels.host_name $labels.job }}"


@dataclass
class Rule:
    """A recording rule, or with annotations an alert."""

    name: str
    expression: str
    why: str
    notes: dict[str, str] = field(default_factory=dict)
    severity: str = "warning"

    def lines(self) -> list[str]:
        """Write it as YAML."""
        head = f"      - {'alert' if self.notes else 'record'}: {self.name}"
        written = [f"      # {self.why}", head, "        expr: |-", f"          {self.expression}"]
        if self.notes:
            written += ["        labels:", f"          severity: {self.severity}", "        annotations:"]
            written += [f"          {key}: '{text}'" for key, text in self.notes.items()]
        return written


RECORDS = (
    Rule(
        RECENT,
        mean(LOAD, ('error_type=""',), OWNER, "1h"),
        "Mean of the loads that succeeded within an hour; no value in an hour without any.",
    ),
    Rule(QUICK, f"quantile by ({RANKS}) (0.25, {RANK})", "What the faster quarter of the ranks took for their last load."),
)
ALERTS = (
    Rule(
        "LoadspanLoadSlow",
        f"{RECENT} > 2 * quantile_over_time(0.5, {RECENT}[7d] offset 1h) and {RECENT} > 5",
        "Twice as long as was usual in the week before; loads of a few seconds are left alone.",
        {
            "summary": f"{{{{ $labels.service_name }}}} loads {MODEL} in {{{{ $value | humanizeDuration }}}}, far longer than before",
            "description": "Open a slow load and an older one on the board loadspan-fleet and compare their stages.",
        },
    ),
    Rule(
        "LoadspanRankStraggles",
        f"{RANK} > on ({RANKS}) group_left () 1.5 * {QUICK} and {RANK} - on ({RANKS}) group_left () {QUICK} > 30",
        "Half as long again as the faster quarter of the ranks, and at least 30 s: all others wait for it.",
        {
            "summary": "Rank {{ $labels.loadspan_rank }} of {{ $labels.service_name }} took {{ $value | humanizeDuration }}, all wait",
            "description": "Compare its machine with one of another rank on the board loadspan-compare: storage, link, NUMA.",
        },
    ),
    Rule(
        "LoadspanLoadFails",
        f"{FAILED} > 0",
        "Also the first load of a process: its series was not there before.",
        {
            "summary": "{{ $value }} loads failed with {{ $labels.error_type }} within 15 minutes ({{ $labels.service_name }})",
            "description": "The failing stage is red in the trace and carries the exception: see Failures on the board loadspan-fleet.",
        },
        "critical",
    ),
    Rule(
        "LoadspanLinkDegraded",
        f"max by ({MACHINE}, loadspan_device_type, loadspan_device_index) ({select(DEGRADED)}) == 1",
        "Read while bytes moved: an idle link is slow on purpose, this one was not idle.",
        {
            "summary": f"The link to {DEVICE} of {WHERE} ran below what both its ends support",
            "description": "See its width and generation on the board loadspan-machines; reseat the card, check riser and BIOS.",
        },
    ),
    Rule(
        "LoadspanCacheAlwaysCold",
        f"count by ({MACHINE}, loadspan_model_name) ({COLD}) >= 3 and max by ({MACHINE}, loadspan_model_name) ({COLD}) < 0.1",
        "Three processes or more within a day, and none found its files in the page cache.",
        {
            "summary": f"{{{{ $value }}}} processes on {WHERE} found {MODEL} in no page cache",
            "description": "Memory is too small for the weights, or a limit evicts them: see the board loadspan-machines.",
        },
        "info",
    ),
)
HEAD = """\
# Written by dashboards/generate.py from dashboards/src/rules.py; tested by tests/loadspan.yaml beside it.
# service_name, host_name, k8s_node_name and k8s_job_name are labels where Prometheus is told so: see ../README.md.
groups:
"""


def text() -> str:
    """Write the file."""
    lines = []
    for group, rules in (("loadspan-records", RECORDS), ("loadspan-alerts", ALERTS)):
        lines += [f"  - name: {group}", "    interval: 1m", "    rules:"]
        for rule in rules:
            lines += rule.lines()
    return HEAD + "\n".join(lines) + "\n"
