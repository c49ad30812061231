"""`loadspan show`, and the parts of the command line that all commands share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import traces

from loadspan.commands import main


def record(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "trace-4242.jsonl").write_text("".join(traces.line(span) for span in traces.founding_load()))
    return folder


WATERFALL = """\
load model  sdxl-base  12.0 s  20.0 GB  coverage 99.2 %  (diffusers, implicit)
  decrypt          ████████████████████▌··········    8.00 s  20.0 GB  2.50 GB/s
                   AES-GCM  1 200 calls  exclusive 1.75 s
    read           ·████████████████▌·············    6.25 s  20.0 GB  3.20 GB/s
                   base.enc  nfs4  buffered  blocked 5.10 s
  to_device        ····················▐██████████    3.90 s  20.0 GB  5.13 GB/s
                   cuda:0  pageable
  other            ····················▐··········    100 ms
                   build_unet (unet.py:311) 80 %

As data, with every attribute: loadspan show runs/42 --json
"""


def test_show_prints_the_waterfalls_and_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    record(Path("runs/42"))
    assert main(["show", "runs/42", "--width", "80"]) == 0
    assert capsys.readouterr() == (WATERFALL, "")


def test_show_takes_the_newest_run_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    record(Path("loadspan-runs/b"))
    os.utime("loadspan-runs/b", (1, 1))
    record(Path("loadspan-runs/a"))
    assert main(["show"]) == 0
    assert capsys.readouterr().out.endswith("loadspan show loadspan-runs/a --json\n")


def test_colors_come_only_when_asked_for_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    record(Path("runs/42"))
    main(["show", "runs/42"])
    assert "\x1b" not in capsys.readouterr().out
    main(["show", "runs/42", "--color"])
    assert "\x1b[1mload model\x1b[0m" in capsys.readouterr().out


def test_json_holds_every_attribute(capsys: pytest.CaptureFixture[str]) -> None:
    record(Path("runs/42"))
    assert main(["show", "runs/42", "--json"]) == 0
    (load,) = json.loads(capsys.readouterr().out)
    assert (load["name"], load["model"], load["duration"], load["pid"]) == ("load model", "sdxl-base", 12.0, 4242)
    assert [child["name"] for child in load["children"]] == ["decrypt", "to_device"]
    assert load["children"][0]["children"][0]["attributes"]["file.path"] == "/models/sdxl/base.enc"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show"], "loadspan show: no run below ./loadspan-runs. Record one: loadspan run -- python serve.py\n"),
        (["show", "runs/42"], "loadspan show: runs/42: no such file or folder. Record one: loadspan run -- python serve.py\n"),
        (["show", "."], "loadspan show: .: no trace file (*.jsonl). Record one: loadspan run -- python serve.py\n"),
        (["show", "--widht=9"], "loadspan show: unrecognized arguments: --widht=9. See loadspan --help\n"),
        (["show", "--width", "x"], "loadspan show: argument --width: invalid int value: 'x'. See loadspan show --help\n"),
        (
            ["show", "evil\x1b[2J\n"],
            "loadspan show: evil\\x1b[2J\\n: no such file or folder. Record one: loadspan run -- python serve.py\n",
        ),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr() == ("", message)


def test_a_trace_without_a_load_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("trace-1.jsonl").write_text(traces.line(traces.span("GET /", "a", None, 0, 1), scope="flask"))
    assert main(["show", "."]) == 2
    assert (
        capsys.readouterr().err == "loadspan show: .: no load in it. Record a program that loads a model: loadspan run -- python serve.py\n"
    )


def test_warnings_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    folder = record(Path("runs/42"))
    with (folder / "trace-4242.jsonl").open("a") as file:
        file.write('{"resourceSpans":[')
    assert main(["show", "runs/42", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "loadspan show: runs/42/trace-4242.jsonl line 5 is incomplete. Showing the 4 lines before it.\n"
    assert json.loads(captured.out)


def test_no_arguments_print_the_help_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for expected in ("loadspan run -- python serve.py", "show", "run", "demo"):
        assert expected in captured.err


@pytest.mark.parametrize("command", ["run", "show", "demo"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "default" in capsys.readouterr().out


def test_a_pipe_that_closes_early_is_no_traceback(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "trace-1.jsonl").write_text(
        "".join(traces.line(traces.span("load model", f"{i:x}", None, i, i + 1)) for i in range(1, 20_000))
    )
    shown = subprocess.Popen([sys.executable, "-m", "loadspan", "show", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert shown.stdout is not None
    assert shown.stderr is not None
    assert shown.stdout.readline().startswith(b"load model")
    shown.stdout.close()
    assert shown.wait(60) == 141
    assert shown.stderr.read() == b""
    shown.stderr.close()


def test_an_ascii_terminal_gets_ascii(tmp_path: Path) -> None:
    record(tmp_path / "run")
    environ = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shown = subprocess.run(
        [sys.executable, "-m", "loadspan", "show", "run", "--width", "80"], capture_output=True, env=environ, check=True, timeout=60
    )
    assert b"  decrypt          #####################----------    8.00 s  20.0 GB  2.50 GB/s\n" in shown.stdout
