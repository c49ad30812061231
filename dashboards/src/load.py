"""One load: its waterfall by trace id, what its stages took, the facts on its spans, and how it compares with the service's other loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import frame
from .fleet import FOUND
from .frame import SERVICE
from .panels import ROWS, Look, Override, joined, only, panel, sorted_by
from .queries import (
    FINDINGS,
    LOAD,
    LOADS,
    STAGE,
    STAGE_IO,
    STAGE_THROUGHPUT,
    STORAGE_READ,
    WINDOW,
    mean,
    per_load,
    quantile,
    select,
    speed,
    total,
)
from .sources import JAEGER, TEMPO, instant, search, series, table, trace, traceql

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import dashboard

STAGES = (
    "download",
    "read",
    "decrypt",
    "deserialize",
    "initialize",
    "load_state_dict",
    "convert",
    "merge_lora",
    "to_device",
    "compile",
    "cache",
    "loadspan",
    "other",
)
MACHINE = (
    "loadspan.storage.kind",
    "system.filesystem.type",
    "server.address",
    "loadspan.cache.residency",
    "loadspan.device.name",
    "loadspan.link.generation",
    "loadspan.link.width",
    "loadspan.link.generation.max",
    "loadspan.link.width.max",
    "loadspan.link.degraded",
    "loadspan.numa.relation",
)
DONE = (SERVICE, 'error_type=""')
EVIDENCE = (
    "findings",
    "coverage",
    "cpu_time",
    "blocked_time",
    "io.storage_read",
    "cache.evicted",
    "memory.limit.hits",
    "device.name",
    "loader",
)
RULES = ("link-degraded", "numa-remote", "cache-missed", "cache-cold", "cache-evicted", "memory-limit", "swap", "cpu-wait", "unexplained")
THIS = 'trace:id = "${traceId}"'
SPANS = {"operationName": "Span", "startTime": "Start", "duration": "Duration", "tags": "Attributes", "serviceTags": "Resource"}


def find() -> list[dashboard.Panel]:
    """List loads to choose one of."""
    return [
        panel(
            "table",
            "Loads (Jaeger)",
            "short",
            "The newest loads of the service. Click a trace id to see it below; none here: choose the service above.",
            search(limit=20),
            source=JAEGER,
            look=Look(span=24, height=6, overrides=FOUND),
        )
    ]


def waterfall() -> list[dashboard.Panel]:
    """Draw the trace, what it sums up to, and its attributes."""
    grouped: dict[str, object] = {
        "operationName": {"aggregations": [], "operation": "groupby"},
        "duration": {"aggregations": ["sum"], "operation": "aggregate"},
    }
    root: dict[str, object] = {
        "filters": [{"fieldName": "operationName", "config": {"id": "equal", "options": {"value": "load model"}}}],
        "type": "exclude",
        "match": "any",
    }
    return [
        panel(
            "traces",
            "Waterfall",
            "ms",
            "Every stage of the load, as it ran. Follow the critical path: the longest stage on it is the one to shorten.",
            trace(),
            source=JAEGER,
            look=Look(span=24, height=16),
        ),
        panel(
            "bargauge",
            "Time by stage",
            "ms",
            "Sum of the spans of each stage; overlapping ones both count, exclusive seconds are on the root span as "
            "loadspan.partition. Shorten the longest bar first.",
            trace(),
            source=JAEGER,
            look=Look(
                span=8,
                options={"reduceOptions": ROWS},
                transformations=(("filterByValue", root), ("groupBy", {"fields": grouped}), sorted_by("duration (sum)")),
            ),
        ),
        panel(
            "table",
            "Facts of each span",
            "short",
            "Storage, cache, device, link and throughput, as attributes of the span they were measured in. "
            "The first has the findings, as loadspan.finding: do what they say. "
            "A stage without throughput is lazy: its bytes arrive in a later one.",
            trace(),
            source=JAEGER,
            look=Look(
                span=16,
                overrides=(
                    Override("Duration", unit="ms", width=110),
                    Override("Start", unit="dateTimeAsIso", width=190),
                    Override("Attributes", cell="json-view"),
                    Override("Resource", cell="json-view"),
                ),
                transformations=only(SPANS),
            ),
        ),
    ]


def moved() -> list[dashboard.Panel]:
    """Draw what moved while it ran, and name what was found: from metrics, with whatever keeps the traces."""
    return [
        panel(
            "timeseries",
            "Throughput by stage while it loaded",
            "Bps",
            "Bytes per second of each stage and from block devices up to each export, of every process of the service. Empty: the load was "
            "shorter than the export interval, set OTEL_METRIC_EXPORT_INTERVAL=5000. Lower than the disk can do: loadspan check --measure.",
            series(speed(select(STAGE_IO, SERVICE)), "{{loadspan_stage}} {{instance}}"),
            series(speed(select(STORAGE_READ, SERVICE)), "from storage {{instance}}", "B"),
            look=Look(span=16, interval="1s"),
        ),
        panel(
            "table",
            "Findings of the service's loads",
            "short",
            "Loads of the range that ended with each finding; no row where nothing was found. What this load says, with its evidence, is "
            "loadspan.finding on its span above. Do what it says, load again and compare.",
            table(f"{total(select(FINDINGS, SERVICE), 'loadspan_finding_id')} > 0"),
            look=Look(
                span=8,
                transformations=(*only({"loadspan_finding_id": "Finding", "Value": "Loads"}), sorted_by("Loads")),
            ),
        ),
    ]


def usual() -> list[dashboard.Panel]:
    """Show what is usual for the service."""
    stages = per_load(total(select(f"{STAGE}_sum", SERVICE), "loadspan_stage"), total(select(LOADS, SERVICE)))
    throughput = {"loadspan_stage": "Stage", "Value #A": "Mean", "Value #B": "95th percentile"}
    return [
        panel(
            "bargauge",
            "Exclusive seconds of each stage in a load of this service",
            "s",
            "Exclusive seconds, mean over the loads of the range. Compare the facts of a stage that took far longer above.",
            instant(f"sort_desc({stages})", "{{loadspan_stage}}"),
            look=Look(span=8),
        ),
        panel(
            "table",
            "Throughput by stage",
            "Bps",
            "Where bytes and time were both measured. A read far below what the disk can do: loadspan check --measure.",
            table(mean(STAGE_THROUGHPUT, (SERVICE,), "loadspan_stage"), "A"),
            table(quantile(0.95, STAGE_THROUGHPUT, (SERVICE,), "loadspan_stage"), "B"),
            look=Look(span=8, transformations=(*joined(throughput, "loadspan_stage"), sorted_by("Mean", descending=False))),
        ),
        panel(
            "timeseries",
            "Load time of this service",
            "s",
            "Mean of the loads in the window before each point. When it steps up, click an exemplar on either side "
            "of the step and compare the two.",
            series(mean(LOAD, DONE, window=WINDOW), "mean"),
            series(quantile(0.95, LOAD, DONE, window=WINDOW), "95th percentile", "B", exemplars=True),
            look=Look(span=8),
        ),
    ]


def tempo() -> list[dashboard.Panel]:
    """Show the load from Tempo, which can pick single attributes."""
    partition = ", ".join(f"span.loadspan.partition.{stage}" for stage in STAGES)
    machine = ", ".join(f"span.{name}" for name in MACHINE)
    evidence = ", ".join(f"span.loadspan.{name}" for name in EVIDENCE)
    findings = ", ".join(f'span."loadspan.finding.{known}"' for known in RULES)
    return [
        panel(
            "traces",
            "Waterfall (Tempo)",
            "ms",
            "Every stage of the load, as it ran. Follow the longest stages first.",
            traceql("${traceId}"),
            source=TEMPO,
            look=Look(span=24, height=16),
        ),
        panel(
            "table",
            "Findings",
            "short",
            "What to do about this load, each with its evidence; a column for each finding, none where nothing was found. "
            "Loads of under a second have only that of a degraded link. Do what a sentence says, load again and compare.",
            traceql(f'{{ {THIS} && span:name = "load model" }} | select({findings})'),
            source=TEMPO,
            look=Look(span=24, height=6, custom={"cellOptions": {"type": "auto", "wrapText": True}}),
        ),
        panel(
            "table",
            "Exclusive seconds",
            "s",
            "They add up to the load. A large other was in no known stage: its frames are in the evidence.",
            traceql(f'{{ {THIS} && span:name = "load model" }} | select({partition})'),
            source=TEMPO,
            look=Look(),
        ),
        panel(
            "table",
            "Evidence",
            "short",
            "What the load says of itself. Low coverage: its root span names functions to wrap with loadspan.stage.",
            traceql(f'{{ {THIS} && span:name = "load model" }} | select({evidence})'),
            source=TEMPO,
            look=Look(overrides=(Override("loadspan.coverage", unit="percentunit"),)),
        ),
        panel(
            "table",
            "Machine facts",
            "short",
            "Storage, cache and link of each stage. A link below its maximum or a remote NUMA node: see the Machines board.",
            traceql(f"{{ {THIS} && span.loadspan.stage != nil }} | select(span.loadspan.stage, {machine})"),
            source=TEMPO,
            look=Look(span=24, overrides=(Override("loadspan.cache.residency", unit="percentunit"),)),
        ),
        _throughput(),
    ]


def _throughput() -> dashboard.Panel:
    return panel(
        "timeseries",
        "Throughput while it loaded",
        "Bps",
        "A point for each span that moved bytes; long stages are cut every few seconds. Flat and low: storage is throttled.",
        traceql(f"{{ {THIS} && span.loadspan.throughput > 0 }} | select(span.loadspan.stage, span.loadspan.throughput)"),
        source=TEMPO,
        look=Look(
            span=24,
            custom={"drawStyle": "points", "pointSize": 8},
            transformations=(
                ("filterFieldsByName", {"include": {"names": ["Start time", "loadspan.throughput"]}}),
                (
                    "convertFieldType",
                    {"fields": {}, "conversions": [{"targetField": "loadspan.throughput", "destinationType": "number"}]},
                ),
            ),
        ),
    )


def build() -> dashboard.Dashboard:
    """Build the board."""
    made = frame.board(
        "loadspan-load", "Model loading: one load", "The waterfall of one load, what its stages took, and the facts measured with it."
    )
    traced = frame.traced()
    service = frame.labels(
        "service", "Service", f"label_values({LOADS}, service_name)", description="Service whose other loads it is compared with."
    )
    chosen = frame.typed("traceId", "Trace id", "", "Trace id of the load, in hexadecimal; the tables set it.")
    made = made.variables([*frame.sources(), chosen, traced, service, frame.window()])
    frame.add(made, "Choose a load", *find())
    frame.add(made, "The load ${traceId}", *waterfall())
    frame.add(made, "While it loaded", *moved())
    frame.add(made, "What is usual for the service", *usual())
    frame.add(made, "The load, from Tempo", *tempo(), collapsed=True)
    return made
