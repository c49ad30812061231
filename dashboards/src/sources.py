"""
Where panels get their data: Prometheus, Jaeger and Tempo, each chosen by a variable of the board, and one query of each.

The SDK has no query for Jaeger, so there is one here, as its documentation shows for sources it does not know.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import prometheus, tempo
from grafana_foundation_sdk.cog import builder as cogbuilder
from grafana_foundation_sdk.cog import variants as cogvariants
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import prometheus as prometheus_model
from grafana_foundation_sdk.models import tempo as tempo_model

PROMETHEUS = common.DataSourceRef(type_val="prometheus", uid="${prometheus}")
JAEGER = common.DataSourceRef(type_val="jaeger", uid="${jaeger}")
TEMPO = common.DataSourceRef(type_val="tempo", uid="${tempo}")

LOAD_SPAN = "load model"


class JaegerQuery(cogvariants.Dataquery):
    """A query as Grafana's Jaeger source reads it: by trace id, or a search."""

    def __init__(self, fields: dict[str, object]) -> None:
        self.fields = fields

    def to_json(self) -> dict[str, object]:
        """Give the fields as they are."""
        return {"datasource": JAEGER, "refId": "A", **self.fields}


class Jaeger(cogbuilder.Builder[cogvariants.Dataquery]):
    """Builds a query of Jaeger."""

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def build(self) -> cogvariants.Dataquery:
        """Build the query."""
        return JaegerQuery(self._fields)


def trace() -> Jaeger:
    """Fetch the trace whose id is in the board's variable."""
    return Jaeger(query="${traceId}")


def search(tags: str = "", shortest: str = "", limit: int = 50) -> Jaeger:
    """Search the loads of the service that is chosen for traces; *tags* are `key=value` pairs. Jaeger answers for one service at a time."""
    fields = {"queryType": "search", "service": "$jaeger_service", "operation": LOAD_SPAN, "limit": limit}
    return Jaeger(**fields, **({"tags": tags} if tags else {}), **({"minDuration": shortest} if shortest else {}))


def instant(expression: str, legend: str = "", name: str = "A") -> prometheus.Dataquery:
    """Ask once, at the end of the range."""
    query = prometheus.Dataquery().datasource(PROMETHEUS).expr(expression).instant().ref_id(name)
    return query.editor_mode(prometheus_model.QueryEditorMode.CODE).legend_format(legend or "__auto")


def table(expression: str, name: str = "A") -> prometheus.Dataquery:
    """Ask once and get a table: a column for each label and one for the value."""
    return instant(expression, name=name).format(prometheus_model.PromQueryFormat.TABLE)


def series(expression: str, legend: str = "", name: str = "A", *, exemplars: bool = False) -> prometheus.Dataquery:
    """Ask along the range; *exemplars* are on buckets alone."""
    query = prometheus.Dataquery().datasource(PROMETHEUS).expr(expression).range().ref_id(name)
    query = query.editor_mode(prometheus_model.QueryEditorMode.CODE).legend_format(legend or "__auto")
    return query.exemplar(exemplar=True) if exemplars else query


def heat(expression: str) -> prometheus.Dataquery:
    """Ask for buckets along the range."""
    return series(expression, "{{le}}").format(prometheus_model.PromQueryFormat.HEATMAP)


def traceql(query: str, limit: int = 50) -> tempo.Dataquery:
    """Search spans in Tempo; a bare trace id fetches the trace."""
    return (
        tempo.Dataquery()
        .datasource(TEMPO)
        .query_type("traceql")
        .query(query)
        .ref_id("A")
        .limit(limit)
        .spss(100)
        .table_type(tempo_model.SearchTableType.SPANS)
    )
