"""The example server and the demo command: real files, real processes, real requests."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from loadspan import names
from loadspan.commands.demo import Demo, find_examples
from loadspan.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXAMPLES = find_examples()
LOADSPAN = (sys.executable, "-m", "loadspan")
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def make_models(folder: Path) -> str:
    made = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "make_models.py", folder, "--size", "20"], check=True, capture_output=True, text=True
    )
    return made.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@contextlib.contextmanager
def serving(folder: Path, scratch: Path, *before: str) -> Iterator[str]:
    """Run the server, behind the command *before*, and yield its address; it must then stop in order."""
    ready = scratch / "address"
    process = subprocess.Popen(
        [*before, sys.executable, "-W", "error", EXAMPLES / "serve.py", folder, "--port", "0", "--ready", ready],
        cwd=scratch,
    )
    try:
        until = time.monotonic() + 120
        while not (ready.exists() and ready.read_text()):
            assert process.poll() is None, "the server ended before it answered"
            assert time.monotonic() < until, "the server never answered"
            time.sleep(0.05)
        address = ready.read_text()
        yield address
        ask(address, "/stop", b"")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def ask(address: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    with OPENER.open(address + path, body, timeout=120) as response:
        return json.load(response)


def refused(address: str, path: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(address, path)
    with caught.value as answer:
        return answer.code, json.load(answer)["error"]


SEQUENCE = ("/generate", "/generate?adapter=a", "/generate?adapter=b", "/generate?adapter=a", "/generate")


def test_the_models_are_the_same_every_time_and_a_second_call_leaves_them_alone(models: Path, tmp_path: Path) -> None:
    make_models(tmp_path)
    files = sorted(path.relative_to(models) for path in models.rglob("*") if path.is_file())
    assert [str(path) for path in files] == ["base/base.enc", "base/base.json", "lora/a.enc", "lora/b.enc", "passphrase"]
    assert [(models / path).read_bytes() == (tmp_path / path).read_bytes() for path in files] == [True] * 5
    assert 15e6 < sum((models / path).stat().st_size for path in files) < 21e6
    written = [(tmp_path / path).stat().st_mtime_ns for path in files]
    assert make_models(tmp_path) == f"make_models: {tmp_path}: already complete\n"
    assert [(tmp_path / path).stat().st_mtime_ns for path in files] == written


def test_models_that_were_left_unfinished_are_made_again(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    (folder / "lora" / "b.enc").unlink()
    assert make_models(folder).endswith(f"make_models: {folder}: complete, 19 MB\n")
    assert (folder / "lora" / "b.enc").read_bytes() == (models / "lora" / "b.enc").read_bytes()


def test_nothing_of_the_weights_can_be_read_in_the_files(models: Path) -> None:
    for path in models.rglob("*.enc"):
        content = path.read_bytes()
        assert content.startswith(b"SEALED1\n")
        assert b"attention" not in content
        assert b"PK\x03\x04" not in content[:200]


FAKE_ACCELERATOR = """
import json, torch, fakegpu
device = fakegpu.register()
assert fakegpu.register() == device == "fakegpu:0"
host = torch.arange(12, dtype=torch.float32).reshape(3, 4)
there = host.to(device)
sizes = [fakegpu.copied()]
own = there.memory.data_ptr() != host.data_ptr()
host.zero_()
unchanged = there.cpu().sum().item()
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)).eval()
with torch.no_grad():
    expected = module(torch.ones(2, 4))
    module.to(device); sizes.append(fakegpu.copied())
    module.to("fakegpu"); sizes.append(fakegpu.copied())
    same = torch.equal(module(torch.ones(2, 4).to(device)).cpu(), expected)
    weight = module[0].weight
    before = weight.cpu().clone()
    weight += torch.ones(8, 2).to(device) @ torch.ones(2, 4).to(device)
    merged = torch.equal(weight.cpu(), before + 2)
start = fakegpu.copied()
module.load_state_dict({name: tensor.cpu() for name, tensor in module.state_dict().items()})
sizes.append(fakegpu.copied() - start)
print(json.dumps([sizes, own, unchanged, same, merged, str(module[0].weight.device), str(torch.empty_like(there, device="cpu").device)]))
"""


def test_the_fake_accelerator_copies_and_counts_every_byte_and_computes_what_the_cpu_computes() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", FAKE_ACCELERATOR],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
        check=True,
        capture_output=True,
    )
    tensor, module = 48, 4 * (32 + 8 + 4 * 8) + 8
    assert json.loads(ran.stdout) == [[tensor, tensor + module, tensor + module, module], True, 66.0, True, True, "fakegpu:0", "cpu"]


def test_each_request_gets_its_adapter_and_the_base_model_comes_back_unchanged(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path) as address:
        assert ask(address, "/")["adapter"] == ["a", "b"]
        answers = [ask(address, path) for path in SEQUENCE]
        again = ask(address, "/generate")
        assert refused(address, "/generate?adapter=../base/base") == (404, "no adapter '../base/base'")
        assert refused(address, "/generate?base=other") == (404, "no base model 'other'")
        assert refused(address, "/nowhere") == (404, "no page '/nowhere'")
    assert [answer["loaded"] for answer in answers] == ["base", "base+a", "base+b", "base+a", "base"]
    assert [answer["cache_hit"] for answer in answers] == [None, False, False, True, None]
    base, a, b, a_again, base_again = (answer["checksum"] for answer in answers)
    assert len({base, a, b}) == 3
    assert (a_again, base_again) == (a, base)
    assert (again["loaded"], again["checksum"]) == (None, base)


def test_threads_that_ask_at_once_get_what_they_asked_for(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path) as address:
        expected = {path: ask(address, path)["checksum"] for path in SEQUENCE}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [path for path in SEQUENCE for _ in range(4)]
            answers = list(pool.map(lambda path: ask(address, path)["checksum"], asked))
    assert answers == [expected[path] for path in asked]


def test_a_damaged_adapter_fails_its_request_and_not_the_server(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    damaged = bytearray((folder / "lora" / "b.enc").read_bytes())
    damaged[-1] ^= 1
    (folder / "lora" / "b.enc").write_bytes(damaged)
    with serving(folder, tmp_path) as address:
        base = ask(address, "/generate")["checksum"]
        assert refused(address, "/generate?adapter=b") == (500, "InvalidTag: ")
        assert ask(address, "/generate")["checksum"] == base


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: next(iter(item["value"].values())) for item in span["attributes"]}


def recorded(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for path in run.glob("trace-*.jsonl") for line in path.read_text().splitlines()]
    return [span for line in lines for resource in line["resourceSpans"] for scope in resource["scopeSpans"] for span in scope["spans"]]


def test_answers_are_the_same_with_loadspan_and_each_load_is_accounted_for(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path) as address:
        plain = [ask(address, path) for path in SEQUENCE]
    run = tmp_path / "run"
    (tmp_path / "address").unlink()
    with serving(models, tmp_path, *LOADSPAN, "run", "-o", str(run), "--") as address:
        assert [ask(address, path) for path in SEQUENCE] == plain
    spans = recorded(run)
    loads = sorted((span for span in spans if span["name"] == names.LOAD_SPAN), key=lambda span: int(span["startTimeUnixNano"]))
    assert [attributes(load)["loadspan.model.name"] for load in loads] == ["base", "base+a", "base+b", "base+a", "base"]
    stages = [sorted({span["name"] for span in spans if span.get("parentSpanId") == load["spanId"]}) for load in loads]
    adapter = ["cache", "decrypt", "deserialize", "load_state_dict", "merge_lora", "to_device"]
    assert [set(expected) - set(found) for expected, found in zip([adapter, adapter], stages[1:3], strict=True)] == [set(), set()]
    assert {"decrypt", "deserialize", "initialize", "to_device"} <= set(stages[0])
    assert {"decrypt", "deserialize"}.isdisjoint(stages[3])
    hits = [attributes(span)["loadspan.cache.hit"] for span in spans if span["name"] == "cache"]
    assert hits == [False, False, True]
    # Of 20 MB, whose loads take a few hundredths of a second; the whole size reaches 0.99.
    assert [load for load in loads[:3] if attributes(load)["loadspan.coverage"] < 0.8] == []


def test_the_demo_shows_four_loads_says_what_the_device_was_and_cleans_up(tmp_path: Path) -> None:
    temporary, work = tmp_path / "tmp", tmp_path / "work"
    temporary.mkdir()
    work.mkdir()
    ran = subprocess.run(
        [*LOADSPAN, "demo", "--size", "20"],
        cwd=work,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "internal error" not in ran.stderr
    assert ran.stderr.count("load model") == 4
    said = [re.sub(r"\s+[\d.]+ (ms|s)\b", " TIME", line) for line in ran.stdout.splitlines()]
    said = [re.sub(r"loadspan-demo-\w+", "DEMO", line).removeprefix("loadspan demo: ") for line in said]
    device = said.pop(-2)
    assert said == [
        f"about 20.0 MB of encrypted models in {temporary}/DEMO",
        f"loadspan run -- python {EXAMPLES}/serve.py {temporary}/DEMO --port 0",
        "GET /generate?adapter=a  (the base model, read, decrypted and moved to the device, and adapter a merged into it)",
        "GET /generate?adapter=b  (adapter b instead)",
        "GET /generate?adapter=a  (adapter a again, from the server's cache)",
        "GET /generate  (the base model alone)",
        "/generate?adapter=a TIME  loaded base+a",
        "/generate?adapter=b TIME  loaded base+b",
        "/generate?adapter=a TIME  loaded base+a  (cache hit)",
        "/generate TIME  loaded base",
        "your own program: loadspan run -- python PROGRAM.py",
    ]
    stand_in = "A stand-in in host memory was used: the to_device figures are host memory copies."
    assert device.startswith("device ")
    assert device.endswith(stand_in) == ("fakegpu" in device)
    assert list(temporary.iterdir()) == []


def test_a_named_folder_is_kept_and_used_again(models: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256((models / "base" / "base.enc").read_bytes()).hexdigest()
    ran = subprocess.run([*LOADSPAN, "demo", "--size", "20", "--dir", models], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert f"make_models: {models}: already complete" in ran.stderr
    assert hashlib.sha256((models / "base" / "base.enc").read_bytes()).hexdigest() == digest


def demo(**arguments: Any) -> int:
    return Demo().run(argparse.Namespace(**{"dir": None, "size": 20, "keep": False, **arguments}))


def test_a_size_too_small_is_refused_with_the_smallest() -> None:
    with pytest.raises(UserError, match=r"^--size 1: too small\. Ask for 5 \(megabytes\) or more\.$"):
        demo(size=1)


def test_a_disk_too_full_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"free, .* needed\. Name a folder on another disk with --dir, or ask for less with --size\.$"):
        demo(size=10**9, dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    program = "import sys; sys.modules['safetensors'] = None; from loadspan.commands import main; sys.exit(main(['demo']))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (2, "loadspan demo: safetensors: not installed. Run: pip install 'loadspan[cli,demo]'\n")
