"""Every configuration that is shipped is one that the real programs take."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
import yaml
from shipped import CONFIGURATIONS, ROOT

from backends import build
from backends.programs import validated

if TYPE_CHECKING:
    from pathlib import Path

COLLECTOR = (
    ("agent.yaml",),
    ("agent.yaml", "kubernetes/pods.yaml"),
    ("gateway.yaml",),
    ("gateway.yaml", "storage/tempo.yaml"),
    ("gateway.yaml", "storage/kafka.yaml"),
    ("gateway.yaml", "storage/remote-write.yaml"),
    ("gateway.yaml", "storage/scrape.yaml"),
    ("gateway.yaml", "storage/tempo.yaml", "storage/remote-write.yaml"),
    ("gateway.yaml", "traces-only.yaml"),
    ("replay.yaml",),
)
JAEGER = (
    ("jaeger/all-in-one.yaml",),
    ("jaeger/collector.yaml",),
    ("jaeger/ingester.yaml", "jaeger/opensearch.yaml"),
    ("jaeger/ingester.yaml", "jaeger/clickhouse.yaml"),
    ("jaeger/query.yaml", "jaeger/opensearch.yaml"),
    ("jaeger/query.yaml", "jaeger/clickhouse.yaml"),
)
# The exporter's module of this version is in no registry that the tests build from; its keys are checked below.
NOT_BUILT = (("gateway.yaml", "storage/clickhouse.yaml"),)
NO_CONFIGURATIONS = {"compose.yaml", "kustomization.yaml", "prometheus/prometheus.yaml"}


def paths(files: tuple[str, ...]) -> list[Path]:
    return [CONFIGURATIONS / name for name in files]


@pytest.mark.parametrize("files", COLLECTOR, ids="+".join)
def test_the_real_collector_takes(files: tuple[str, ...]) -> None:
    assert validated(build.COLLECTOR, *paths(files), environment=os.environ | {"K8S_NODE_NAME": "node-1"}) == ""


@pytest.mark.parametrize("files", JAEGER, ids="+".join)
def test_the_real_jaeger_takes(files: tuple[str, ...]) -> None:
    assert validated(build.JAEGER, *paths(files), environment=os.environ | {"K8S_NODE_NAME": "node-1"}) == ""


def test_no_configuration_is_left_out() -> None:
    shipped = {str(path.relative_to(CONFIGURATIONS)) for path in CONFIGURATIONS.rglob("*.yaml")}
    manifests = {name for name in shipped if name.startswith("kubernetes/")} - {"kubernetes/pods.yaml"}
    checked = {name for files in (*COLLECTOR, *JAEGER, *NOT_BUILT) for name in files}
    assert shipped - manifests - NO_CONFIGURATIONS == checked


def test_a_storage_file_replaces_nothing_but_where_things_go() -> None:
    gateway = yaml.safe_load((CONFIGURATIONS / "gateway.yaml").read_text())
    for path in sorted((CONFIGURATIONS / "storage").glob("*.yaml")):
        more = yaml.safe_load(path.read_text())
        assert set(more) == {"exporters", "service"}, path
        known = set(gateway["exporters"]) | set(more["exporters"])
        for name, pipeline in more["service"]["pipelines"].items():
            assert set(pipeline["exporters"]) <= known, path
            before = gateway["service"]["pipelines"][name]
            assert {key: value for key, value in pipeline.items() if key != "exporters"} == {
                key: value for key, value in before.items() if key != "exporters"
            }, path


def test_the_exporter_that_is_not_built_has_a_queue_on_disk_and_tries_for_hours() -> None:
    exporter = yaml.safe_load((CONFIGURATIONS / "storage" / "clickhouse.yaml").read_text())["exporters"]["clickhouse"]
    known = {"endpoint", "database", "username", "password", "create_schema", "ttl", "async_insert", "timeout"}
    assert set(exporter) == known | {"retry_on_failure", "sending_queue"}
    assert exporter["retry_on_failure"]["max_elapsed_time"] == "6h"
    assert exporter["sending_queue"]["storage"] == "file_storage/queue"


def test_images_are_of_the_version_that_is_tested_and_the_readme_says_which_are_not() -> None:
    version = yaml.safe_load((ROOT / "tests" / "backends" / "collector" / "manifest.yaml").read_text())["dist"]["version"]
    image = f"otel/opentelemetry-collector-contrib:{version}"
    compose = yaml.safe_load((CONFIGURATIONS / "compose.yaml").read_text())
    images = {name: service["image"] for name, service in compose["services"].items()}
    assert images["collector"] == image
    for name in ("agent.yaml", "gateway.yaml"):
        assert image in (CONFIGURATIONS / "kubernetes" / name).read_text()
    kustomization = yaml.safe_load((CONFIGURATIONS / "kustomization.yaml").read_text())
    assert kustomization["images"][0]["newTag"] == version

    module = re.search(
        r"prometheus/prometheus v0\.(\d)(\d+)\.(\d+)", (ROOT / "tests" / "dashboards" / "prometheus3" / "go.mod").read_text()
    )
    assert module is not None
    assert images["prometheus"] == f"prom/prometheus:v{'.'.join(str(int(part)) for part in module.groups())}"
    told = (CONFIGURATIONS / "README.md").read_text()
    for name, text in (("collector", "Collector"), ("prometheus", "2.42 and"), ("jaeger", "of Jaeger"), ("grafana", "Grafana")):
        tag = images[name].rpartition(":")[2].removeprefix("v")
        assert f"{text} {tag.rpartition('.')[0]}" in told, name
