"""What the boards share: variables, links to each other, rows, and how a board becomes the text of its file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from .queries import LOADS, STAGE
from .sources import PROMETHEUS

if TYPE_CHECKING:
    from collections.abc import Sequence

TAG = "loadspan"
NODE_LABELS = ("host_name", "k8s_node_name", "instance")
SERVICE = 'service_name=~"$service"'
NODE = '$node_label=~"$node"'
MODEL = 'loadspan_model_name=~"$model"'
TO_LOAD = "/d/loadspan-load?${jaeger:queryparam}&${tempo:queryparam}&${prometheus:queryparam}&var-traceId="


def board(uid: str, title: str, description: str, since: str = "now-24h") -> dashboard.Dashboard:
    """Begin a board with the links to the others."""
    others = dashboard.DashboardLink("loadspan").type(model.DashboardLinkType.DASHBOARDS).tags([TAG]).keep_time(keep_time=True)
    others = others.include_vars(include_vars=True).as_dropdown(as_dropdown=False)
    started = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG]).readonly().timezone("browser").time(since, "now")
    return started.tooltip(model.DashboardCursorSync.CROSSHAIR).refresh("1m").version(1).link(others)


def row(title: str, *panels: dashboard.Panel, collapsed: bool = False) -> dashboard.Row:
    """Put panels under a heading; collapsed ones ask for nothing until they are opened."""
    built = dashboard.Row(title).collapsed(collapsed)
    for one in panels:
        built = built.with_panel(one)
    return built


def add(target: dashboard.Dashboard, title: str, *panels: dashboard.Panel, collapsed: bool = False) -> None:
    """Append a row: an open one is followed by its panels, a collapsed one holds them."""
    if collapsed:
        target.with_row(row(title, *panels, collapsed=True))
        return
    target.with_row(row(title))
    for one in panels:
        target.with_panel(one)


def source(name: str, kind: str, label: str) -> dashboard.DatasourceVariable:
    """Choose the data source of one kind."""
    return dashboard.DatasourceVariable(name).type(kind).label(label)


def labels(name: str, label: str, query: str, *, description: str, several: bool = True) -> dashboard.QueryVariable:
    """Choose values of a label of our metrics; All takes in the series that lack it."""
    asked: dict[str, object] = {"query": query, "refId": "Variables"}
    variable = dashboard.QueryVariable(name).label(label).description(description).datasource(PROMETHEUS).query(asked).definition(query)
    variable = variable.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
    if not several:
        return variable
    everything = model.VariableOption(text=["All"], value=["$__all"], selected=True)
    return variable.multi(multi=True).include_all(include_all=True).all_value(".*").current(everything)


def choice(name: str, label: str, values: Sequence[str], description: str) -> dashboard.CustomVariable:
    """Choose one of a few words."""
    options = [model.VariableOption(text=value, value=value, selected=i == 0) for i, value in enumerate(values)]
    variable = dashboard.CustomVariable(name).label(label).description(description).values(",".join(values))
    return variable.options(options).current(options[0])


def typed(name: str, label: str, default: str, description: str) -> dashboard.TextBoxVariable:
    """Type in a text."""
    option = model.VariableOption(text=default, value=default, selected=True)
    return dashboard.TextBoxVariable(name).label(label).default_value(default).current(option).options([option]).description(description)


def window() -> dashboard.IntervalVariable:
    """Choose how much time one point of a curve stands for."""
    values = ["15m", "1h", "6h", "1d"]
    options = [model.VariableOption(text=value, value=value, selected=value == "1h") for value in values]
    variable = dashboard.IntervalVariable("window").label("Window").values(",".join(values)).options(options).current(options[1])
    return variable.description("Each point of a curve is about the loads that ended during this time before it: loads are rare.")


def sources() -> list[dashboard.DatasourceVariable]:
    """Choose the three sources; without Tempo its variable stays empty and its rows stay closed."""
    return [source("prometheus", "prometheus", "Prometheus"), source("jaeger", "jaeger", "Jaeger"), source("tempo", "tempo", "Tempo")]


def service() -> dashboard.QueryVariable:
    """Choose services by their metrics."""
    return labels("service", "Service", f"label_values({LOADS}, service_name)", description="service.name of the program that loads.")


def nodes() -> list[dashboard.CustomVariable | dashboard.QueryVariable]:
    """Choose which label tells the machines apart, and the machines."""
    return [
        choice(
            "node_label",
            "Node label",
            NODE_LABELS,
            "The label that tells machines apart: what your Collector or scrape configuration adds.",
        ),
        labels("node", "Node", f"label_values({LOADS}, $node_label)", description="Machines, by the label to the left."),
    ]


def traced() -> dashboard.QueryVariable:
    """Choose the one service whose traces are searched."""
    return labels(
        "jaeger_service",
        "Service of the traces",
        f"label_values({STAGE}_count, service_name)",
        description="Jaeger searches the traces of one service at a time.",
        several=False,
    )


def text(built: dashboard.Dashboard) -> str:
    """Write a board as its file has it: panels numbered in their order, keys sorted."""
    made = built.build()
    for each in made.links or []:
        each.placement = None  # type: ignore[assignment] # the SDK would put them into a menu; None, it leaves out
    number = 0
    for item in made.panels or []:
        for one in (item, *(getattr(item, "panels", None) or [])):
            number += 1
            one.id_val = number
    return json.dumps(made, cls=JSONEncoder, sort_keys=True, indent=2) + "\n"
