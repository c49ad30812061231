"""The harness sees what is wrong: a wrong number, a missing stage, another result, exception or output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import broken
import conform
import digest
import environments
import halves
import judge as judging
import pytest
import table
from judge import NotRun, Outcome, judge

from loadspan.model import Load, Stage

if TYPE_CHECKING:
    from case import Case

HERE = Path(__file__).parent


@pytest.fixture
def uncovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads of 50 ms are too short to say anything of their coverage."""
    monkeypatch.setattr(judging, "COVERED", 0)


@pytest.mark.usefixtures("uncovered")
@pytest.mark.parametrize("case", broken.RIGHT, ids=lambda case: case.name)
def test_what_is_right_is_ok(case: Case, tmp_path: Path) -> None:
    assert halves.run("broken", case, tmp_path).wrong == []


@pytest.mark.usefixtures("uncovered")
@pytest.mark.parametrize("wrong", broken.WRONG, ids=lambda wrong: broken.WRONG[wrong].name)
def test_what_is_wrong_is_said(wrong: str, tmp_path: Path) -> None:
    outcome = halves.run("broken", broken.WRONG[wrong], tmp_path)
    assert len(outcome.wrong) == 1, outcome.wrong
    assert wrong in outcome.wrong[0]


# Loads that no program here makes


def load_of(*stages: Stage, end: int | None = 1_000_000_000, **attributes: float) -> Load:
    found = {"loadspan.loader": "made", "loadspan.coverage": 1.0, "loadspan.partition.read": 1.0, **attributes}
    return Load(name="load model", span_id="1", parent_id=None, start=0, end=end, attributes=found, children=stages, trace_id="1", pid=1)


def stage_of(name: str = "read", start: int = 0, end: int | None = 1_000_000_000, **attributes: Any) -> Stage:
    return Stage(name=name, span_id="2", parent_id="1", start=start, end=end, attributes={"loadspan.size": 8, **attributes})


@pytest.mark.parametrize(
    ("load", "wrong"),
    [
        (load_of(stage_of()), None),
        (load_of(stage_of(), end=None), "a load without an end"),
        (load_of(stage_of(), **{"loadspan.partition.other": 0.02}), "the parts are 1.0200 s, the load 1.0000 s"),
        (load_of(stage_of(end=None)), "read without an end"),
        (load_of(stage_of(end=1_003_000_000)), "read is not inside load model"),
        (load_of(stage_of(start=-3_000_000)), "read is not inside load model"),
        (load_of(stage_of(**{"loadspan.deferred": True, "loadspan.throughput": 8.0})), "read whose bytes come later has a throughput"),
        (load_of(stage_of(), stage_of("weights.0")), "a span named weights.0"),
        (load_of(stage_of(), **{"loadspan.coverage": 0.98999}), "coverage 99.00 %"),
    ],
)
def test_what_no_load_may_be_is_wrong_whatever_was_loaded(load: Load, wrong: str | None) -> None:
    outcome = judge(broken.a_case("any"), {"read": 8}, [load], raised="", different="")
    assert outcome.wrong == ([] if wrong is None else [wrong])


def test_no_load_at_all_is_wrong() -> None:
    outcome = judge(broken.a_case("any"), {"read": 8}, [], raised="", different="")
    assert outcome.wrong == ["0 loads, not 1", "no stage read", "bytes: read 0, not 8"]


# What counts as the same


def tensors() -> dict[str, Any]:
    import torch

    one = torch.arange(6.0)
    return {
        "one": one,
        "the same values": torch.arange(6.0),
        "a bit": torch.arange(6.0).nextafter(torch.tensor(9.0)),
        "another sign of zero": -torch.arange(6.0),
        "another type": one.double(),
        "another shape": one.reshape(2, 3),
        "other strides": one.reshape(2, 3).t().contiguous().t().reshape(6).expand(1, 6)[0][::1].as_strided((6,), (0,)),
        "a parameter": torch.nn.Parameter(one),
        "frozen": torch.nn.Parameter(one, requires_grad=False),
        "sparse": one.to_sparse(),
        "on meta": one.to("meta"),
        "bfloat16": one.bfloat16(),
        "quantized": torch.quantize_per_tensor(one, 0.5, 0, torch.qint8),
        "quantized otherwise": torch.quantize_per_tensor(one, 0.25, 0, torch.qint8),
        "an array": one.numpy(),
        "text": "one",
        "none": None,
    }


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning", "ignore:.*deprecated:UserWarning")
def test_things_that_differ_in_a_bit_or_in_their_kind_differ() -> None:
    found = {name: "\n".join(digest.of(thing)) for name, thing in tensors().items()}
    same = {(one, other) for one in found for other in found if one < other and found[one] == found[other]}
    assert same == {("one", "the same values")}


def modules() -> dict[str, Any]:
    import torch

    def made(*, tied: bool = False) -> Any:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
        module[1].weight = module[0].weight if tied else torch.nn.Parameter(module[0].weight.detach().clone())
        return module

    hooked, marked, evaluated, buffered, viewed = (made() for _ in range(5))
    hooked[0].register_forward_hook(lambda *_: None)
    marked[0].__loadspan__ = 1
    evaluated[1].eval()
    buffered.register_buffer("more", torch.zeros(1), persistent=False)
    viewed[1].weight.data = viewed[0].weight.data.view(4, 4)
    return {
        "plain": made(),
        "again": made(),
        "tied": made(tied=True),
        "hooked": hooked,
        "marked": marked,
        "evaluated": evaluated,
        "buffered": buffered,
        "viewed": viewed,
    }


def test_modules_that_are_tied_hooked_marked_or_set_otherwise_differ() -> None:
    found = {name: "\n".join(digest.of(module)) for name, module in modules().items()}
    assert {(one, other) for one in found for other in found if one < other and found[one] == found[other]} == {("again", "plain")}


def test_of_what_is_said_only_what_is_the_same_each_time_is_compared() -> None:
    text = "Loading:  50%|#####  | 1/2 [00:00<00:00, 9.1it/s]\rLoading: 100%|####| 2/2\n12:03:04 <Thing at 0x7f00> is slow\nplain\n\n"
    assert halves.spoken(text) == ["~ <Thing at ~> is slow", "plain"]
    assert halves.spoken("Loading: 0%|   | 0/5 [00:00<?, ?it/s]\rLoading: 40%|█  | 2/5 [00:00<00:00, 12.2it/s]told\n") == ["told"]


# The command


def command(*words: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, HERE / "conform.py", *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_name_that_no_case_has_is_an_error_and_not_a_success() -> None:
    code, said = command("--only", "nobody has this")
    assert (code, said.strip()) == (2, "environment core: no case is named nobody has this")


def test_an_unknown_environment_is_an_error() -> None:
    code, said = command("--environment", "nowhere")
    assert code == 2
    assert "no environment nowhere; there are core, " in said


ROWS = [
    {"library": "one", "name": "not here", "why": "needs more"},
    conform.asdict(
        Outcome(library="two", version="1.0", name="wrong | so", wrong=["raises X", "6 spans"], coverage=0.5, off=-0.5, spans=6)
    ),
    conform.asdict(
        Outcome(
            library="three",
            version="2",
            name="right",
            wrong=[],
            stages=["read"],
            size=2_000_000,
            off=0.0,
            coverage=1,
            spans=2,
            identical=True,
        )
    ),
]


def test_the_table_on_the_terminal_says_of_each_case_what_became_of_it() -> None:
    lines = [line.rstrip() for line in table.terminal(ROWS).splitlines()]
    assert lines == [
        "library  way of loading  loader  stages   bytes       off  coverage  spans  identical  verdict",
        "-------  --------------  ------  ------  ------  --------  --------  -----  ---------  -------",
        "one      not here                                                                      not run",
        "two 1.0  wrong | so                              -50.00 %    50.0 %      6  no         WRONG",
        "three 2  right                   read    2.0 MB         0   100.0 %      2  yes        ok",
        "",
        "one, not here: not run: needs more",
        "two, wrong | so: raises X; 6 spans",
        "",
        "3 cases: 1 ok, 1 wrong, 1 not run",
    ]


def test_a_part_of_the_cases_replaces_its_rows_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(table, "PAGE", tmp_path / "page.md")
    table.write("core", "Python 3", ROWS, whole=True)
    table.write("core", "Python 3", [{"library": "one", "name": "not here", "why": "changed"}, {**ROWS[2], "name": "new"}], whole=False)
    assert [(row["name"], row.get("why")) for row in table.kept("core")] == [
        ("not here", "changed"),
        ("wrong | so", None),
        ("right", None),
        ("new", None),
    ]
    page = (tmp_path / "page.md").read_text()
    assert page == table.page()
    assert "Python 3. 4 cases: 2 ok, 1 wrong, 1 not run." in page
    assert "| two 1.0 | wrong \\| so |" in page
    table.write("core", "Python 3", ROWS[:1], whole=True)
    assert len(table.kept("core")) == 1


@pytest.mark.parametrize(("rows", "code"), [(ROWS, 1), (ROWS[::2], 0), (ROWS[:1], 2), ([], 2)])
def test_the_exit_code_tells_wrong_from_not_run(rows: list[dict[str, Any]], code: int) -> None:
    assert conform._code(rows) == code  # noqa: SLF001 - what the command ends with


def test_a_case_that_needs_another_version_is_not_run() -> None:
    case = broken.a_case("any", needs=("json", "packaging>=1", "packaging>=10000", "no_such_module.at_all", "no-such-thing>=1"))
    outcome = conform.outcome_of("broken", case, Path("/nowhere"))
    assert outcome == NotRun(library="loadspan", name="any", why="needs packaging>=10000, no_such_module.at_all, no-such-thing>=1")


def test_cases_share_files_only_if_they_write_the_same() -> None:
    def writer(_: int) -> Any:
        return lambda folder: {}  # noqa: ARG005 - a case's signature

    assert broken.a_case("one").files == broken.a_case("other").files
    assert broken.a_case("one", writing=writer(1)).files != broken.a_case("other", writing=writer(2)).files


# Environments


@pytest.mark.parametrize("name", environments.others())
def test_the_file_of_an_environment_pins_what_it_names(name: str) -> None:
    from packaging.requirements import Requirement

    text = (environments.FILES / f"{name}.txt").read_text()
    assert environments.python_of(text).startswith("3.")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    wanted = [Requirement(line) for line in lines]
    assert wanted
    assert [str(one) for one in wanted if [part.operator for part in one.specifier] != ["=="]] == []
    assert len({one.name for one in wanted}) == len(wanted)


def test_an_environment_that_cannot_be_made_is_printed_as_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "odd.txt").write_text("# python 2.1\nnothing==1\n")
    monkeypatch.setattr(environments, "FILES", tmp_path / "files")
    monkeypatch.setattr(environments, "CACHE", tmp_path / "cache")
    with pytest.raises(environments.CannotBeMade, match=r"^venv -q: error: .*2\.1"):
        environments.make("odd")
    assert not environments.is_made("odd")


def test_an_environment_is_another_one_when_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "FILES", tmp_path)
    (tmp_path / "odd.txt").write_text("one==1\n")
    before = environments.place("odd")
    (tmp_path / "odd.txt").write_text("one==2\n")
    assert environments.place("odd") != before


def test_results_are_kept_as_json_of_rows() -> None:
    for file in table.RESULTS.glob("*.json"):
        kept = json.loads(file.read_text())
        assert set(kept) == {"versions", "rows"}
        assert file.stem in environments.known()
