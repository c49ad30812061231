"""
Panels: each has a title, a unit and a description that says what to do when it looks bad; none can be made without.

The generic builder of the SDK is used for every kind, so that one function lays them all out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from .sources import PROMETHEUS

if TYPE_CHECKING:
    from grafana_foundation_sdk.cog import builder as cogbuilder
    from grafana_foundation_sdk.cog import variants as cogvariants
    from grafana_foundation_sdk.models import common

    Query = cogbuilder.Builder[cogvariants.Dataquery]

Step: TypeAlias = "tuple[str, dict[str, object]]"
"""A transformation: its id and its options."""

POINTS = 200
"""Most points of a curve: each costs Prometheus as much as the one number of a table."""

LEGEND: dict[str, object] = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
LAST: dict[str, object] = {"calcs": ["lastNotNull"], "fields": "", "values": False}
ROWS: dict[str, object] = {"calcs": ["lastNotNull"], "fields": "", "values": True}

OPTIONS: dict[str, dict[str, object]] = {
    "stat": {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "textMode": "auto",
        "orientation": "auto",
        "reduceOptions": LAST,
    },
    "bargauge": {"displayMode": "basic", "orientation": "horizontal", "showUnfilled": True, "valueMode": "color", "reduceOptions": LAST},
    "timeseries": {"legend": LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "barchart": {
        "legend": LEGEND,
        "tooltip": {"mode": "multi", "sort": "none"},
        "orientation": "horizontal",
        "showValue": "auto",
        "stacking": "none",
        "barWidth": 0.97,
        "groupWidth": 0.7,
        "xTickLabelRotation": 0,
        "xTickLabelSpacing": 0,
        "fullHighlight": False,
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
    "traces": {},
    "heatmap": {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "exponent": 0.5, "steps": 64, "reverse": False},
        "cellGap": 1,
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "reverse": False},
    },
}
CUSTOM: dict[str, dict[str, object]] = {
    "timeseries": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "always", "pointSize": 4, "spanNulls": 3600000},
    "barchart": {"lineWidth": 1, "fillOpacity": 80, "gradientMode": "none"},
    "table": {"align": "auto", "filterable": True, "cellOptions": {"type": "auto"}},
}
BARS: dict[str, object] = {
    "drawStyle": "bars",
    "lineWidth": 1,
    "fillOpacity": 60,
    "showPoints": "never",
    "stacking": {"group": "A", "mode": "normal"},
}


@dataclass
class Override:
    """What one column of a table has of its own; *title* may name a variable, *words* stand for 0, 1, ..."""

    column: str
    unit: str = ""
    link: tuple[str, str] | None = None
    cell: str = ""
    width: int = 0
    title: str = ""
    words: tuple[str, ...] = ()

    def build(self) -> model.DashboardFieldConfigSourceOverrides:
        """Build it as Grafana has it."""
        properties = []
        if self.unit:
            properties.append(model.DynamicConfigValue(id_val="unit", value=self.unit))
        if self.link:
            title, url = self.link
            properties.append(model.DynamicConfigValue(id_val="links", value=[{"title": title, "url": url}]))
        if self.cell:
            properties.append(model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": self.cell}))
        if self.width:
            properties.append(model.DynamicConfigValue(id_val="custom.width", value=self.width))
        if self.title:
            properties.append(model.DynamicConfigValue(id_val="displayName", value=self.title))
        if self.words:
            words = {str(i): {"text": word, "index": i} for i, word in enumerate(self.words)}
            properties.append(model.DynamicConfigValue(id_val="mappings", value=[{"type": "value", "options": words}]))
        matcher = model.MatcherConfig(id_val="byName", options=self.column)
        return model.DashboardFieldConfigSourceOverrides(matcher=matcher, properties=properties)


@dataclass
class Look:
    """How a panel looks where it differs from its kind: place on the grid of 24 columns, thresholds, columns."""

    span: int = 12
    height: int = 8
    steps: tuple[tuple[float, str], ...] = ()
    interval: str = ""
    custom: dict[str, object] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    transformations: tuple[Step, ...] = ()


def panel(
    kind: str, title: str, unit: str, description: str, *queries: Query, look: Look | None = None, source: common.DataSourceRef = PROMETHEUS
) -> dashboard.Panel:
    """Make a panel of *kind*; the description ends with what to do when it looks bad."""
    look = look or Look()
    config = model.FieldConfig(unit=unit, custom={**CUSTOM.get(kind, {}), **look.custom} or None)
    config.color = model.FieldColor(
        mode=model.FieldColorModeId.THRESHOLDS if kind in {"stat", "bargauge"} else model.FieldColorModeId.PALETTE_CLASSIC
    )
    steps = [
        model.Threshold(value=None, color="text" if kind == "stat" else "blue"),
        *(model.Threshold(value=v, color=c) for v, c in look.steps),
    ]
    config.thresholds = model.ThresholdsConfig(mode=model.ThresholdsMode.ABSOLUTE, steps=steps)
    built = dashboard.Panel().type(kind).title(title).description(description).datasource(source)
    built = built.options({**OPTIONS[kind], **look.options}).span(look.span).height(look.height)
    built = built.field_config(model.FieldConfigSource(defaults=config, overrides=[item.build() for item in look.overrides]))
    if kind in {"timeseries", "heatmap"}:
        built = built.max_data_points(POINTS)
    for query in queries:
        built = built.with_target(query)
    for name, options in look.transformations:
        built = built.with_transformation(model.DataTransformerConfig(id_val=name, options=options))
    return built.interval(look.interval) if look.interval else built


def only(names: dict[str, str]) -> tuple[Step, ...]:
    """Keep the columns *names*, in this order, under the titles they have there."""
    order = {name: place for place, name in enumerate(names)}
    return (
        ("filterFieldsByName", {"include": {"names": list(names)}}),
        ("organize", {"excludeByName": {}, "indexByName": order, "renameByName": names}),
    )


def joined(names: dict[str, str], key: str) -> tuple[Step, ...]:
    """Join tables by their column *key*, and keep the columns *names*."""
    return (("joinByField", {"byField": key, "mode": "outer"}), *only(names))


def merged(names: dict[str, str]) -> tuple[Step, ...]:
    """Join tables by all columns they share, and keep the columns *names*."""
    return (("merge", {}), *only(names))


def sorted_by(column: str, *, descending: bool = True) -> Step:
    """Sort rows by a column."""
    return ("sortBy", {"sort": [{"field": column, "desc": descending}]})
