"""`docker compose up` for real, where an engine runs: the way of the README, and what crashes and restarts leave of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from images import docker, image, needed
from shipped import CONFIGURATIONS

from backends.process import answers, get, listens, until, written

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROJECT = "loadspan-test"
SERVICES: dict[str, Any] = yaml.safe_load((CONFIGURATIONS / "compose.yaml").read_text())["services"]
PORTS = [int(port.split(":")[1]) for service in SERVICES.values() for port in service.get("ports", ())]
JAEGER, PROMETHEUS, GRAFANA = "http://127.0.0.1:16686", "http://127.0.0.1:9090", "http://127.0.0.1:3000"
PROGRAM = """
import sys, time, torch
from safetensors.torch import load_file, save_file
save_file({"p": torch.zeros(1000, 1000)}, sys.argv[1])
module = torch.nn.Module()
module.p = torch.nn.Parameter(torch.empty(1000, 1000))
module.load_state_dict(load_file(sys.argv[1]))
"""
SIZE = 4_000_000


@dataclass
class Stack:
    """What compose.yaml describes, running."""

    files: tuple[str, ...]

    def compose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `docker compose` on it."""
        return docker("compose", "--project-name", PROJECT, *self.files, *arguments)

    def up(self) -> None:
        """As the README has it."""
        done = self.compose("up", "-d", "--wait")
        assert done.returncode == 0, done.stderr + self.compose("logs", "--tail", "20").stdout

    def container(self, service: str) -> dict[str, Any]:
        """What the engine says of the container of *service*."""
        told = json.loads(docker("inspect", f"{PROJECT}-{service}-1").stdout)
        return dict(told[0])

    def health(self, service: str) -> str:
        """`healthy`, or what it is instead."""
        return str(self.container(service)["State"]["Health"]["Status"])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """It is up, and thrown away afterwards with its volumes."""
    needed()
    if taken := [port for port in PORTS if listens(port)]:
        pytest.skip(f"somebody listens on {taken}, which compose.yaml publishes")
    images = {named: image(named) for named in {service["image"] for service in SERVICES.values()}}
    folder = tmp_path_factory.mktemp("compose")
    ours = written(folder, "images.yaml", {"services": {name: {"image": images[told["image"]]} for name, told in SERVICES.items()}})
    running = Stack(("--file", str(CONFIGURATIONS / "compose.yaml"), "--file", str(ours)))
    try:
        running.up()
        yield running
    finally:
        running.compose("down", "--volumes", "--timeout", "3")
        docker("rmi", *(name for name in images.values() if name.startswith(PROJECT)))


def load(folder: Path, service: str) -> None:
    """Load a model by the command of the README."""
    found = re.search(
        r"^((?:[A-Z_]+=\S+ )+)opentelemetry-instrument python serve.py$", (CONFIGURATIONS / "README.md").read_text(), re.MULTILINE
    )
    assert found is not None
    told = dict(pair.split("=", 1) for pair in found[1].split()) | {"OTEL_SERVICE_NAME": service}
    program = shutil.which("opentelemetry-instrument")
    assert program is not None
    command = [program, "python", "-c", PROGRAM, str(folder / f"{service}.safetensors")]
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def loads(service: str) -> list[dict[str, Any]]:
    """The root spans that Jaeger has of *service*."""
    found = json.loads(get(f"{JAEGER}/api/traces?service={service}&limit=20"))["data"] or []
    return [span for trace in found for span in trace["spans"] if span["operationName"] == "load model"]


def value(query: str) -> float | None:
    """What Prometheus answers to a query of one series."""
    answer = json.loads(get(f"{PROMETHEUS}/api/v1/query?query={urllib.parse.quote(query)}"))
    found = answer["data"]["result"]
    return float(found[0]["value"][1]) if found else None


def shown(service: str) -> bool:
    """Whether a load of *service* is in Jaeger and, by itself and by its spans, in Prometheus."""
    last = [
        f'last_over_time({name}{{service_name="{service}"}}[1h])'
        for name in ("loadspan_load_size_bytes_total", "loadspan_span_load_size_bytes_total")
    ]
    return len(loads(service)) == 1 and [value(query) for query in last] == [SIZE, SIZE]


def test_a_load_is_in_jaeger_and_prometheus_by_the_two_commands_of_the_readme(stack: Stack, tmp_path: Path) -> None:
    load(tmp_path, "first")
    until(lambda: shown("first"), "a load in Jaeger and Prometheus")
    assert answers(f"{GRAFANA}/api/health")
    targets = json.loads(get(f"{PROMETHEUS}/api/v1/targets"))["data"]["activeTargets"]
    until(lambda: all(target["health"] == "up" for target in targets), "everything is scraped")
    assert json.loads(get(f"{PROMETHEUS}/api/v1/rules"))["data"]["groups"]
    assert {name: stack.health(name) for name, told in SERVICES.items() if "healthcheck" in told} == dict.fromkeys(
        ("jaeger", "collector-health", "prometheus", "grafana"), "healthy"
    )


def test_from_another_machine_nothing_can_be_reached(stack: Stack) -> None:
    del stack
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # nothing is sent: it only tells by which address others are reached
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = asking.getsockname()[0]
    for port in PORTS:
        with socket.socket() as asking:
            asking.settimeout(2)
            assert asking.connect_ex((address, port)) != 0, port
        assert listens(port)


def test_after_down_and_up_what_was_stored_is_there_and_nothing_else_is_left(stack: Stack, tmp_path: Path) -> None:
    load(tmp_path, "kept")
    until(lambda: shown("kept"), "a load in Jaeger and Prometheus")
    begun = time.monotonic()
    assert stack.compose("down").returncode == 0
    assert time.monotonic() - begun < 9  # who has to be killed is given ten seconds first
    volumes = docker("volume", "ls", "--quiet", "--filter", "dangling=true").stdout.split()
    assert {volume for volume in volumes if volume.startswith(PROJECT)} == {
        f"{PROJECT}_{name}" for name in ("jaeger", "collector", "prometheus", "grafana")
    }
    stack.up()
    assert shown("kept")
    assert stack.compose("restart", "--timeout", "3").returncode == 0
    until(lambda: answers(JAEGER) and answers(f"{PROMETHEUS}/-/ready"), "they are back")
    assert shown("kept")


def test_no_container_has_a_volume_without_a_name(stack: Stack) -> None:
    for service in SERVICES:
        mounts = stack.container(service)["Mounts"]
        assert all(mount["Name"].startswith(PROJECT) for mount in mounts if mount["Type"] == "volume"), service


def test_each_program_runs_as_a_user_of_its_own_and_may_write_its_volume(stack: Stack) -> None:
    expected = {"jaeger": "10001", "collector": "10001", "prometheus": "65534", "grafana": "472"}
    found = {}
    for service in expected:
        [line] = docker("top", f"{PROJECT}-{service}-1", "-eo", "pid,uid,comm").stdout.splitlines()[1:2]
        found[service] = line.split()[1]
    assert found == expected
    assert not any("permission denied" in stack.compose("logs", service).stdout.lower() for service in expected)


def test_a_collector_that_crashes_is_back_and_known_to_be_well(stack: Stack, tmp_path: Path) -> None:
    before = stack.container("collector")["State"]
    prometheus = stack.container("prometheus")["Config"]["Image"]
    # From outside its container, as the kernel does it when memory is short; `docker kill` would mean that it is to stay away.
    killed = docker(
        "run",
        "--rm",
        "--pid=host",
        "--user=0",
        "--tmpfs=/prometheus",
        "--entrypoint=kill",
        prometheus,
        "-9",
        str(before["Pid"]),
    )
    assert killed.returncode == 0, killed.stderr
    until(lambda: stack.container("collector")["State"]["StartedAt"] != before["StartedAt"], "it is started again")
    time.sleep(6)  # longer than from one look at its health to the next
    until(lambda: stack.health("collector-health") == "healthy", "its health is asked for where it is now")
    load(tmp_path, "after")
    until(lambda: shown("after"), "a load in Jaeger and Prometheus")
