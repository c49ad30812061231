"""Compare: two nodes, versions, services or vendors side by side: one label, two of its values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.models import dashboard as model

from . import frame
from .frame import MODEL, SERVICE
from .panels import Look, Override, joined, merged, panel
from .queries import (
    BANDWIDTH,
    LOAD,
    RESIDENCY,
    STAGE,
    STAGE_SIZE,
    STAGE_THROUGHPUT,
    WINDOW,
    latest,
    mean,
    per_load,
    quantile,
    select,
    total,
)
from .sources import instant, series, table

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import dashboard

LABELS = (
    "host_name",
    "k8s_node_name",
    "service_version",
    "service_name",
    "instance",
    "loadspan_device_type",
    "loadspan_storage_kind",
    "loadspan_loader",
    "cloud_provider",
    "host_type",
    "deployment_environment_name",
)
SIDES = ('$dimension=~"$a"', '$dimension=~"$b"')
ESTIMATE = "It is estimated inside a bucket."


def common(side: str) -> tuple[str, ...]:
    """Select the loads of a side."""
    return (side, SERVICE, MODEL)


def done(side: str) -> tuple[str, ...]:
    """Select those of them that succeeded."""
    return (*common(side), 'error_type=""')


def numbers() -> list[dashboard.Panel]:
    """Put the two loads into a few numbers."""
    first, second = (mean(LOAD, done(side)) for side in SIDES)
    half = Look(span=6, height=4)
    return [
        panel(
            "stat",
            "Times as long on ${b} as on ${a}",
            "none",
            "Mean load of one by mean load of the other. Above 1, ${b} is slower: find the stage below.",
            instant(f"({second}) / ({first})"),
            look=Look(span=6, height=4, steps=((1.2, "orange"), (2, "red"))),
        ),
        panel(
            "stat",
            "Mean load",
            "s",
            "Over the loads of the range. Few loads make a poor mean: look at their number first.",
            instant(first, "${a}"),
            instant(second, "${b}", "B"),
            look=half,
        ),
        panel(
            "stat",
            "95th percentile",
            "s",
            f"One load of twenty took longer. {ESTIMATE} Far above the mean: the loads differ among themselves, compare single traces.",
            *(instant(quantile(0.95, LOAD, done(side)), name, ref) for side, name, ref in zip(SIDES, ("${a}", "${b}"), "AB", strict=True)),
            look=half,
        ),
        panel(
            "stat",
            "Loads",
            "short",
            "Loads that are compared. None on a side: widen the range, or choose values that load the same model.",
            *(
                instant(total(select(f"{LOAD}_count", *common(side))), name, ref)
                for side, name, ref in zip(SIDES, ("${a}", "${b}"), "AB", strict=True)
            ),
            look=half,
        ),
    ]


def stages() -> list[dashboard.Panel]:
    """Compare stage by stage."""
    label = "loadspan_stage"
    seconds, throughput, size = [], [], []
    for side in SIDES:
        here = (side, SERVICE)
        loads = total(select(f"{LOAD}_count", *here))
        seconds.append(per_load(total(select(f"{STAGE}_sum", *here), label), loads))
        throughput.append(mean(STAGE_THROUGHPUT, here, label))
        size.append(per_load(total(select(f"{STAGE_SIZE}_sum", *here), label), loads))
    return [
        _by_stage(
            "barchart",
            "Seconds of each stage in a load",
            "s",
            seconds,
            "The stage with the largest difference is where to look.",
            Look(height=10),
        ),
        _by_stage(
            "table",
            "Throughput of each stage",
            "Bps",
            throughput,
            "The same bytes at another speed: the machine is the cause, storage for read, CPU for decrypt, the link for to_device.",
            Look(height=10),
        ),
        _by_stage(
            "table",
            "Bytes of each stage in a load",
            "decbytes",
            size,
            "Should be equal: where they are not, the sides load different things.",
            Look(),
        ),
    ]


def _by_stage(kind: str, title: str, unit: str, pairs: list[str], advice: str, look: Look) -> dashboard.Panel:
    names = {"loadspan_stage": "Stage", "Value #A": "Value #A", "Value #B": "Value #B"}
    look.overrides = (Override("Value #A", title="${a}"), Override("Value #B", title="${b}"))
    look.transformations = joined(names, "loadspan_stage")
    if kind == "barchart":
        look.options = {"xField": "Stage"}
    return panel(kind, title, unit, advice, *(table(query, ref) for query, ref in zip(pairs, "AB", strict=True)), look=look)


def machines() -> list[dashboard.Panel]:
    """Compare what is known of the machines."""
    kinds = [
        total(select(f"{LOAD}_count", *common(side)), "loadspan_storage_kind, loadspan_device_type, loadspan_loader") for side in SIDES
    ]
    names = {
        "loadspan_storage_kind": "Storage",
        "loadspan_device_type": "Device",
        "loadspan_loader": "Loader",
        "Value #A": "Value #A",
        "Value #B": "Value #B",
    }
    both = ("${a}", "${b}")
    return [
        panel(
            "table",
            "Storage, device and loader",
            "short",
            "Loads of each combination. Different storage on the sides explains a different read: move the weights.",
            *(table(query, ref) for query, ref in zip(kinds, "AB", strict=True)),
            look=Look(
                transformations=merged(names),
                overrides=(Override("Value #A", title="${a}"), Override("Value #B", title="${b}")),
            ),
        ),
        panel(
            "stat",
            "In the page cache before the load",
            "percentunit",
            "Mean share of the files. A cold side reads from storage: keep the cache between restarts, or warm it.",
            *(
                instant(f"avg({latest(select(RESIDENCY, side, SERVICE))})", name, ref)
                for side, name, ref in zip(SIDES, both, "AB", strict=True)
            ),
            look=Look(span=6, height=8),
        ),
        panel(
            "stat",
            "Narrowest link to a device",
            "Bps",
            "Lowest bandwidth of the links that were measured. A lower side copies slower: check slot, riser and BIOS.",
            *(
                instant(f"min({latest(select(BANDWIDTH, side, SERVICE))})", name, ref)
                for side, name, ref in zip(SIDES, both, "AB", strict=True)
            ),
            look=Look(span=6, height=8),
        ),
    ]


def over_time() -> list[dashboard.Panel]:
    """Draw both along the range."""
    first, second = (mean(LOAD, done(side), window=WINDOW) for side in SIDES)
    failed = [total(select(f"{LOAD}_count", *common(side), 'error_type!=""'), "error_type", WINDOW) for side in SIDES]
    return [
        panel(
            "timeseries",
            "Mean load time",
            "s",
            "Of the loads in the window before each point. Where the lines part, something was changed: a deployment, a kernel, a mount.",
            series(first, "${a}"),
            series(second, "${b}", "B"),
        ),
        panel(
            "timeseries",
            "Failed loads",
            "short",
            "By exception. Failures on one side only: the exception in one of its traces says why.",
            series(failed[0], "${a} {{error_type}}"),
            series(failed[1], "${b} {{error_type}}", "B"),
        ),
    ]


def build() -> dashboard.Dashboard:
    """Build the board."""
    made = frame.board("loadspan-compare", "Model loading: compare", "Two nodes, versions, services or vendors side by side.")
    query = f"label_values({LOAD}_count, $dimension)"
    first = frame.labels("a", "One", query, description="One value of that label.", several=False)
    second = frame.labels("b", "Other", query, description="Another value of that label.", several=False)
    dimension = frame.choice("dimension", "Compare by", LABELS, "The label whose values are compared.")
    loads = frame.labels(
        "model", "Model", f"label_values({LOAD}_count, loadspan_model_name)", description="Model name, where the load has one."
    )
    second = second.sort(model.VariableSort.ALPHABETICAL_DESC)  # so that the two differ from the start
    made = made.variables(
        [frame.source("prometheus", "prometheus", "Prometheus"), dimension, first, second, frame.service(), loads, frame.window()]
    )
    frame.add(made, "How much they differ", *numbers())
    frame.add(made, "Where they differ", *stages())
    frame.add(made, "Why they may differ", *machines())
    frame.add(made, "Over time", *over_time())
    return made
