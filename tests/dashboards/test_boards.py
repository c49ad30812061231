"""The boards as files: made by the generator byte for byte, known to the SDK, and as Grafana's linter wants them where that applies."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
import yaml
from boards import BOARDS, QUERIES, ROOT, Query, asked, filled, panels, variables

from loadspan import findings, metric_names, names

if TYPE_CHECKING:
    from pathlib import Path

PANELS = [(board, panel) for board in BOARDS for panel in panels(board)]
GIVEN = {"__interval_ms", "__all", "__range", "__interval", "__url_time_range", "__value", "__data"}
KINDS = {"prometheus", "jaeger", "tempo"}
PLAIN = {"host.name", "k8s.node.name", "service.name"}
each_panel = pytest.mark.parametrize(("board", "panel"), PANELS, ids=[f"{board}: {panel['title']}" for board, panel in PANELS])
each_board = pytest.mark.parametrize("board", BOARDS)


def sdk() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("grafana-foundation-sdk needs Python 3.11")


def test_the_generator_writes_what_is_committed(tmp_path: Path) -> None:
    sdk()
    done = subprocess.run([sys.executable, ROOT / "generate.py", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    committed = [*(ROOT / "boards").glob("*"), ROOT / "rules" / "loadspan.yaml"]
    assert made == {path.relative_to(ROOT): path.read_bytes() for path in committed}


@each_board
def test_the_sdk_decodes_a_board_and_loses_nothing(board: str) -> None:
    sdk()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the SDK would have us write the schema of Grafana 13, which 11 does not read
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
        from grafana_foundation_sdk.cog.plugins import register_default_plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard
    register_default_plugins()
    decoded = json.loads(json.dumps(Dashboard.from_json(BOARDS[board]), cls=JSONEncoder))
    missing = [path for path, value in leaves(BOARDS[board]) if dict(leaves(decoded)).get(path) != value]
    assert missing == []


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{path}.{key}")]
    if isinstance(value, list):
        return [leaf for i, inner in enumerate(value) for leaf in leaves(inner, f"{path}[{i}]")]
    return [(path, value)]


@each_panel
def test_a_panel_says_what_it_shows_and_what_to_do(board: str, panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert "\n" not in panel["description"]
    assert len(panel["description"]) > 40, board
    assert panel["targets"]


@each_panel
def test_a_panel_asks_the_source_that_the_board_chose(board: str, panel: dict[str, Any]) -> None:
    chosen = {variable["name"]: variable["query"] for variable in BOARDS[board]["templating"]["list"] if variable["type"] == "datasource"}
    for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
        [name] = variables(source["uid"])
        assert source["uid"] == f"${{{name}}}"
        assert chosen[name] == source["type"]
        assert source["type"] in KINDS


@each_board
def test_no_uid_of_a_data_source_is_written_down(board: str) -> None:
    written = [value for path, value in leaves(BOARDS[board]) if re.search(r"datasource(Uid|\.uid)$", path)]
    assert written
    assert [value for value in written if not value.startswith("${")] == []


@each_board
def test_the_variables_of_a_board_are_those_it_uses(board: str) -> None:
    defined = [variable["name"] for variable in BOARDS[board]["templating"]["list"]]
    used = {name for _, value in leaves(BOARDS[board]) if isinstance(value, str) for name in variables(value)} - GIVEN
    assert len(set(defined)) == len(defined)
    assert used == set(defined)


@each_board
def test_a_variable_of_a_label_is_asked_again_when_the_range_changes(board: str) -> None:
    for variable in BOARDS[board]["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["refresh"] == 2
            assert variable.get("allValue") == (".*" if variable.get("includeAll") else None), "All takes in series that lack the label"


@each_board
def test_a_board_fits_its_grid_and_numbers_its_panels(board: str) -> None:
    everything = [*panels(board), *(item for item in BOARDS[board]["panels"] if item["type"] == "row")]
    assert sorted(item["id"] for item in everything) == list(range(1, len(everything) + 1))
    taken: set[tuple[int, int]] = set()
    for item in BOARDS[board]["panels"]:
        place = item["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert taken & cells == set()
        taken |= cells


@each_board
def test_a_board_can_be_linked_to_and_is_not_edited_by_hand(board: str) -> None:
    made = BOARDS[board]
    assert made["uid"] == board
    assert made["tags"] == ["loadspan"]
    assert made["editable"] is False
    assert "__inputs" not in made
    assert [link["tags"] for link in made["links"]] == [["loadspan"]]
    assert [link.get("placement") for link in made["links"]] == [None], "in sight, not in a menu"
    targets = {target for _, value in leaves(made) if isinstance(value, str) for target in re.findall(r"/d/([\w-]+)", value)}
    assert targets <= set(BOARDS)


@pytest.mark.parametrize("query", asked("prometheus"), ids=str)
def test_a_query_is_promql_of_our_metrics_over_windows_that_see_a_first_load(query: Query) -> None:
    expression = query.target["expr"]
    values = dict.fromkeys(variables(expression), "1h")
    values |= {"dimension": "host_name", "node_label": "host_name"}
    promql_parser.parse(filled(expression, values))
    growing = re.fullmatch(r"irate\((loadspan_stage_io_bytes_total|loadspan_storage_read_bytes_total){[^}]*}\[3m\]\) and .*", expression)
    assert growing or re.search(r"\b(rate|irate|increase|delta)\(", expression) is None
    assert set(re.findall(r"\[([^\]]+)\]", expression)) <= ({"3m"} if growing else {"$__range", "$__interval", "$window", "1h"})
    assert {
        prefix for name in re.findall(r"\bloadspan_\w+(?=[{[(\s])", expression) for prefix in [base(name)] if prefix not in METRICS
    } <= LABELS


def escaped(name: str) -> str:
    return name.replace(".", "_")


UNITS = {"s": "_seconds", "By": "_bytes", "By/s": "_bytes_per_second", "1": "", "{load}": "", "{finding}": ""}
METRICS = {escaped(metric.name) + UNITS[metric.unit] for metric in metric_names.METRICS}
LABELS = {escaped(name) for metric in metric_names.METRICS for name in metric.attributes}


def base(name: str) -> str:
    """A metric without what a histogram or a counter appends."""
    return next((name.removesuffix(end) for end in ("_bucket", "_sum", "_count", "_total") if name.removesuffix(end) in METRICS), name)


@pytest.mark.parametrize("query", [query for query in QUERIES if query.kind == "tempo"], ids=str)
def test_a_traceql_query_names_attributes_that_spans_have(query: Query) -> None:
    text = query.target["query"]
    assert text.count("{") == text.count("}")
    ours = {attribute.name for attribute in names.ATTRIBUTES} | {names.partition(stage) for stage in names.PARTS}
    assert set(re.findall(r"\bspan\.([a-z_0-9.]+)", text)) <= ours
    assert set(re.findall(r'span\."([^"]+)"', text)) <= {names.finding(rule.id) for rule in findings.RULES}
    assert set(re.findall(r"resource\.([a-z_0-9.]+)", text)) <= PLAIN


def test_the_board_of_a_load_asks_for_every_finding() -> None:
    asked_for = {name for query in QUERIES if query.kind == "tempo" for name in re.findall(r'span\."([^"]+)"', query.target["query"])}
    assert asked_for == {names.finding(rule.id) for rule in findings.RULES}


def test_the_exclusive_seconds_of_a_load_are_asked_for_every_stage() -> None:
    [query] = [query for query in QUERIES if query.panel["title"] == "Exclusive seconds"]
    assert re.findall(r"partition\.([a-z_]+)", query.target["query"]) == list(names.PARTS)


@pytest.mark.parametrize("name", ["datasources/loadspan.yaml", "dashboards/loadspan.yaml", "tempo.yaml"])
def test_provisioning_writes_its_dollars_twice(name: str) -> None:
    text = (ROOT / "provisioning" / name).read_text()
    assert yaml.safe_load(text)["apiVersion"] == 1
    told = re.sub(r"(?m)^#.*$", "", text)
    assert re.findall(r"(?<!\$)\$(?!\$)", told) == []


def test_provisioned_sources_are_of_the_kinds_the_boards_choose_from_and_link_to_boards_and_sources_that_exist() -> None:
    files = [ROOT / "provisioning" / "datasources" / "loadspan.yaml", ROOT / "provisioning" / "tempo.yaml"]
    sources = [source for file in files for source in yaml.safe_load(file.read_text())["datasources"]]
    assert {source["type"] for source in sources} == KINDS
    told = dict(leaves(sources))
    assert {value for path, value in told.items() if path.endswith("datasourceUid")} <= {source["uid"] for source in sources}
    assert {target for value in told.values() for target in re.findall(r"/d/([\w-]+)", str(value))} <= set(BOARDS)


def test_links_to_boards_name_boards_and_variables_that_exist() -> None:
    linked = [value for board in BOARDS for _, value in leaves(BOARDS[board]) if isinstance(value, str) and "/d/" in value]
    assert linked
    for url in linked:
        [board] = re.findall(r"/d/([\w-]+)", url)
        named = set(re.findall(r"[?&]var-(\w+)=", url)) | set(re.findall(r"\$\{(\w+):queryparam\}", url))
        assert named <= {variable["name"] for variable in BOARDS[board]["templating"]["list"]}, url
