"""What Grafana's own code shows of real answers: the columns, the rows and the text of the boards' tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from boards import BOARDS, QUERIES, panels
from grafana_data import of_prometheus, of_search, of_trace, shown
from test_panels import answers, chosen
from test_traces import found

if TYPE_CHECKING:
    from backends.programs import Jaeger
    from backends.stores import Prometheus

OF_PAGES = {"prepareTimeSeries"}
"""Transformations that are in Grafana's pages and not in its library."""

Tables = dict[str, list[list[str]]]


def tabled(prometheus: Prometheus) -> Tables:
    """What every table and bar chart over Prometheus shows: columns, then rows, by board and title."""
    names, asked = [], []
    for board in BOARDS:
        for panel in panels(board):
            queries = [query for query in QUERIES if query.panel is panel]
            if panel["type"] in {"table", "barchart"} and queries[0].kind == "prometheus":
                several = len(queries) > 1
                frames = [of_prometheus(answers(query, prometheus), query.target["refId"], several) for query in queries]
                names.append(f"{board.removeprefix('loadspan-')}: {panel['title']}")
                asked.append({"panel": panel, "frames": frames, "variables": chosen(board, prometheus)})
    tables = shown(asked)["tables"]
    assert [len(frames) for frames in tables] == [1] * len(names), "one table each"
    return {name: [table["columns"], *table["rows"]] for name, [table] in zip(names, tables, strict=True)}


def test_grafana_knows_the_units_and_transformations_of_the_boards() -> None:
    known = shown([])
    for board in BOARDS:
        for panel in panels(board):
            overrides = [each for override in panel["fieldConfig"]["overrides"] for each in override["properties"] if each["id"] == "unit"]
            assert {panel["fieldConfig"]["defaults"]["unit"], *(each["value"] for each in overrides)} <= set(known["units"])
            assert {each["id"] for each in panel.get("transformations", ())} <= set(known["transformers"]) | OF_PAGES


def test_tables_show_what_they_promise(prometheus: Prometheus) -> None:
    tables = tabled(prometheus)
    assert tables["fleet: By node"] == [
        ["Node", "Loads", "Median", "95th percentile", "Mean", "Failed"],
        ["n2", "2", "45 s", "58.5 s", "48 s", "1"],
        ["n1", "2", "20 s", "29 s", "12 s", "1"],
    ]
    assert tables["fleet: Slowest processes"] == [
        ["Service", "Node", "Model", "Rank", "Last load"],
        ["serve", "n2", "base", "1", "48 s"],
        ["serve", "n1", "base", "0", "12 s"],
    ]
    assert tables["compare: Seconds of each stage in a load"][0] == ["Stage", "n1", "n2"]
    assert tables["machines: Links to devices"] == [
        ["Node", "Device", "Index", "Degraded", "Bandwidth"],
        ["n2", "cuda", "0", "yes", "7.90 GB/s"],
        ["n1", "cuda", "0", "no", "31.5 GB/s"],
    ]


def test_no_column_of_a_table_is_empty(prometheus: Prometheus) -> None:
    for title, [columns, *rows] in tabled(prometheus).items():
        assert rows, title
        assert [column for column, cells in zip(columns, zip(*rows, strict=True), strict=True) if not any(cells)] == [], title


def of_jaeger(title: str, jaeger: tuple[Jaeger, str]) -> dict[str, Any]:
    [query] = [query for query in QUERIES if query.kind == "jaeger" and query.panel["title"] == title]
    traces = found(query, *jaeger)
    frame = of_search(traces) if "queryType" in query.target else of_trace(traces[0])
    [[table]] = shown([{"panel": query.panel, "frames": [frame]}])["tables"]
    return dict(table)


def test_a_search_shows_the_loads_with_their_duration(jaeger: tuple[Jaeger, str]) -> None:
    table = of_jaeger("Slowest loads (Jaeger)", jaeger)
    assert table["columns"] == ["Trace ID", "Trace name", "Start time", "Duration"]
    [[trace_id, name, _, duration]] = table["rows"]
    assert (trace_id, name) == (jaeger[1], "load model")
    assert duration.endswith(" s")


def test_the_stages_of_a_trace_are_summed_without_the_load_itself(jaeger: tuple[Jaeger, str]) -> None:
    table = of_jaeger("Time by stage", jaeger)
    assert table["columns"] == ["operationName", "duration (sum)"]
    assert [row[0] for row in table["rows"]] == ["to_device"]


def test_the_facts_of_a_span_are_beside_it(jaeger: tuple[Jaeger, str]) -> None:
    table = of_jaeger("Facts of each span", jaeger)
    assert table["columns"] == ["Span", "Start", "Duration", "Attributes", "Resource"]
    assert len(table["rows"]) == 2
