"""The manifests are what Kubernetes takes, and run the same files that are tested here."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml
from shipped import CONFIGURATIONS, ROOT

FOLDER = CONFIGURATIONS / "kubernetes"
KUSTOMIZATION = yaml.safe_load((CONFIGURATIONS / "kustomization.yaml").read_text())
MANIFESTS = [
    (path.name, manifest)
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "pods.yaml"  # a configuration of the Collector
    for manifest in yaml.safe_load_all(path.read_text())
]
OLDEST, NEWEST = "1.27", "1.34"


def found(kind: str, name: str) -> dict[str, Any]:
    return next(manifest for _, manifest in MANIFESTS if (manifest["kind"], manifest["metadata"]["name"]) == (kind, name))


def container(kind: str, name: str) -> dict[str, Any]:
    (only,) = found(kind, name)["spec"]["template"]["spec"]["containers"]
    return dict(only)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(("file", "manifest"), MANIFESTS, ids=[f"{file} {manifest['kind']}" for file, manifest in MANIFESTS])
def test_a_manifest_is_what_kubernetes_takes(file: str, manifest: dict[str, Any], version: str) -> None:
    if manifest["kind"] == "Instrumentation":
        assert manifest["apiVersion"] == "opentelemetry.io/v1alpha1", file
        assert set(manifest["spec"]) <= {"exporter", "propagators", "sampler", "resource", "env", "python", "defaults"}, file
        assert set(manifest["spec"]["python"]) <= {"image", "env", "resourceRequirements", "volumeSizeLimit"}, file
        return
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_kustomization_lists_files_under_its_own_folder() -> None:
    for resource in KUSTOMIZATION["resources"]:
        assert (CONFIGURATIONS / resource).is_file()
    for generated in KUSTOMIZATION["configMapGenerator"]:
        for file in generated["files"]:
            assert (CONFIGURATIONS / file.rpartition("=")[2]).is_file()


@pytest.mark.parametrize(("kind", "name"), [("DaemonSet", "loadspan-agent"), ("StatefulSet", "loadspan-gateway")])
def test_a_pod_runs_the_files_of_its_configmap_and_tells_them_what_they_ask(kind: str, name: str) -> None:
    runs = container(kind, name)
    generated = next(map_ for map_ in KUSTOMIZATION["configMapGenerator"] if map_["name"] == name)
    keys = {file.partition("=")[0].rpartition("/")[2] for file in generated["files"]}
    assert [argument for argument in runs["args"] if argument != "--config"] == [f"/etc/otelcol/{key}" for key in sorted(keys)]
    volumes = {volume["name"]: volume for volume in found(kind, name)["spec"]["template"]["spec"]["volumes"]}
    assert volumes["config"]["configMap"]["name"] == name
    text = "".join((CONFIGURATIONS / file.rpartition("=")[2]).read_text() for file in generated["files"])
    told = {variable["name"] for variable in runs["env"]} - {"GOMEMLIMIT", "OTEL_RESOURCE_ATTRIBUTES"}
    assert told <= set(re.findall(r"\$\{env:([A-Z_]+)", text)) | {"K8S_NODE_NAME"}
    assert "LISTEN_HOST" in told


def test_the_memory_limiter_refuses_before_the_container_is_killed() -> None:
    for kind, name in (("DaemonSet", "loadspan-agent"), ("StatefulSet", "loadspan-gateway")):
        runs = container(kind, name)
        told = {variable["name"]: variable.get("value", "") for variable in runs["env"]}
        limit = runs["resources"]["limits"]["memory"]
        mebibytes = int(limit[:-2]) * {"Mi": 1, "Gi": 1024}[limit[-2:]]
        assert int(told["MEMORY_LIMIT_MIB"]) <= 0.8 * mebibytes
        assert told["GOMEMLIMIT"] == f"{told['MEMORY_LIMIT_MIB']}MiB"


def test_agents_find_every_gateway_and_gateways_keep_their_queues() -> None:
    service = found("Service", "loadspan-gateway")
    assert service["spec"]["clusterIP"] == "None"
    told = {variable["name"]: variable.get("value") for variable in container("DaemonSet", "loadspan-agent")["env"]}
    assert told["GATEWAY_HOST"] == f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert int(told["GATEWAY_PORT"]) in {port["port"] for port in service["spec"]["ports"]}
    gateway = found("StatefulSet", "loadspan-gateway")["spec"]
    assert gateway["volumeClaimTemplates"][0]["metadata"]["name"] == "queue"
    queue = next(int(v["value"]) for v in container("StatefulSet", "loadspan-gateway")["env"] if v["name"] == "QUEUE_BYTES")
    storage = gateway["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
    assert 2 * queue <= int(storage.removesuffix("Gi")) << 30  # it is written anew when it is compacted


def test_the_workloads_annotation_names_the_instrumentation_and_its_image_is_the_dockerfiles() -> None:
    annotations = found("Deployment", "model-server")["spec"]["template"]["metadata"]["annotations"]
    instrumentation = found("Instrumentation", "loadspan")
    assert annotations["instrumentation.opentelemetry.io/inject-python"] == instrumentation["metadata"]["name"]
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert f"-t {instrumentation['spec']['python']['image']} " in dockerfile
    assert {"/autoinstrumentation", "/autoinstrumentation-musl"} <= set(dockerfile.split())


def test_what_the_image_adds_needs_nothing_that_the_operators_image_lacks() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"^dependencies = \[(.*?)\]", pyproject, re.DOTALL | re.MULTILINE)
    assert needed is not None
    names = set(re.findall(r'"([a-z-]+)', needed[1]))
    assert names == {"opentelemetry-api", "opentelemetry-instrumentation", "opentelemetry-semantic-conventions", "wrapt"}
