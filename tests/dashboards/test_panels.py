"""Every panel asks a real Prometheus that scraped loadspan's metrics, and gets an answer; the numbers are those of the loads."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import pytest
from boards import BOARDS, TIMES, Query, asked, filled
from fleet import TRACE
from opentelemetry.trace import format_trace_id

if TYPE_CHECKING:
    from backends.stores import Prometheus

QUERIES = asked("prometheus")
NODES = ("host_name", "k8s_node_name", "instance")


def chosen(board: str, prometheus: Prometheus, **given: str) -> dict[str, str]:
    """A value of each variable of a board, as Grafana has it when the board is opened."""
    values = dict(TIMES) | given
    for variable in BOARDS[board]["templating"]["list"]:
        name, kind = variable["name"], variable["type"]
        if name in values:
            continue
        if kind == "query" and variable.get("includeAll"):
            values[name] = variable["allValue"]
        elif kind == "query":
            metric, label = filled(variable["query"]["query"], values).removeprefix("label_values(").removesuffix(")").split(", ")
            found = prometheus.ask(f"label/{label}/values", **{"match[]": metric})
            assert found, f"{name}: no {label} on {metric}"
            values[name] = sorted(found, reverse=variable["sort"] == 2)[0]
        else:
            values[name] = variable.get("current", {}).get("value", "")
    return values


def answers(query: Query, prometheus: Prometheus, **given: str) -> list[dict[str, Any]]:
    """The series that a panel gets: `{"metric": labels, "value": number}`, the last one of a range."""
    expression = filled(query.target["expr"], chosen(query.board, prometheus, **given))
    if query.target.get("instant"):
        found = prometheus.query(expression)
    else:
        now = time.time()
        found = prometheus.query_range(expression, now - 600, now, 15)
    return [{"metric": one["metric"], "value": float((one.get("value") or one["values"][-1])[1])} for one in found]


def one(panel: str, prometheus: Prometheus, ref: str = "A", **given: str) -> list[dict[str, Any]]:
    """The answer to the query of a panel, which is named by board and title."""
    [query] = [query for query in QUERIES if str(query) == f"{panel} {ref}"]
    return answers(query, prometheus, **given)


EACH = [(query, label) for query in QUERIES for label in (NODES if "$node_label" in query.target["expr"] else NODES[:1])]


@pytest.mark.parametrize(("query", "node_label"), EACH, ids=str)
def test_every_query_returns_series_of_numbers(query: Query, node_label: str, prometheus: Prometheus) -> None:
    found = answers(query, prometheus, node_label=node_label)
    assert found, query.target["expr"]
    assert all(math.isfinite(each["value"]) for each in found)


@pytest.mark.parametrize("query", [query for query in QUERIES if query.target.get("format") == "table"], ids=str)
def test_the_columns_a_table_keeps_are_in_the_answers(query: Query, prometheus: Prometheus) -> None:
    queries = [each for each in QUERIES if each.panel is query.panel]
    columns = {f"Value #{each.target['refId']}" for each in queries} if len(queries) > 1 else {"Value"}
    columns |= {label for each in queries for series in answers(each, prometheus) for label in series["metric"]}
    steps = {step["id"]: step["options"] for step in query.panel["transformations"]}
    assert set(steps["filterFieldsByName"]["include"]["names"]) - columns == set()
    titles = set(steps["organize"]["renameByName"].values())
    assert {field["field"] for field in steps.get("sortBy", {}).get("sort", [])} <= titles
    assert {override["matcher"]["options"] for override in query.panel["fieldConfig"]["overrides"]} <= titles


def test_the_numbers_of_the_fleet_are_those_of_its_loads(prometheus: Prometheus) -> None:
    assert [series["value"] for series in one("fleet: Failed loads", prometheus)[:1]] == [2]
    means = {series["metric"]["node"]: series["value"] for series in one("fleet: By node", prometheus, "D")}
    assert means == pytest.approx({"n1": 12, "n2": 48})
    stages = {series["metric"]["loadspan_stage"]: series["value"] for series in one("fleet: By stage", prometheus)}
    assert stages == pytest.approx({"read": 31.5, "decrypt": 18.9, "to_device": 9.45, "other": 3.15})
    assert one("fleet: Bytes loaded", prometheus)[0]["value"] == 42e9


def test_what_was_found_is_counted_for_the_fleet_and_beside_a_load(prometheus: Prometheus) -> None:
    for panel in ("fleet: Most frequent findings", "load: Findings of the service's loads"):
        found = {answer["metric"]["loadspan_finding_id"]: answer["value"] for answer in one(panel, prometheus)}
        assert found == {"link-degraded": 1, "cache-cold": 1}
    assert {answer["metric"]["node"] for answer in one("fleet: Findings by node", prometheus, node_label="host_name")} == {"n2"}


def test_machines_say_who_is_degraded(prometheus: Prometheus) -> None:
    assert {series["metric"]["node"]: series["value"] for series in one("machines: Links to devices", prometheus)} == {"n1": 0, "n2": 1}
    assert one("machines: Degraded links", prometheus)[0]["value"] == 1
    assert one("machines: Coldest cache", prometheus)[0]["value"] == 0
    shares = {series["metric"]["node"]: series["value"] for series in one("machines: Share of the link that copies use", prometheus, "C")}
    assert shares["n1"] == pytest.approx((18e9 / 1.8 + 0.9e9 / 0.15) / 2 / 31.5e9)


def test_compare_begins_with_two_sides_and_says_by_how_much_they_differ(prometheus: Prometheus) -> None:
    assert one("compare: Times as long on ${b} as on ${a}", prometheus)[0]["value"] == pytest.approx(4)
    assert one("compare: Times as long on ${b} as on ${a}", prometheus, dimension="service_version", a="2", b="1")[0][
        "value"
    ] == pytest.approx(1 / 4)
    by_kind = one("compare: Times as long on ${b} as on ${a}", prometheus, dimension="loadspan_storage_kind", a="nvme", b="network")
    assert by_kind[0]["value"] == pytest.approx(4)


def test_where_metrics_are_sent_a_point_of_load_time_opens_a_trace(prometheus: Prometheus, request: pytest.FixtureRequest) -> None:
    if "scraped" in request.node.name:
        pytest.skip("the Prometheus exporter of the Python SDK writes no exemplars")
    with_exemplars = [query for query in QUERIES if query.target.get("exemplar")]
    assert with_exemplars
    now = time.time()
    for query in with_exemplars:
        expression = filled(query.target["expr"], chosen(query.board, prometheus))
        found = prometheus.ask("query_exemplars", query=expression, start=now - 600, end=now)
        assert {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]} == {format_trace_id(TRACE)}
