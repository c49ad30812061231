"""collector/README.md tells of every file and every setting, and of no other."""

from __future__ import annotations

import re

from shipped import CONFIGURATIONS

PAGE = (CONFIGURATIONS / "README.md").read_text()
TOLD_BY_THEIR_FOLDER = {"kubernetes/agent.yaml", "kubernetes/namespace.yaml", "kubernetes/pods.yaml", "prometheus/prometheus.yaml"}


def test_every_setting_is_told_and_every_one_that_is_told_exists() -> None:
    asked = {name for path in CONFIGURATIONS.rglob("*.yaml") for name in re.findall(r"\$\{env:([A-Z0-9_]+)", path.read_text())}
    told = {name for row in re.findall(r"^\| (`[A-Z].*?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`([A-Z0-9_]+)`", row)}
    assert told == asked


def test_every_file_is_told_and_every_one_that_is_told_exists() -> None:
    files = {str(path.relative_to(CONFIGURATIONS)) for path in CONFIGURATIONS.rglob("*") if path.is_file()} - {"README.md"}
    told = set(re.findall(r"(?:(?:jaeger|kubernetes|storage|prometheus)/)?[a-z-]+\.(?:yaml|json)|kubernetes/Dockerfile", PAGE))
    assert files - TOLD_BY_THEIR_FOLDER <= told
    assert told - files == set()
