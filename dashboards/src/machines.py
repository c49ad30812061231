"""Machines: who has slow storage, cold caches or degraded links; widths and NUMA relations, which only spans have, by traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import frame
from .fleet import FOUND
from .frame import NODE, SERVICE
from .panels import Look, Override, merged, panel, sorted_by
from .queries import BANDWIDTH, DEGRADED, LOAD, RESIDENCY, STAGE_THROUGHPUT, WINDOW, by_node, latest, mean, select, total
from .sources import JAEGER, TEMPO, instant, search, series, table, traceql

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import dashboard

PROCESS = (SERVICE, NODE)
DEVICE = "$node_label, loadspan_device_type, loadspan_device_index"
STAGE_READ = 'loadspan_stage="read"'
STAGE_COPY = 'loadspan_stage="to_device"'
DEGRADED_HERE = f"max by ({DEVICE}) ({latest(select(DEGRADED, *PROCESS))})"


def overview() -> list[dashboard.Panel]:
    """Four numbers."""
    nodes = f"count(count by ($node_label) ({latest(select(f'{LOAD}_count', *PROCESS))}))"
    small = Look(span=6, height=4)
    bad = Look(span=6, height=4, steps=((1, "red"),))
    return [
        panel(
            "stat",
            "Machines",
            "short",
            "Machines that loaded. Just one although there are more: choose the node label that tells them apart.",
            instant(nodes),
            look=small,
        ),
        panel(
            "stat",
            "Degraded links",
            "short",
            "Devices whose link ran below what both ends support while bytes moved. More than none: reseat the card, check riser and BIOS.",
            instant(f"sum({DEGRADED_HERE})"),
            look=bad,
        ),
        panel(
            "stat",
            "Coldest cache",
            "percentunit",
            "Lowest share of a load's files that was in the page cache before. Near none on a restart: weights do not stay in memory.",
            instant(f"min({latest(select(RESIDENCY, *PROCESS))})"),
            look=small,
        ),
        panel(
            "stat",
            "Slowest storage",
            "Bps",
            "Lowest mean read throughput of a machine and kind of storage. Far below the others: see which one below.",
            instant(f"min({mean(STAGE_THROUGHPUT, (*PROCESS, STAGE_READ), '$node_label, loadspan_storage_kind')})"),
            look=small,
        ),
    ]


def storage() -> list[dashboard.Panel]:
    """Show storage and cache by machine."""
    names = {"node": "Node", "loadspan_storage_kind": "Storage", "Value #A": "Loads", "Value #B": "Read"}
    by = "$node_label, loadspan_storage_kind"
    return [
        panel(
            "table",
            "Storage by machine",
            "short",
            "Loads and mean read throughput by kind of storage. Network or fuse where others have nvme: move the weights to a local disk.",
            table(by_node(total(select(f"{LOAD}_count", *PROCESS), by)), "A"),
            table(by_node(mean(STAGE_THROUGHPUT, (*PROCESS, STAGE_READ), by)), "B"),
            look=Look(
                overrides=(Override("Read", unit="Bps"),),
                transformations=(*merged(names), sorted_by("Read", descending=False)),
            ),
        ),
        panel(
            "bargauge",
            "In the page cache before the load",
            "percentunit",
            "Share of the files by machine and model. Always near none: too little memory for the weights, or a limit that evicts them.",
            instant(
                by_node(f"avg by ($node_label, loadspan_model_name) ({latest(select(RESIDENCY, *PROCESS))})"),
                "{{node}} {{loadspan_model_name}}",
            ),
        ),
        panel(
            "timeseries",
            "Page cache over time",
            "percentunit",
            "Share before each process's last load. It falls after a deployment: warm the cache before traffic.",
            series(by_node(f"avg by ($node_label) ({select(RESIDENCY, *PROCESS)})"), "{{node}}"),
        ),
        panel(
            "timeseries",
            "Read throughput over time",
            "Bps",
            "Mean of the window before each point. A machine that falls alone has a failing disk or a noisy neighbor.",
            series(by_node(mean(STAGE_THROUGHPUT, (*PROCESS, STAGE_READ), by, WINDOW)), "{{node}} {{loadspan_storage_kind}}"),
        ),
    ]


def links() -> list[dashboard.Panel]:
    """Show the links to devices by machine."""
    by = "$node_label, loadspan_device_type"
    copied = mean(STAGE_THROUGHPUT, (*PROCESS, STAGE_COPY), by)
    narrow = f"min by ({by}) ({latest(select(BANDWIDTH, *PROCESS))})"
    device = {"node": "Node", "loadspan_device_type": "Device", "loadspan_device_index": "Index"}
    share = {"node": "Node", "loadspan_device_type": "Device", "Value #A": "Copies", "Value #B": "Bandwidth", "Value #C": "Share"}
    return [
        panel(
            "table",
            "Links to devices",
            "short",
            "As measured while bytes moved. A degraded one: see its width in the traces below; reseat the card, check the riser.",
            table(by_node(DEGRADED_HERE), "A"),
            table(by_node(f"min by ({DEVICE}) ({latest(select(BANDWIDTH, *PROCESS))})"), "B"),
            look=Look(
                overrides=(Override("Bandwidth", unit="Bps"), Override("Degraded", words=("no", "yes"))),
                transformations=(*merged({**device, "Value #A": "Degraded", "Value #B": "Bandwidth"}), sorted_by("Degraded")),
            ),
        ),
        panel(
            "table",
            "Share of the link that copies use",
            "percentunit",
            "Throughput of to_device by the link's bandwidth. Low on a good link: many small copies, or memory that is not pinned.",
            table(by_node(copied), "A"),
            table(by_node(narrow), "B"),
            table(by_node(f"({copied}) / {narrow}"), "C"),
            look=Look(
                overrides=(Override("Copies", unit="Bps"), Override("Bandwidth", unit="Bps")),
                transformations=(*merged(share), sorted_by("Share", descending=False)),
            ),
        ),
    ]


def traced() -> list[dashboard.Panel]:
    """Find traces of bad machines in Jaeger."""
    return [
        panel(
            "table",
            "Loads over a degraded link (Jaeger)",
            "short",
            "Generation, width and what both ends support are on the to_device span. Compare with a good machine's.",
            search(tags="loadspan.link.degraded=true"),
            source=JAEGER,
            look=Look(overrides=FOUND),
        ),
        panel(
            "table",
            "Loads by threads far from the device (Jaeger)",
            "short",
            "The thread's CPUs are of another NUMA node than the device. Pin the process: numactl --cpunodebind.",
            search(tags="loadspan.numa.relation=remote"),
            source=JAEGER,
            look=Look(overrides=FOUND),
        ),
    ]


def tempo() -> list[dashboard.Panel]:
    """Tabulate links and NUMA relations from Tempo."""
    link = "link.generation, link.width, link.generation.max, link.width.max, link.degraded"
    numa = "numa.relation, device.numa_node, thread.numa_node, device.name"
    disk = "storage.kind, storage.model, cache.residency, throughput"
    links, disks = (", ".join(f"span.loadspan.{name}" for name in names.split(", ")) for names in (f"{link}, {numa}", disk))
    where = "resource.host.name, resource.k8s.node.name"
    files = "span.system.filesystem.type, span.server.address"
    return [
        panel(
            "table",
            "Links and NUMA (Tempo)",
            "short",
            "Of every copy to a device. Width or generation below the maximum: reseat the card. Relation remote: pin the process.",
            traceql(f'{{ span.loadspan.stage = "to_device" && span.loadspan.link.width > 0 }} | select({where}, {links})'),
            source=TEMPO,
            look=Look(span=24, overrides=FOUND),
        ),
        panel(
            "table",
            "Storage (Tempo)",
            "short",
            "Of every read. Slow ones on one server or model of disk: that is the one to replace.",
            traceql(f'{{ span.loadspan.stage = "read" && span.loadspan.storage.kind != nil }} | select({where}, {files}, {disks})'),
            source=TEMPO,
            look=Look(
                span=24,
                overrides=(*FOUND, Override("loadspan.throughput", unit="Bps"), Override("loadspan.cache.residency", unit="percentunit")),
            ),
        ),
    ]


def build() -> dashboard.Dashboard:
    """Build the board."""
    made = frame.board(
        "loadspan-machines", "Model loading: machines", "Storage, page cache and device links by machine, and who is degraded."
    )
    made = made.variables([*frame.sources(), frame.service(), *frame.nodes(), frame.window(), frame.traced()])
    frame.add(made, "Who is degraded", *overview())
    frame.add(made, "Storage and page cache", *storage())
    frame.add(made, "Links to devices", *links())
    frame.add(made, "Traces", *traced())
    frame.add(made, "Traces from Tempo", *tempo(), collapsed=True)
    return made
