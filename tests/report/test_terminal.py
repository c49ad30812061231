"""Whole waterfalls, at fixed widths."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import traces

from loadspan.report import terminal, timeline, tracefile
from loadspan.report.text import cells, clean, cut

if TYPE_CHECKING:
    from pathlib import Path


def render(folder: Path, *spans: dict[str, Any], **look: Any) -> list[str]:
    """The lines of the only load of *spans*."""
    (folder / "trace-4242.jsonl").write_text(traces.line(*spans))
    (load,) = tracefile.read(folder).loads
    return terminal.lines(timeline.waterfall(load), terminal.Look(**look))


def test_the_founding_load_at_80_columns(tmp_path: Path) -> None:
    assert render(tmp_path, *traces.founding_load(), width=80) == [
        "load model  sdxl-base  12.0 s  20.0 GB  coverage 99.2 %  (diffusers, implicit)",
        "  decrypt          ████████████████████▌··········    8.00 s  20.0 GB  2.50 GB/s",
        "                   AES-GCM  1 200 calls  exclusive 1.75 s",
        "    read           ·████████████████▌·············    6.25 s  20.0 GB  3.20 GB/s",
        "                   base.enc  nfs4  buffered  blocked 5.10 s",
        "  to_device        ····················▐██████████    3.90 s  20.0 GB  5.13 GB/s",
        "                   cuda:0  pageable",
        "  other            ····················▐··········    100 ms",
        "                   build_unet (unet.py:311) 80 %",
    ]


def test_the_founding_load_at_120_columns(tmp_path: Path) -> None:
    assert render(tmp_path, *traces.founding_load(), width=120) == [
        "load model  sdxl-base  12.0 s  20.0 GB  coverage 99.2 %  (diffusers, implicit)",
        "  decrypt          ██████████████████▌·········    8.00 s  20.0 GB  2.50 GB/s  AES-GCM  1 200 calls  exclusive 1.75 s",
        "    read           ·███████████████············    6.25 s  20.0 GB  3.20 GB/s  base.enc  nfs4  buffered  blocked 5.10 s",
        "  to_device        ··················▐█████████    3.90 s  20.0 GB  5.13 GB/s  cuda:0  pageable",
        "  other            ··················▐·········    100 ms                      build_unet (unet.py:311) 80 %",
    ]


def test_an_output_without_block_characters_gets_ascii_bars(tmp_path: Path) -> None:
    lines = render(tmp_path, *traces.founding_load(), width=80, blocks=False)
    assert lines[1] == "  decrypt          #####################----------    8.00 s  20.0 GB  2.50 GB/s"
    assert all(line.isascii() for line in lines)


def test_color_changes_nothing_but_color(tmp_path: Path) -> None:
    plain = render(tmp_path, *traces.founding_load(), width=100)
    colored = render(tmp_path, *traces.founding_load(), width=100, color=True)
    assert [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in colored] == plain
    assert colored[0].startswith("\x1b[1mload model\x1b[0m")


def test_a_failure_is_told_once_where_it_happened(tmp_path: Path) -> None:
    failed = {"error": "boom", "error__type": "builtins.ValueError"}
    spans = [
        traces.span("read", "a1", "a0", 0, 1, loadspan__size=8 * traces.GB, loadspan__deferred=True, loadspan__read__method="mmap"),
        traces.span("merge_lora", "a3", "a2", 1, 2, loadspan__adapter__name="pixel-art", loadspan__merge__layers=96, **failed),
        traces.span("merge_lora", "a2", "a0", 1, 2, **failed),
        traces.span("load model", "a0", None, 0, 2, **failed),
    ]
    assert render(tmp_path, *spans, width=80) == [
        "load model  2.00 s  (FAILED ValueError)",
        "  read             ███████████████▌···············    1.00 s  8.00 GB   deferred",
        "                   mmap",
        "  merge_lora       ···············▐███████████████    1.00 s",
        "    merge_lora     ···············▐███████████████    1.00 s",
        "                   adapter pixel-art  merged 96 layers",
        "                   ValueError: boom",
    ]


def test_a_load_that_died_says_where(tmp_path: Path) -> None:
    reading = {"name": "read", "start": traces.at(4), "size": 12_300_000_000, "file_size": 20_100_000_000, "file": "base.enc"}
    traces.write_state(tmp_path, 4242, [traces.open_load("a0", 0, reading, model="sdxl", size=13 * traces.GB)], updated=10)
    assert render(tmp_path, traces.span("decrypt", "a1", "a0", 0, 4), width=80) == [
        "load model  sdxl  died in read at 12.3 of 20.1 GB after 10.0 s",
        "  decrypt          ████████████▌··················    4.00 s",
        "  read             ············███████████████████            12.3 GB",
        "                   base.enc",
    ]


def test_a_load_without_any_trace_of_its_end_says_when_it_was_last_seen(tmp_path: Path) -> None:
    assert render(tmp_path, traces.span("decrypt", "a1", "a0", 0, 4), width=80) == [
        "load model  never ended, last seen after 4.00 s",
        "  decrypt          ███████████████████████████████    4.00 s",
    ]


@pytest.mark.parametrize(
    ("attributes", "facts"),
    [
        ({"loadspan__cache__cold": 0.0, "loadspan__io__storage_read": 4096}, "warm"),
        ({"loadspan__cache__cold": 1.0, "loadspan__io__storage_read": 10**9, "loadspan__size": 10**9}, "cold"),
        ({"loadspan__cache__cold": 1.0, "loadspan__io__storage_read": 3 * 10**9, "loadspan__size": 10**9}, "cold  3.00 GB from storage"),
        ({"loadspan__cache__cold": 0.63, "loadspan__io__storage_read": 630_000_000, "loadspan__size": 10**9}, "630 MB from storage"),
        ({"loadspan__cache__cold": 0.63}, "63 % from storage"),
        ({"loadspan__cache__hit": False}, "cache miss"),
        ({"loadspan__operation__count": 1, "loadspan__concurrency": 1}, ""),
        ({"loadspan__operation__count": 20_000, "loadspan__concurrency": 8}, "20 000 calls  8 at once"),
        ({"loadspan__blocked_time": 0.001}, ""),
        ({"file__path": "/models/a/", "loadspan__file__count": 14, "loadspan__format": "safetensors"}, "a  14 files  safetensors"),
        ({"loadspan__device__type": "xpu", "loadspan__host_memory__pinned": True}, "xpu  pinned"),
        ({"loadspan__cipher": "AES-GCM", "loadspan__key_derivation__time": 2.5}, "AES-GCM  key derivation 2.50 s"),
    ],
)
def test_facts_are_said_in_few_words_and_unknown_ones_not_at_all(tmp_path: Path, attributes: dict[str, Any], facts: str) -> None:
    lines = render(tmp_path, traces.span("read", "a1", "a0", 0, 1, **attributes), traces.span("load model", "a0", None, 0, 1), width=80)
    assert [line.strip() for line in lines[2:]] == ([facts] if facts else [])


def test_many_stages_are_folded_and_counted(tmp_path: Path) -> None:
    spans = [traces.span("read" if i % 10 else "convert", f"b{i}", "a0", i, i + 0.1 + i / 10_000) for i in range(457)]
    lines = render(tmp_path, *spans, traces.span("load model", "a0", None, 0, 457), width=80)
    assert len(lines) == 1 + timeline.MAX_ROWS + 2
    assert lines[-2:] == [
        "  417 shorter",
        "                   375 read  42 convert  longest 142 ms",
    ]


def test_hostile_text_has_no_power_over_the_terminal(tmp_path: Path) -> None:
    hostile = "a\x1b[2Jb\nc\u202ed\u200be\x9bf\u2028g\x00h"
    spans = [
        traces.span(hostile, "a1", "a0", 0, 1, file__path=hostile, loadspan__adapter__name=hostile, error=hostile, error__type=hostile),
        traces.span("load model", "a0", None, 0, 1, loadspan__model__name=hostile, loadspan__loader=hostile),
    ]
    lines = render(tmp_path, *spans, width=120)
    assert all(line.isprintable() for line in lines)
    assert lines[0].startswith(r"load model  a\x1b[2Jb\nc\u202ed\u200be\x9bf\u2028g\x00h")


def test_wide_and_combining_characters_keep_the_columns_straight(tmp_path: Path) -> None:
    spans = [
        traces.span("読む", "a1", "a0", 0, 1),
        traces.span("e\u0301" * 9, "a2", "a0", 0, 1),
        traces.span("x" * 90, "a3", "a0", 0, 1),
        traces.span("load model", "a0", None, 0, 1),
    ]
    lines = render(tmp_path, *spans, width=80)
    assert len({cells(line) for line in lines[1:]}) == 1
    assert {cells(line.partition("█")[0]) for line in lines[1:]} == {30}


def test_no_line_is_wider_than_asked(tmp_path: Path) -> None:
    load = traces.founding_load()
    load[0]["attributes"].append({"key": "loadspan.format", "value": {"stringValue": "very-long-word-" * 30}})
    for width in (60, 80, 100, 120, 200):
        assert max(map(cells, render(tmp_path, *load, width=width))) <= width


def test_a_long_file_name_loses_its_middle() -> None:
    assert cut("model-00001-of-00012.safetensors", 20) == "model-0000…fetensors"
    assert cut("short", 20) == "short"


def test_plain_text_stays_as_it_is() -> None:
    assert clean("sdxl/base 1.0 ünïcödé 日本語") == "sdxl/base 1.0 ünïcödé 日本語"
    assert clean("a\u00a0b\ud800") == "a b\\ud800"


def test_a_summary_has_one_aligned_line_per_load(tmp_path: Path) -> None:
    (tmp_path / "trace-1.jsonl").write_text(
        traces.line(
            traces.span("load model", "a0", None, 0, 3.1, loadspan__model__name="sdxl-base", loadspan__size=20 * traces.GB),
            traces.span("load model", "b0", None, 5, 65.2, loadspan__model__name="lora", error="boom", error__type="OSError"),
            traces.span("read", "c1", "c0", 70, 71),
        )
    )
    waterfalls = [timeline.waterfall(load) for load in tracefile.read(tmp_path).loads]
    assert terminal.summary(waterfalls, terminal.Look(width=80)) == [
        "  sdxl-base       3.10 s  20.0 GB",
        "  lora            60.2 s  (FAILED OSError)",
        "  load model              never ended, last seen after 1.00 s",
    ]
