"""What the machine did, as a reader of the terminal sees it: facts, and the throughput curve."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import traces
from hypothesis import given
from hypothesis import strategies as st

from loadspan.report import terminal, timeline, tracefile

if TYPE_CHECKING:
    from pathlib import Path

LINK = {"generation": 4, "width": 4, "generation__max": 4, "width__max": 16, "degraded": True}
READ = {
    "loadspan__size": 20 * traces.GB,
    "file__path": "/models/base.safetensors",
    "system__filesystem__type": "ext4",
    "loadspan__storage__kind": "nvme",
    "loadspan__storage__encrypted": True,
    "loadspan__storage__stack": ["nvme0n1p2", "dm-crypt"],
    "loadspan__cache__residency": 0.42,
    "loadspan__cache__cold": 0.58,
    "loadspan__io__storage_read": 11_600_000_000,
    "loadspan__run_queue_time": 1.0,
}
MOVE = {
    "loadspan__size": 20 * traces.GB,
    "loadspan__device__type": "cuda",
    "loadspan__device__index": 0,
    "loadspan__device__name": "NVIDIA H100",
    "loadspan__copy__count": 1200,
    "loadspan__copy__size__median": 16_000_000,
    "loadspan__host_memory__pinned": False,
    "loadspan__numa__relation": "remote",
    **{f"loadspan__link__{name}": value for name, value in LINK.items()},
}
ROOT = {
    "loadspan__size": 20 * traces.GB,
    "loadspan__cache__residency": 0.42,
    "loadspan__cache__evicted": 0.25,
    "loadspan__memory__refault": 3 * traces.GB,
    "loadspan__memory__refault__scope": "cgroup",
    "loadspan__memory__limit": 16 * traces.GB,
    "loadspan__memory__limit__hits": 1234,
    "loadspan__swap__in": 50_000_000,
    "loadspan__disk__utilization": 0.15,
    "loadspan__disk__latency": 0.012,
    "loadspan__io__storage_read": 11_600_000_000,
    "loadspan__blocked_time": 6.0,
    "loadspan__blocked__where": ["folio_wait_bit_common 61 %", "futex_do_wait 2 %"],
    "loadspan__device__relations": ["0000:17:00.0 0000:65:00.0 SYS"],
}
CURVE = {
    "loadspan__curve__time": [0.0, 2.0, 4.0, 6.0, 8.0, 10.0],
    "loadspan__curve__size": [0] * 5 + [20 * traces.GB],
    "loadspan__curve__storage_read": [0, 4 * traces.GB, 6 * traces.GB, 7 * traces.GB, 7 * traces.GB, 11_000_000_000],
}


def lines(folder: Path, *spans: dict[str, Any], **look: Any) -> list[str]:
    (folder / "trace-4242.jsonl").write_text(traces.line(*spans))
    (load,) = tracefile.read(folder).loads
    return terminal.lines(timeline.waterfall(load), terminal.Look(**look))


def test_a_load_says_what_the_machine_did(tmp_path: Path) -> None:
    spans = [
        traces.span("read", "a1", "a0", 0, 6, **READ),
        traces.span("to_device", "a2", "a0", 6, 10, **MOVE),
        traces.span("load model", "a0", None, 0, 10, **ROOT),
    ]
    assert lines(tmp_path, *spans, width=80) == [
        "load model  10.0 s  20.0 GB",
        "  42 % in page cache before  25 % evicted again",
        "  3.00 GB evicted and read again in its cgroup",
        "  memory limit 16.0 GB reached 1 234 times  50.0 MB read back from swap",
        "  disk 15 % busy, 12.0 ms a read  blocked 6.00 s",
        "  asleep in folio_wait_bit_common 61 %  0000:17:00.0 0000:65:00.0 SYS",
        "  read             ██████████████████▌············    6.00 s  20.0 GB",
        "                   base.safetensors  ext4 on nvme  nvme0n1p2 > dm-crypt",
        "                   42 % in cache before  11.6 GB from storage",
        "                   waited 1.00 s for a CPU",
        "  to_device        ··················▐████████████    4.00 s  20.0 GB",
        "                   cuda:0  NVIDIA H100  1 200 copies, median 16.0 MB  pageable",
        "                   PCIe Gen4 x4 of Gen4 x16  link degraded  remote NUMA node",
        "  ! cache-cold: Keep the weights in the page cache, or put them on faster",
        "    storage: 42 % of the files were in the page cache before, 11.6 GB were read",
        "    from storage for a load of 20.0 GB, and the loading thread slept for 6.00 s",
        "    of 10.0 s, waiting for storage, a lock or a timer.",
        "  ! cache-evicted: Leave the page cache room for the files, with a higher memory",
        "    limit or less other memory: during the load 25 % of the biggest files were",
        "    evicted from the page cache and 3.00 GB that had been evicted were read",
        "    again, and the control group reached its limit of 16.0 GB 1 234 times.",
    ]


@pytest.mark.parametrize(
    ("storage", "text"),
    [
        ({"type": "tmpfs", "kind": "memory"}, "tmpfs"),
        ({"type": "overlay", "kind": "overlay"}, "overlay"),
        ({"type": "fuse.sshfs", "kind": "fuse"}, "fuse.sshfs"),
        ({"type": "nfs4", "kind": "network"}, "nfs4 on network"),
        ({"type": "xfs"}, "xfs"),
    ],
)
def test_a_kind_that_the_filesystem_tells_already_is_not_said_twice(tmp_path: Path, storage: dict[str, str], text: str) -> None:
    attributes = {"system__filesystem__type": storage["type"]}
    attributes |= {"loadspan__storage__kind": storage["kind"]} if "kind" in storage else {}
    drawn = lines(tmp_path, traces.span("read", "a1", "a0", 0, 6, **attributes), traces.span("load model", "a0", None, 0, 6), width=80)
    assert drawn[2].strip() == text


def test_the_curve_is_a_row_as_wide_as_the_bars(tmp_path: Path) -> None:
    spans = [traces.span("read", "a1", "a0", 0, 10), traces.span("load model", "a0", None, 0, 10, **CURVE)]
    read, curve, peak = lines(tmp_path, *spans, width=80)[1:]
    assert read == "  read             " + "█" * 31 + "    10.0 s"
    assert curve == "  from storage     ██████▅▄▄▄▄▄▃▂▂▂▂▂▁·····▂██████            11.0 GB"
    assert peak.strip() == "peak 2.00 GB/s"
    assert " ".join(lines(tmp_path, *spans, width=80, blocks=False)[2].split()).startswith("from storage #####")


@pytest.mark.parametrize(
    "change",
    [
        {"loadspan__curve__time": [0.0, 2.0, 2.0, 6.0, 8.0, 10.0]},
        {"loadspan__curve__time": [0.0, 2.0]},
        {"loadspan__curve__storage_read": [0, 4, 3, 2, 1, 0]},
        {"loadspan__curve__storage_read": [0, 0, 0, 0, 0, 0]},
        {"loadspan__curve__storage_read": [0, 0, 0, 5 * traces.GB, 5 * traces.GB, 5 * traces.GB]},
        {"loadspan__curve__storage_read": [0, 1, 2]},
        {"loadspan__curve__time": ["a", "b"]},
    ],
)
def test_what_is_no_curve_is_not_drawn(tmp_path: Path, change: dict[str, Any]) -> None:
    spans = [traces.span("read", "a1", "a0", 0, 10), traces.span("load model", "a0", None, 0, 10, **(CURVE | change))]
    assert len(lines(tmp_path, *spans, width=80)) == 2


def test_a_killed_load_keeps_the_curve_it_had(tmp_path: Path) -> None:
    curve = {name.replace("__", "."): values for name, values in CURVE.items()}
    reading = {"name": "read", "start": traces.at(0), "size": 11 * traces.GB, "file_size": 20 * traces.GB, "file": "base"}
    traces.write_state(tmp_path, 4242, [traces.open_load("a0", 0, reading)], updated=10, curves={"a0": curve})
    (load,) = tracefile.read(tmp_path).loads
    assert load.numbers("loadspan.curve.time") == (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    assert any("from storage" in line for line in terminal.lines(timeline.waterfall(load), terminal.Look(width=80)))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3), st.lists, max_leaves=8))
def test_whatever_a_state_file_says_of_curves_the_load_is_read(tmp_path_factory: pytest.TempPathFactory, junk: Any) -> None:
    folder = tmp_path_factory.mktemp("run")
    for curves in (junk, {"a0": junk}, {"a0": {"loadspan.curve.time": junk, "loadspan.curve.read": junk}}):
        traces.write_state(folder, 4242, [traces.open_load("a0", 0)], updated=10, curves=curves)
        (load,) = tracefile.read(folder).loads
        assert json.dumps(dict(load.attributes))
        terminal.lines(timeline.waterfall(load), terminal.Look(width=80))


def test_of_a_warm_load_the_curve_is_that_of_its_reads_and_not_that_of_the_little_from_storage(tmp_path: Path) -> None:
    read = [seconds * traces.GB for seconds in range(6)]
    stored = [size // 20 for size in read]
    warm = {"loadspan__curve__storage_read": stored, "loadspan__curve__read": read, "loadspan__size": 5 * traces.GB}
    root = traces.span("load model", "a0", None, 0, 10, **(CURVE | warm))
    drawn = lines(tmp_path, traces.span("read", "a1", "a0", 0, 10), root, width=80)
    assert drawn[2].split()[:2] == ["through", "read()"]
