"""The throughput curve stays small and true however long a load takes."""

from __future__ import annotations

from itertools import pairwise

import pytest

import loadspan
from loadspan import names
from loadspan.instrument.curve import MOST, Curve, Point


def curve(count: int, step: float = 0.1) -> dict[str, tuple[float, ...]]:
    drawn = Curve()
    for number in range(count):
        drawn.add(Point(number * step, number * 1000, number * 2000, number * 3000, {"vda": number}))
    return drawn.attributes()


@pytest.mark.parametrize("count", [2, 3, MOST - 1, MOST, MOST + 1, 2 * MOST, 1000, 36_000])
def test_it_has_at_most_its_points_and_always_the_first_and_the_last(count: int) -> None:
    found = curve(count)
    times = found[names.CURVE_TIME]
    assert 2 <= len(times) <= MOST
    assert (times[0], times[-1]) == (0, round((count - 1) * 0.1, 3))
    assert found[names.CURVE_SIZE][-1] == (count - 1) * 1000
    assert all(len(values) == len(times) for values in found.values())
    assert list(times) == sorted(set(times))


def test_points_are_spread_evenly_and_lie_on_the_line_they_were_taken_from() -> None:
    found = curve(10_000)
    times, sizes = found[names.CURVE_TIME], found[names.CURVE_SIZE]
    gaps = [after - before for before, after in pairwise(times[:-1])]
    assert max(gaps) < 2.5 * min(gaps)
    assert all(size == pytest.approx(at * 10_000) for at, size in zip(times, sizes, strict=True))


def test_a_pause_in_which_nothing_was_sampled_leaves_no_invented_points() -> None:
    drawn = Curve()
    for at in (0.0, 0.1, 9.0, 9.1):
        drawn.add(Point(at, int(at * 10)))
    assert drawn.attributes()[names.CURVE_TIME] == (0.0, 0.1, 9.0, 9.1)


def test_one_point_is_no_curve_and_points_that_go_back_in_time_are_none() -> None:
    drawn = Curve()
    drawn.add(Point(0.0, 0))
    assert drawn.attributes() == {}
    drawn.add(Point(0.0, 5))
    assert drawn.attributes() == {}


def test_a_count_that_the_kernel_does_not_tell_is_no_line_of_zeros() -> None:
    drawn = Curve()
    drawn.add(Point(0.0, 0, 0, None))
    drawn.add(Point(0.1, 7, 9, None))
    assert set(drawn.attributes()) == {names.CURVE_TIME, names.CURVE_SIZE, names.CURVE_READ}


def test_a_disk_that_was_met_later_had_delivered_nothing_before() -> None:
    drawn = Curve()
    drawn.add(Point(0.0, 0))
    drawn.add(Point(0.1, 7, disks={"sda": 5}))
    assert drawn.attributes()[names.curve_of_disk("sda")] == (0, 5)


@pytest.mark.usefixtures("spans")
def test_the_bytes_of_a_load_never_become_fewer_and_those_of_open_stages_count() -> None:
    from loadspan.instrument.live import recorder

    def so_far() -> int:
        (load,) = recorder.loads
        return load.progress([stage for stage in recorder.stages if stage.load is load])

    seen = [0]
    with loadspan.load("model"):
        for _ in range(2):
            with loadspan.stage("read") as stage:
                stage.add(50)
                seen.append(so_far())
                stage.add(50)
        with loadspan.stage("decrypt", size=80):
            pass
        seen.append(so_far())
        with loadspan.stage("deserialize", size=200):
            pass
        seen.append(so_far())
        with loadspan.stage("to_device", size=400):
            pass
        seen.append(so_far())
    assert seen == [0, 50, 150, 200, 200, 200]
