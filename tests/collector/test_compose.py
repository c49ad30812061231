"""`docker compose up` in `collector/`: what it names is there, what it says fits together, and nobody else can reach it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from shipped import CONFIGURATIONS, ROOT

from backends.stores import promtool

if TYPE_CHECKING:
    from pathlib import Path

COMPOSE = yaml.safe_load((CONFIGURATIONS / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
VARIABLE = re.compile(r"\$\{env:([A-Z0-9_]+)(:-[^}]*)?\}")


def configurations() -> list[str]:
    found = [str(path.relative_to(CONFIGURATIONS)) for path in CONFIGURATIONS.rglob("*.yaml")]
    others = {"compose.yaml", "kustomization.yaml", "prometheus/prometheus.yaml"}
    return sorted(name for name in found if name not in others and (name == "kubernetes/pods.yaml" or not name.startswith("kubernetes/")))


def test_what_is_published_is_published_on_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 5
    assert all(str(port).startswith("127.0.0.1:") for port in published)


def test_images_are_pinned() -> None:
    tags = {service["image"].rpartition(":")[2] for service in SERVICES.values()}
    assert all(re.fullmatch(r"v?\d+\.\d+\.\d+", tag) for tag in tags), tags


def test_what_is_mounted_is_in_the_repository_or_a_volume() -> None:
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (CONFIGURATIONS / source).exists(), f"{name}: {mount}"
                assert mount.endswith(":ro")
            else:
                assert source in COMPOSE["volumes"], f"{name}: {mount}"


def test_what_is_stored_is_stored_in_volumes() -> None:
    stored = {"jaeger": "/var/lib/jaeger", "collector": "/var/lib/otelcol", "prometheus": "/prometheus", "grafana": "/var/lib/grafana"}
    for name, path in stored.items():
        assert f"{name}:{path}" in SERVICES[name]["volumes"]


def test_every_service_that_stays_has_a_health_check_or_one_beside_it() -> None:
    checked = {name for name, service in SERVICES.items() if "healthcheck" in service}
    assert set(SERVICES) - checked == {"permissions", "collector"}
    # By name: one that shares the Collector's network keeps that of the one which crashed.
    assert SERVICES["collector-health"]["healthcheck"]["test"][-1].startswith("http://collector:")


@pytest.mark.parametrize(("name", "file"), [("jaeger", "jaeger/all-in-one.yaml"), ("collector", "gateway.yaml")])
def test_what_a_service_is_told_is_what_its_configuration_asks(name: str, file: str) -> None:
    asked = {variable for variable, _ in VARIABLE.findall((CONFIGURATIONS / file).read_text())}
    assert set(SERVICES[name]["environment"]) - {"GOMEMLIMIT"} <= asked


def test_who_sends_and_who_listens_agree() -> None:
    collector, jaeger = SERVICES["collector"]["environment"], (CONFIGURATIONS / "jaeger" / "all-in-one.yaml").read_text()
    assert collector["JAEGER_ENDPOINT"] == "jaeger:4317"
    assert "OTLP_GRPC_PORT:-4317" in jaeger
    scraped = yaml.safe_load((CONFIGURATIONS / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    targets = {target for job in scraped for part in job["static_configs"] for target in part["targets"]}
    gateway = (CONFIGURATIONS / "gateway.yaml").read_text()
    assert targets == {"collector:8889", "collector:8887", "jaeger:8886", "localhost:9090"}
    assert "SPAN_METRICS_PORT:-8889" in gateway
    assert "METRICS_PORT:-8887" in gateway
    assert "METRICS_PORT:-8886" in jaeger
    assert "--web.enable-otlp-receiver" in SERVICES["prometheus"]["command"]


@pytest.mark.parametrize("file", configurations())
def test_a_file_runs_without_being_told_anything_and_listens_to_this_machine_alone(file: str) -> None:
    text = (CONFIGURATIONS / file).read_text()
    assert [name for name, default in VARIABLE.findall(text) if not default] == []
    for endpoint in re.findall(r"^ +endpoint: (.*)", VARIABLE.sub(lambda match: (match[2] or "")[2:], text), re.MULTILINE):
        assert re.match(r'"?(https?://|tcp://)?(127\.0\.0\.1|localhost)[:/]', endpoint), endpoint


def test_jaegers_links_go_to_boards_that_there_are() -> None:
    told = json.loads((CONFIGURATIONS / "jaeger" / "ui-config.json").read_text())
    urls = [item["url"] for menu in told["menu"] for item in menu["items"]] + [link["url"] for link in told["linkPatterns"]]
    boards = {board["uid"]: board for board in map(json.loads, (p.read_text() for p in (ROOT / "dashboards" / "boards").glob("*.json")))}
    for url in urls:
        uid = re.match(r"http://localhost:3000/d/([a-z-]+)", url)
        assert uid is not None
        variables = {variable["name"] for variable in boards[uid[1]]["templating"]["list"]}
        assert set(re.findall(r"[?&]var-([A-Za-z_]+)=", url)) <= variables, url


def test_grafana_is_given_what_it_is_to_show() -> None:
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "dashboards" / "boards" / home.rpartition("/")[2]).exists()
    provider = yaml.safe_load((ROOT / "dashboards" / "provisioning" / "dashboards" / "loadspan.yaml").read_text())
    assert provider["providers"][0]["options"]["path"] == home.rpartition("/")[0]
    sources = yaml.safe_load((ROOT / "dashboards" / "provisioning" / "datasources" / "loadspan.yaml").read_text())["datasources"]
    urls = {source["uid"]: source["url"] for source in sources}
    assert urls["prometheus"] == "http://prometheus:9090"
    assert urls["jaeger"] == "http://jaeger:16686"


def test_what_prometheus_is_told_it_takes(tmp_path: Path) -> None:
    told = yaml.safe_load((CONFIGURATIONS / "prometheus" / "prometheus.yaml").read_text())
    # Debian's Prometheus is 2.42, from before it took OTLP; the rest is the same.
    assert set(told.pop("otlp")) == {"translation_strategy", "promote_resource_attributes"}
    told["rule_files"] = [str(ROOT / "dashboards" / "rules" / "*.yaml")]
    configuration = tmp_path / "prometheus.yaml"
    configuration.write_text(yaml.safe_dump(told))
    done = promtool("check", "config", configuration)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_makes_labels_of_what_boards_and_alerts_choose_by() -> None:
    told = yaml.safe_load((CONFIGURATIONS / "prometheus" / "prometheus.yaml").read_text())
    labels = {name.replace(".", "_") for name in told["otlp"]["promote_resource_attributes"]}
    asking = [*(ROOT / "dashboards" / "boards").glob("*.json"), ROOT / "dashboards" / "rules" / "loadspan.yaml"]
    asked = {label for path in asking for label in re.findall(r"\b(?:service|host|k8s)_[a-z_]+\b", path.read_text())}
    assert {"service_name", "host_name", "k8s_job_name"} <= asked <= labels


def test_docker_compose_takes_it() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker compose")
    done = subprocess.run([docker, "compose", "config", "--quiet"], cwd=CONFIGURATIONS, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_jaeger_a_gateway_and_an_agent_run_beside_each_other_with_the_three_commands_of_the_readme() -> None:
    commands = re.findall(
        r"^((?:[A-Z_]+=\S+ )+)(?:jaeger|otelcol-contrib) --config (\S+) &$", (CONFIGURATIONS / "README.md").read_text(), re.MULTILINE
    )
    assert [file for _, file in commands] == ["jaeger/all-in-one.yaml", "gateway.yaml", "agent.yaml"]
    ports: list[str] = []
    for told, file in commands:
        given = dict(pair.split("=") for pair in told.split())
        defaults = {name: default[2:] for name, default in VARIABLE.findall((CONFIGURATIONS / file).read_text())}
        listening = {name: port for name, port in (defaults | given).items() if name.endswith("_PORT") and name != "GATEWAY_PORT"}
        ports += listening.values()
    assert len(ports) == len(set(ports)) == 15


def test_health_is_asked_for_where_it_is() -> None:
    asked = SERVICES["jaeger"]["healthcheck"]["test"][-1]
    assert f"HEALTH_PORT:-{asked.split(':')[2].partition('/')[0]}" in (CONFIGURATIONS / "jaeger" / "all-in-one.yaml").read_text()
    beside = SERVICES["collector-health"]["healthcheck"]["test"][-1]
    assert f":{SERVICES['collector']['environment']['HEALTH_PORT']}/" in beside
