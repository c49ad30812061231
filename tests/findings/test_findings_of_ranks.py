"""Ranks that load the same: who was late, and what all of them read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadspan import names
from loadspan.findings import ranks
from loadspan.model import Load, Stage
from loadspan.report.ranks import lines
from loadspan.report.terminal import Look

if TYPE_CHECKING:
    from loadspan.model import Span, Value

MB = 10**6
WIDE = Look(width=300)


def stage(name: str, size: int | None = None, path: str | None = "/models/base.safetensors", **attributes: Value) -> Stage:
    told = {names.SIZE: size, names.FILE_PATH: path, names.FILE_SIZE: 100 * MB, **attributes}
    known = {key: value for key, value in told.items() if value is not None}
    return Stage(name=name, span_id="", parent_id=None, start=0, end=1, attributes=known)


def of_rank(
    rank: int,
    seconds: float,
    *children: Span,
    size: int = 4,
    start: float = 0.0,
    pid: int | None = None,
    model: str | None = "base",
    **parts: float,
) -> Load:
    attributes: dict[str, Value] = {names.RANK: rank, names.WORLD_SIZE: size, names.LOAD_ID: "job"}
    if model:
        attributes[names.MODEL_NAME] = model
    attributes |= {names.partition(name): value for name, value in {"other": 0.0, **parts}.items()}
    begin = int(start * 1e9) + 1
    return Load(
        name=names.LOAD_SPAN,
        span_id=f"{rank}-{start}-{model}",
        parent_id=None,
        start=begin,
        end=begin + int(seconds * 1e9),
        attributes=attributes,
        children=children,
        trace_id=f"{rank}",
        pid=1000 + rank if pid is None else pid,
    )


def four(*seconds: float) -> list[Load]:
    return [of_rank(rank, took, stage("read", 100 * MB), read=took) for rank, took in enumerate(seconds)]


def told(loads: list[Load]) -> dict[str, str]:
    (group,) = ranks.groups(loads)
    return {finding.id: finding.sentence for finding in ranks.find(group)}


def test_the_slowest_rank_is_named_with_its_excess_and_the_stage_it_was_longer_in() -> None:
    loads = four(2.0, 2.2, 5.0, 2.1)
    (group,) = ranks.groups(loads)
    assert (group.slowest, group.name, group.world_size) == (2, "base", 4)
    assert group.excess == pytest.approx(2.9)
    assert group.longer == [("read", pytest.approx(2.9))]
    assert lines(loads, WIDE)[:2] == [
        "4 ranks  base  slowest rank 2: 5.00 s  2.90 s over the median of the others  read +2.90 s",
        "  base.safetensors read by 4 ranks, 400 MB in all",
    ]
    assert told(loads) == {
        "straggler": "Look at rank 2, for which the others wait: its load took 5.00 s, the median of the other 3 is 2.10 s: "
        "2.90 s more in read.",
        "file-read-by-ranks": "Have one rank read base.safetensors and hand the weights to the others, or let each read only its part: "
        "4 ranks read 400 MB in all where the files have 100 MB, and the slowest rank spent 5.00 s of 5.00 s on it.",
    }


@pytest.mark.parametrize("seconds", [(2.0, 2.2, 2.6, 2.1), (0.1, 0.1, 0.9, 0.1)], ids=["not by much", "not for long"])
def test_a_rank_that_is_hardly_behind_is_no_straggler(seconds: tuple[float, ...]) -> None:
    assert "straggler" not in told(four(*seconds))


def test_ranks_that_read_their_own_part_do_not_read_again() -> None:
    loads = [of_rank(rank, 2.0, stage("read", 25 * MB), read=2.0) for rank in range(4)]
    assert told(loads) == {}
    assert "base.safetensors read by 4 ranks, 100 MB in all" in lines(loads, WIDE)[1]


def test_files_of_their_own_are_not_told_of() -> None:
    loads = [of_rank(rank, 2.0, stage("read", 100 * MB, f"/models/{rank}"), read=2.0) for rank in range(4)]
    assert told(loads) == {}
    assert len(lines(loads, WIDE)) == 1


def test_what_reads_inside_a_call_that_reads_is_counted_once() -> None:
    inner = stage("read", 100 * MB)
    outer = Stage(
        name="deserialize",
        span_id="",
        parent_id=None,
        start=0,
        end=1,
        attributes=stage("deserialize", 100 * MB).attributes,
        children=(inner,),
    )
    (group,) = ranks.groups([of_rank(rank, 2.0, outer) for rank in range(4)])
    assert [file.total for file in group.files] == [400 * MB]


def test_several_files_of_a_stage_are_counted() -> None:
    shards = [of_rank(rank, 2.0, stage("read", 100 * MB, "/m/a-00001", **{names.FILE_COUNT: 3})) for rank in range(2)]
    (group,) = ranks.groups(shards)
    assert [file.name for file in group.files] == ["a-00001 and 2 others"]


def test_each_load_of_a_rank_belongs_to_those_of_the_others_by_its_place() -> None:
    first = [of_rank(rank, 1.0, start=0.1 * rank) for rank in range(4)]
    second = [of_rank(rank, 2.0, start=5.0 + 0.1 * rank) for rank in range(4)]
    early = of_rank(0, 1.0, start=0.01, model="lora")
    found = ranks.groups([*second, early, *first])
    assert [[load.start for load in group.loads.values()] for group in found] == [[load.start for load in each] for each in (first, second)]


def test_a_group_that_was_started_anew_is_another_group() -> None:
    first = [of_rank(rank, 1.0) for rank in range(4)]
    again = [of_rank(rank, 1.0, start=9.0, pid=2000 + rank) for rank in range(4)]
    assert [len(group.loads) for group in ranks.groups([*first, *again])] == [4, 4]


def test_ranks_below_a_load_of_their_launcher_are_found() -> None:
    loads = tuple(of_rank(rank, 1.0) for rank in range(4))
    launcher = Load(name=names.LOAD_SPAN, span_id="l", parent_id=None, start=1, end=10**10, children=loads, trace_id="1", pid=1)
    assert [list(group.loads) for group in ranks.groups([launcher])] == [[0, 1, 2, 3]]


def test_ranks_that_are_missing_are_counted() -> None:
    assert lines(four(2.0, 2.0, 2.0), WIDE)[0].startswith("3 of 4 ranks  base")


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {names.RANK: 0},
        {names.RANK: 0, names.WORLD_SIZE: 0},
        {names.RANK: float("nan"), names.WORLD_SIZE: 4},
        {names.RANK: -1, names.WORLD_SIZE: 4},
    ],
    ids=str,
)
def test_a_load_of_no_group_is_in_none(attributes: dict[str, Value]) -> None:
    loads = [
        Load(name=names.LOAD_SPAN, span_id=str(number), parent_id=None, start=1, end=10**10, attributes=attributes, trace_id="", pid=number)
        for number in range(3)
    ]
    assert ranks.groups(loads) == []
    assert lines(loads, WIDE) == []


def test_a_load_that_never_ended_is_no_rank_of_a_group() -> None:
    loads = four(2.0, 2.0, 2.0)
    killed = Load(
        name=names.LOAD_SPAN, span_id="k", parent_id=None, start=1, end=None, attributes=of_rank(3, 1.0).attributes, trace_id="", pid=9
    )
    (group,) = ranks.groups([*loads, killed])
    assert list(group.loads) == [0, 1, 2]


def test_names_from_strangers_have_no_power_over_the_terminal() -> None:
    loads = [of_rank(rank, 2.0, stage("read", 100 * MB, "/m/\x1b[31mred"), model="\x1b[2J") for rank in range(2)]
    assert "\x1b" not in "".join(lines(loads, WIDE))
