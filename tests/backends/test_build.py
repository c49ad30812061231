"""What is missing is said in one line and is no failure; what is wrong is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NOBODY = "http://127.0.0.1:9"  # a port on which nobody listens


def build(folder: Path, *names: str, script: Path = HERE / "build.py", **environment: str) -> subprocess.CompletedProcess[str]:
    given = os.environ | {"LOADSPAN_BACKENDS": str(folder / "programs")} | environment
    return subprocess.run([sys.executable, script, *names], env=given, capture_output=True, text=True, check=False)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def test_without_go_and_java_each_program_is_skipped_with_a_line(tmp_path: Path) -> None:
    done = build(tmp_path, "jaeger", "otelcol", "opensearch", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    reasons = {"jaeger: skipped, go is not installed", "otelcol: skipped, go is not installed", "opensearch: skipped, mvn is not installed"}
    assert set(done.stdout.splitlines()) == reasons


@needs("go")
@pytest.mark.parametrize("program", ["jaeger", "otelcol"])
def test_without_the_module_proxy_a_program_is_skipped_with_a_line(tmp_path: Path, program: str) -> None:
    done = build(tmp_path, program, GOPROXY=NOBODY, GOMODCACHE=str(tmp_path / "modules"), GOTOOLCHAIN="local")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith(f"{program}: skipped, ")


@needs("go")
def test_a_module_that_is_not_the_pinned_one_is_a_failure(tmp_path: Path) -> None:
    copy = shutil.copytree(HERE, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    sums = copy / "collector" / "go.sum"
    builder = "go.opentelemetry.io/collector/cmd/builder v0.158.0 h1:"
    sums.write_text(sums.read_text().replace(builder, builder + "changed"))
    done = build(tmp_path, "otelcol", script=copy / "build.py")
    if "skipped" in done.stdout:
        pytest.skip(done.stdout)
    assert done.returncode == 1
    assert done.stdout.startswith("otelcol: FAILED: go tool builder")


def test_a_prometheus_of_the_machine_is_taken_as_it_is(tmp_path: Path) -> None:
    program = tmp_path / "prometheus"
    program.touch(mode=0o755)
    done = build(tmp_path, "prometheus", PATH=str(tmp_path))
    assert (done.stdout, done.returncode) == (f"prometheus={program}\n", 0)
