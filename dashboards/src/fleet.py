"""Fleet: how long loads take over all machines, by model, stage, storage and node, which were slowest, which failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import frame
from .frame import MODEL, NODE, SERVICE
from .panels import BARS, Look, Override, joined, only, panel, sorted_by
from .queries import (
    ACTIVE,
    FINDINGS,
    INTERVAL,
    LAST,
    LOAD,
    LOADED,
    LOADS,
    STAGE,
    STAGE_THROUGHPUT,
    WINDOW,
    by_node,
    grown,
    latest,
    mean,
    quantile,
    select,
    total,
)
from .sources import JAEGER, TEMPO, heat, instant, search, series, table, traceql

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import dashboard

PROCESS = (SERVICE, NODE)
MODELS = (SERVICE, NODE, MODEL)
DONE = (*MODELS, 'error_type=""')
FAILED = (*MODELS, 'error_type!=""')
ESTIMATE = "Of loads that succeeded; percentiles are estimated inside a bucket."
OPEN = "Open this load"
REST = "&var-jaeger_service=${jaeger_service}&${__url_time_range}"
FOUND = (
    Override("traceID", link=(OPEN, f"{frame.TO_LOAD}${{__value.raw}}{REST}"), width=260),
    Override("spanID", link=(OPEN, f"{frame.TO_LOAD}${{__data.fields.traceIdHidden}}{REST}")),
)
"""Columns of what Jaeger (`traceID`) and Tempo (`spanID`, beside a hidden trace id) find; both bring the units of their durations."""


def overview() -> list[dashboard.Panel]:
    """Six numbers."""
    small = Look(span=4, height=4)
    bad = Look(span=4, height=4, steps=((1, "red"),))
    counts = select(f"{LOAD}_count", *MODELS)
    failed = f"{total(select(f'{LOAD}_count', *FAILED))} or 0 * {total(counts)}"
    return [
        panel(
            "stat",
            "Loads",
            "short",
            "Loads that ended in this range, by counters that exist before the first load. "
            "Zero although models were loaded: see in the README what Prometheus must be told.",
            instant(total(select(LOADS, *PROCESS))),
            look=small,
        ),
        panel(
            "stat",
            "Median load",
            "s",
            f"Half of the loads took longer. {ESTIMATE} When it rises, look for the stage that rose below.",
            instant(quantile(0.5, LOAD, DONE)),
            look=small,
        ),
        panel(
            "stat",
            "95th percentile",
            "s",
            f"One load of twenty took longer. {ESTIMATE} When it is far above the median, compare nodes and storage below.",
            instant(quantile(0.95, LOAD, DONE)),
            look=small,
        ),
        panel(
            "stat",
            "Failed loads",
            "short",
            "Loads that ended in an exception. More than none: see their kinds under Failures.",
            instant(failed),
            look=bad,
        ),
        panel(
            "stat",
            "Loading now",
            "short",
            "Loads that are open at the end of the range. One that stays for long hangs: find its stages in its trace.",
            instant(f"sum({select(ACTIVE, *PROCESS)})"),
            look=small,
        ),
        panel(
            "stat",
            "Bytes loaded",
            "decbytes",
            "Bytes that entered loads. Far more than your models are large: something loads again and again.",
            instant(total(select(LOADED, *PROCESS))),
            look=small,
        ),
    ]


def over_time() -> list[dashboard.Panel]:
    """Draw load time and the number of loads along the range."""
    return [
        panel(
            "timeseries",
            "Load time",
            "s",
            f"Each point is about the window before it. {ESTIMATE} When a curve steps up, click an exemplar and read its trace.",
            series(quantile(0.5, LOAD, DONE, window=WINDOW), "median", exemplars=True),
            series(quantile(0.95, LOAD, DONE, window=WINDOW), "95th percentile", "B"),
            series(mean(LOAD, DONE, window=WINDOW), "mean", "C"),
        ),
        panel(
            "timeseries",
            "Loads",
            "short",
            "Loads that ended in each interval. Bursts are restarts: look at what restarted then.",
            series(total(select(LOADS, *PROCESS), "service_name", INTERVAL), "{{service_name}}"),
            look=Look(span=6, interval="1m", custom=BARS),
        ),
        panel(
            "heatmap",
            "Distribution of load time",
            "s",
            "Two bands are two populations: cold and warm, near and far storage. Compare their nodes.",
            heat(total(select(f"{LOAD}_bucket", *DONE), "le", INTERVAL)),
            look=Look(span=6, interval="1m"),
        ),
    ]


def by(label: str, title: str, heading: str, advice: str) -> dashboard.Panel:
    """Tabulate loads by one label."""
    node = label.startswith("$")
    key, named = ("node", by_node) if node else (label, str)
    value = {"Value #A": "Loads", "Value #B": "Median", "Value #C": "95th percentile", "Value #D": "Mean", "Value #E": "Failed"}
    return panel(
        "table",
        title,
        "s",
        f"{ESTIMATE} {advice}",
        table(named(total(select(f"{LOAD}_count", *MODELS), label)), "A"),
        table(named(quantile(0.5, LOAD, DONE, label)), "B"),
        table(named(quantile(0.95, LOAD, DONE, label)), "C"),
        table(named(mean(LOAD, DONE, label)), "D"),
        table(named(total(select(f"{LOAD}_count", *FAILED), label)), "E"),
        look=Look(
            overrides=(Override("Loads", unit="short"), Override("Failed", unit="short")),
            transformations=(*joined({key: heading, **value}, key), sorted_by("95th percentile")),
        ),
    )


def by_stage() -> dashboard.Panel:
    """Tabulate stages."""
    names = {"loadspan_stage": "Stage", "Value #A": "Total", "Value #B": "Median", "Value #C": "95th percentile", "Value #D": "Throughput"}
    return panel(
        "table",
        "By stage",
        "s",
        "Exclusive seconds, which add up to the loads; other is what no stage covers. Begin with the largest total.",
        table(total(select(f"{STAGE}_sum", *PROCESS), "loadspan_stage"), "A"),
        table(quantile(0.5, STAGE, PROCESS, "loadspan_stage"), "B"),
        table(quantile(0.95, STAGE, PROCESS, "loadspan_stage"), "C"),
        table(mean(STAGE_THROUGHPUT, PROCESS, "loadspan_stage"), "D"),
        look=Look(
            overrides=(Override("Throughput", unit="Bps"),),
            transformations=(*joined(names, "loadspan_stage"), sorted_by("Total")),
        ),
    )


def findings() -> list[dashboard.Panel]:
    """Show what is found again and again."""
    return [
        panel(
            "bargauge",
            "Most frequent findings",
            "short",
            "Loads that ended with each finding. Begin with the longest bar: the load's span says what to do, with its evidence.",
            instant(f"sort_desc({total(select(FINDINGS, *PROCESS), 'loadspan_finding_id')} > 0)", "{{loadspan_finding_id}}"),
        ),
        panel(
            "table",
            "Findings by node",
            "short",
            "Loads with each finding on each node. One node that leads: compare it with another on the Compare board.",
            table(by_node(f"topk(50, {total(select(FINDINGS, *PROCESS), 'loadspan_finding_id, $node_label')} > 0)")),
            look=Look(
                transformations=(*only({"node": "Node", "loadspan_finding_id": "Finding", "Value": "Loads"}), sorted_by("Loads")),
            ),
        ),
    ]


def slowest() -> list[dashboard.Panel]:
    """List the slowest loads, by trace and by process."""
    slow = latest(select(LAST, *MODELS))
    names = {
        "service_name": "Service",
        "node": "Node",
        "loadspan_model_name": "Model",
        "loadspan_rank": "Rank",
        "Value": "Last load",
    }
    return [
        panel(
            "table",
            "Slowest loads (Jaeger)",
            "short",
            "Loads longer than the shortest that is shown. Open one and read which stage took the time.",
            search(shortest="$shortest"),
            source=JAEGER,
            look=Look(overrides=FOUND, transformations=(sorted_by("Duration"),)),
        ),
        panel(
            "table",
            "Slowest processes",
            "s",
            "The last load of each process, slowest first; without traces. One node or rank that leads: see Machines.",
            table(by_node(f"topk(20, {slow})")),
            look=Look(overrides=(Override("Rank", unit="string"),), transformations=(*only(names), sorted_by("Last load"))),
        ),
    ]


def failures() -> list[dashboard.Panel]:
    """Show the loads that raised."""
    names = {"service_name": "Service", "loadspan_model_name": "Model", "error_type": "Exception", "Value": "Loads"}
    return [
        panel(
            "table",
            "Failures by exception",
            "short",
            "Loads that ended in an exception. Read the exception in the trace of one of them.",
            table(f"{total(select(f'{LOAD}_count', *FAILED), 'service_name, loadspan_model_name, error_type')} > 0"),
            look=Look(transformations=(*only(names), sorted_by("Loads"))),
        ),
        panel(
            "timeseries",
            "Failures over time",
            "short",
            "Failed loads in each interval. A steady row is a crash loop: stop it, it loads storage for nothing.",
            series(f"sum by (error_type) ({grown(select(f'{LOAD}_count', *FAILED), INTERVAL)})", "{{error_type}}"),
            look=Look(span=6, interval="1m", custom=BARS),
        ),
        panel(
            "table",
            "Failed loads (Jaeger)",
            "short",
            "Traces of failed loads. Open one: the failing stage is red and carries the exception.",
            search(tags="error=true"),
            source=JAEGER,
            look=Look(span=6, overrides=FOUND),
        ),
    ]


def tempo() -> list[dashboard.Panel]:
    """List the same from Tempo, for who has it."""
    model = "span.loadspan.model.name, resource.service.name, resource.host.name"
    return [
        panel(
            "table",
            "Slowest loads (Tempo)",
            "short",
            "Loads longer than the shortest that is shown, of all services. Open one and read its stages.",
            traceql(
                f'{{ span:name = "load model" && span:duration > $shortest }} | select({model}, span.loadspan.size, span.loadspan.coverage)'
            ),
            source=TEMPO,
            look=Look(overrides=FOUND),
        ),
        panel(
            "table",
            "Failed loads (Tempo)",
            "short",
            "Loads that raised, of all services. Open one: the failing stage is red and carries the exception.",
            traceql('{ span:name = "load model" && span:status = error } | select(span.error.type, resource.service.name)'),
            source=TEMPO,
            look=Look(overrides=FOUND),
        ),
    ]


def build() -> dashboard.Dashboard:
    """Build the board."""
    made = frame.board("loadspan-fleet", "Model loading: fleet", "How long models take to load, where the time goes, and what failed.")
    variables = [*frame.sources(), frame.service(), *frame.nodes(), frame.window(), frame.traced()]
    made = made.variables(
        [*variables, _model(), frame.typed("shortest", "Shortest shown", "1s", "Loads shorter than this are not listed.")]
    )
    frame.add(made, "Now and over this range", *overview())
    frame.add(made, "Load time", *over_time())
    tables = (
        by("loadspan_model_name", "By model", "Model", "A model far above others of its size: see its stages in a trace."),
        by_stage(),
        by("loadspan_storage_kind", "By storage", "Storage", "When network or fuse is the slow one, keep weights on a local disk."),
        by("$node_label", "By node", "Node", "A node far above the others: compare it with a fast one on the Compare board."),
    )
    frame.add(made, "What the time depends on", *tables)
    frame.add(made, "What to do", *findings())
    frame.add(made, "Slowest loads", *slowest())
    frame.add(made, "Failures", *failures())
    frame.add(made, "Traces from Tempo", *tempo(), collapsed=True)
    return made


def _model() -> dashboard.QueryVariable:
    return frame.labels(
        "model", "Model", f"label_values({LOAD}_count, loadspan_model_name)", description="Model name, where the load has one."
    )
