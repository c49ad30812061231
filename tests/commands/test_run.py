"""`loadspan run` with real child processes, which write the run folder themselves where they stand for an instrumented program."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadspan.commands import main
from loadspan.commands.run import make_folder, name_of
from loadspan.errors import UserError

HELPERS = Path(__file__).resolve().parents[1] / "report"
PRELUDE = f"""
import json, os, pathlib, signal, sys, time
sys.path.insert(0, {str(HELPERS)!r})
import traces
folder, pid = pathlib.Path(os.environ["LOADSPAN_DIR"]), os.getpid()
traces.EPOCH = time.time_ns() - 10**9

def append(*spans):
    with (folder / f"trace-{{pid}}.jsonl").open("a") as file:
        file.write(traces.line(*spans, pid=pid))

def load(number, name):
    append(traces.span("read", f"b{{number}}", f"a{{number}}", 0, 1, trace=str(number), loadspan__size=traces.GB))
    append(traces.span("load model", f"a{{number}}", None, 0, 1, trace=str(number), loadspan__model__name=name))
"""


def run(*command: str, options: tuple[str, ...] = ("-o", "run"), **more: object) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **{key: str(value) for key, value in more.items()}}
    argv = [sys.executable, "-m", "loadspan", "run", *options, "--", *command]
    return subprocess.run(argv, capture_output=True, text=True, env=environ, timeout=120, check=False)


def python(code: str) -> tuple[str, ...]:
    """A program that is not itself instrumented: it writes what an instrumented one would."""
    return (sys.executable, "-S", "-c", PRELUDE + code)


def test_one_load_prints_its_waterfall_and_the_next_command() -> None:
    done = run(*python('load(1, "sdxl")'))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        "loadspan: recording to run\n"
        "\n"
        "load model  sdxl  1.00 s\n"
        "  read             ██████████████████████████████████████████"
        "█████████    1.00 s  1.00 GB\n"
        "\n"
        "loadspan: show it again with: loadspan show run\n"
    )


def test_several_loads_are_summed_up_at_the_end() -> None:
    done = run(*python('load(1, "base"); time.sleep(0.5); load(2, "lora")'))
    assert done.stderr.endswith("2 loads\n  base      1.00 s\n  lora      1.00 s\n\nloadspan: show it again with: loadspan show run\n")
    assert done.stderr.count("load model") == 2


def test_a_waterfall_appears_while_the_command_still_runs() -> None:
    argv = [sys.executable, "-m", "loadspan", "run", "-o", "run", "--", *python('load(1, "sdxl"); sys.stdin.read()')]
    running = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    assert [running.stderr.readline() for _ in range(3)] == ["loadspan: recording to run\n", "\n", "load model  sdxl  1.00 s\n"]
    assert running.poll() is None
    running.communicate("", timeout=60)
    assert running.returncode == 0


def test_the_command_keeps_streams_arguments_folder_and_exit_code() -> None:
    code = (
        "import os, sys; sys.stdout.buffer.write(sys.stdin.buffer.read()); print('to stderr', file=sys.stderr);"
        " print(sys.argv[1:], os.getcwd()); sys.exit(7)"
    )
    argv = [sys.executable, "-S", "-c", code, "--quiet", "-o", "x y", "--"]
    wrapped = [sys.executable, "-m", "loadspan", "run", "--quiet", "--", *argv]
    expected, done = (subprocess.run(words, input=b"\x00\xff\n", capture_output=True, check=False, timeout=60) for words in (argv, wrapped))
    assert (done.returncode, done.stdout, done.stderr) == (expected.returncode, expected.stdout, expected.stderr)


def test_the_command_finds_the_signals_a_shell_would_give_it() -> None:
    words = ("/bin/grep", "-E", "SigBlk|SigIgn", "/proc/self/status")
    expected = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    done = run(*words, options=("--quiet",))
    # 32 and 33 are glibc's own: its posix_spawn ignores them, and every program's start puts that right.
    below_32 = [[int(line.split()[1], 16) & 0x7FFFFFFF for line in text.splitlines()] for text in (expected, done.stdout)]
    assert below_32 == [[0, 0], [0, 0]]


def test_the_environment_instruments_python_programs() -> None:
    shown = ("PYTHONPATH", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER", "OTEL_SERVICE_NAME", "LOADSPAN_DIR")
    code = f"import os, json; print(json.dumps([os.environ.get(name) for name in {shown}]))"
    done = run(sys.executable, "-S", "-c", code, options=("-o", "run", "--quiet"), PYTHONPATH="/mine", OTEL_TRACES_EXPORTER="otlp")
    path, traces_to, metrics, logs, service, folder = json.loads(done.stdout)
    hook, mine = path.split(":")
    assert (Path(hook) / "sitecustomize.py").is_file()
    assert (mine, traces_to, metrics, logs, service) == ("/mine", "otlp,loadspan", "none", "none", Path(sys.executable).name)
    assert folder == str(Path("run").absolute())
    for given, expected in (("none", "loadspan"), ("", "loadspan"), ("loadspan, console", "console,loadspan")):
        again = run(sys.executable, "-S", "-c", code, options=("--quiet",), OTEL_TRACES_EXPORTER=given, OTEL_SERVICE_NAME="mine")
        assert json.loads(again.stdout)[1] == expected
        assert json.loads(again.stdout)[4] == "mine"


def test_a_killed_command_is_reported_with_what_it_was_doing() -> None:
    code = """
stage = {"name": "read", "start": traces.at(0), "size": 12_300_000_000, "file_size": 20_100_000_000, "file": "base.enc"}
append(traces.span("decrypt", "b1", "a1", 0, 0.5))
traces.write_state(folder, pid, [traces.open_load("a1", 0, stage, model="sdxl")], updated=1)
os.kill(pid, signal.SIGKILL)
"""
    done = run(*python(code))
    assert done.returncode == 128 + 9
    lines = done.stderr.splitlines()
    name = name_of([sys.executable])
    assert lines[1] == f"loadspan: {name} was killed by SIGKILL"
    assert re.fullmatch(r"load model  sdxl  died in read at 12\.3 of 20\.1 GB after 1\.00 s  \(process \d+\)", lines[3])
    record = json.loads(Path("run/run.json").read_text())
    assert (record["exit_code"], record["signal"], record["command"][1]) == (None, "SIGKILL", "-S")


def test_loads_of_child_processes_are_included() -> None:
    code = """
child = os.fork()
pid = os.getpid()
load(1 if child else 2, "parent" if child else "child")
if child: os.waitpid(child, 0)
"""
    done = run(*python(code))
    assert "load model  parent" in done.stderr
    assert "load model  child" in done.stderr
    assert "2 loads" in done.stderr


def test_a_run_without_loads_says_why_that_may_be() -> None:
    done = run("true")
    assert done.returncode == 0
    assert done.stderr.splitlines()[1] == (
        f"loadspan: no load recorded. Either it loads no model, or it does not run {sys.executable}, "
        "or it runs it with -I, -E, -S or without our environment."
    )


def test_a_folder_that_becomes_unwritable_or_vanishes_does_not_hurt_the_command() -> None:
    done = run("sh", "-c", 'rm -rf "$LOADSPAN_DIR"; sleep 0.5; echo fine; exit 3')
    assert (done.returncode, done.stdout) == (3, "fine\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 15), (signal.SIGINT, 12), (signal.SIGUSR1, 11)])
def test_a_signal_sent_to_us_reaches_the_command_once(number: int, code: int) -> None:
    program = f"""
got = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: got.append(number))
print("ready", flush=True)
end = time.monotonic() + 20
while not got and time.monotonic() < end: time.sleep(0.02)
time.sleep(0.5)
sys.exit({code} if got == [{int(number)}] else 99)
"""
    argv = [sys.executable, "-m", "loadspan", "run", "--quiet", "--", *python(program)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(number)
        assert running.wait(60) == code


def test_interrupt_ends_us_by_the_same_signal_so_that_a_shell_loop_ends() -> None:
    done = run("sh", "-c", "kill -INT $$", options=("--quiet",))
    assert done.returncode == -signal.SIGINT


def test_on_a_terminal_progress_is_drawn_and_control_c_is_delivered_once() -> None:
    program = """
got = []
signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
start = time.monotonic()
print("ready", flush=True)
while time.monotonic() - start < 2:
    now = (time.time_ns() - traces.EPOCH) / 1e9
    stage = {"name": "read", "start": traces.at(0), "size": int(now * 1e9), "file_size": 20_000_000_000, "file": "base.enc"}
    traces.write_state(folder, pid, [traces.open_load("a1", 0, stage, model="sdxl")], updated=now)
    time.sleep(0.1)
print("interrupts:", len(got), flush=True)
traces.write_state(folder, pid, [], updated=now, ended=True)
"""
    pid, terminal = pty.fork()
    if pid == 0:
        environ = {**os.environ, "TERM": "xterm", "LINES": "24"}
        os.execve(sys.executable, [sys.executable, "-m", "loadspan", "run", "-o", "run", "--", *python(program)], environ)  # noqa: S606 - no shell is the point
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    output, interrupted, end = b"", False, time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                output += os.read(terminal, 65536)
            except OSError:  # the other side is gone
                break
        if b"base.enc" in output and not interrupted:
            interrupted = True
            os.write(terminal, b"\x03")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = output.decode()
    assert "interrupts: 1" in text
    assert re.search(r"sdxl.*read.*of 20\.0 GB.*1\.\d\d GB/s", text)
    # The scroll region is given back, after the last progress line.
    assert text.rindex("\x1b[r") > text.rindex("GB/s")


def test_the_default_folder_is_new_private_and_named_after_the_program(capfd: pytest.CaptureFixture[str]) -> None:
    Path("serve.py").write_text("print('hi')")
    for _ in range(2):
        assert main(["run", "--", sys.executable, "-S", "serve.py"]) == 0
    assert capfd.readouterr().out == "hi\nhi\n"
    folders = sorted(Path("loadspan-runs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}-serve(-2)?", folder.name)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        record = json.loads((folder / "run.json").read_text())
        assert record.keys() == {"version", "command", "started", "ended", "exit_code", "signal", "loadspan", "python", "host"}
        assert (record["version"], record["exit_code"], record["command"][2]) == (1, 0, "serve.py")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no command. Say what to run: loadspan run -- python serve.py"),
        (["--"], "no command. Say what to run: loadspan run -- python serve.py"),
        (["--", "no-such-program"], "no-such-program: command not found. Check the name and PATH."),
        (["--", "./notes.txt"], "./notes.txt: not executable. Check the name and PATH."),
        (["--", "serve.py"], "serve.py: command not found. Put its interpreter in front: python serve.py"),
        (["-o", "used", "--", "true"], "used: holds a run already. Name another folder with -o, or remove this one."),
        (["-o", "notes.txt", "--", "true"], "notes.txt: not a folder. Name another with -o."),
        (["-o", "notes.txt/x", "--", "true"], "notes.txt/x: not a folder. Name another with -o."),
        (["--frob", "--", "true"], "unrecognized arguments: --frob. See loadspan --help"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(argv: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("notes.txt", "serve.py"):
        Path(name).write_text("x")
    Path("used").mkdir()
    Path("used/run.json").write_text("{}")
    assert main(["run", *argv]) == 2
    assert capfd.readouterr() == ("", f"loadspan run: {message}\n")
    assert not Path("loadspan-runs").exists()


def test_a_program_that_cannot_be_executed_leaves_no_run_behind(capfd: pytest.CaptureFixture[str]) -> None:
    Path("noise").write_bytes(b"\x7fELFnoise")
    Path("noise").chmod(0o755)
    assert main(["run", "--", "./noise"]) == 2
    assert capfd.readouterr().err.splitlines()[-1] == "loadspan run: ./noise: exec format error. Check that it is a program."
    assert not list(Path("loadspan-runs").iterdir())


def test_a_setting_with_an_unknown_value_is_refused_and_an_unknown_name_is_warned_about() -> None:
    done = run("true", LOADSPAN_FILE_READS="maybe")
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        ["loadspan run: LOADSPAN_FILE_READS=maybe: unknown value. Set it to on or off."],
    )
    done = run("true", LOADSPAN_FILE_READ="on")
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "loadspan run: LOADSPAN_FILE_READ: unknown variable, ignored. Did you mean LOADSPAN_FILE_READS?"


def test_an_existing_folder_without_a_run_is_used_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o755)
    (folder / "notes.txt").write_text("x")
    assert make_folder(folder, "serve") == folder
    (folder / "trace-1.jsonl").write_text("")
    with pytest.raises(UserError, match="holds a run already"):
        make_folder(folder, "serve")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python serve.py --port 80", "serve"),
        ("/usr/bin/python3.11 -u -X dev app/serve.py", "serve"),
        ("python -m vllm.entrypoints", "vllm.entrypoints"),
        ("python -c pass", "python"),
        ("torchrun train.py", "torchrun"),
        ("./../weird$name/..", "run"),
    ],
)
def test_a_run_is_named_after_what_runs(command: str, name: str) -> None:
    assert name_of(command.split()) == name


@pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&- <&-", "2>/dev/full", ">/dev/full 2>&1"])
def test_closed_or_full_standard_streams_cost_the_command_nothing(redirection: str) -> None:
    line = f"{sys.executable} -m loadspan run -o run -- sh -c 'exit 5' {redirection}"
    assert subprocess.run(line, shell=True, check=False, timeout=60).returncode == 5  # noqa: S602 - a shell makes these streams
    assert json.loads(Path("run/run.json").read_text())["exit_code"] == 5
