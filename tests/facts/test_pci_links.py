"""The links on the way to a device, and what is said of them. What is expected was read off the drawing at the head of each machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loadspan.facts import pci
from loadspan.facts.links import Lanes, Link, LinkReader, Verdict, best, links, narrowest, verdict
from loadspan.facts.tree import HERE, Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    Machine = Callable[[str], Tree]

GB = 1e9


def table(tree: Tree, address: str) -> list[str]:
    return [str(link) for link in links(tree, address)]


# GB/s of one direction, to the digits of the usual table.
RATES = {
    1: {1: 0.25, 4: 1.0, 8: 2.0, 16: 4.0},
    2: {1: 0.5, 4: 2.0, 8: 4.0, 16: 8.0},
    3: {1: 0.985, 4: 3.94, 8: 7.88, 16: 15.75},
    4: {1: 1.97, 4: 7.88, 8: 15.75, 16: 31.51},
    5: {1: 3.94, 4: 15.75, 8: 31.51, 16: 63.02},
    6: {1: 7.56, 4: 30.25, 8: 60.5, 16: 121.0},
}


def test_a_link_carries_what_its_transfers_leave_after_their_encoding() -> None:
    for generation, row in RATES.items():
        for width, rate in row.items():
            assert Lanes(generation, width).bandwidth == pytest.approx(rate * GB, rel=0.002), (generation, width)
    assert (Lanes(4).bandwidth, Lanes(None, 16).bandwidth) == (None, None)


def test_links_join_ports_to_what_is_below_them_and_not_the_ports_of_a_switch(machine: Machine) -> None:
    assert table(machine("desktop"), "0000:01:00.0") == ["0000:00:01.0 0000:01:00.0 Gen4 x16 of Gen4 x16"]
    assert table(machine("cascaded"), "0000:48:00.0") == [
        "0000:40:01.1 0000:41:00.0 Gen4 x16 of Gen4 x16",
        "0000:42:02.0 0000:45:00.0 Gen4 x8 of Gen4 x8",
        "0000:46:01.0 0000:48:00.0 Gen4 x16 of Gen4 x16",
    ]
    assert table(machine("two-sockets"), "0000:8c:00.0") == [
        "0000:89:01.0 0000:8a:00.0 Gen5 x16 of Gen5 x16",
        "0000:8b:00.0 0000:8c:00.0 Gen5 x16 of Gen5 x16",
    ]
    assert table(machine("missing-bridge"), "0000:1b:00.0") == [
        "0000:17:00.0 0000:18:00.0 Gen3 x16 of Gen3 x16",
        "0000:19:01.0 0000:1b:00.0 Gen3 x16 of Gen3 x16",
    ]


def test_links_of_a_domain_below_another_begin_at_its_own_ports(machine: Machine) -> None:
    tree = machine("long-domain")
    assert table(tree, "10000:e1:00.0") == ["10000:e0:06.0 10000:e1:00.0 Gen4 x4 of Gen4 x4"]
    assert table(tree, "10000:e2:00.0") == ["10000:e0:06.2 10000:e2:00.0 Gen3 x4 of Gen3 x4"]


@pytest.mark.parametrize(("name", "address"), [("desktop", "0000:00:02.0"), ("long-domain", "1000a:00:00.0"), ("desktop", "0000:77:00.0")])
def test_a_device_that_is_part_of_the_processor_or_without_bridge_or_not_there_has_no_link(
    name: str, address: str, machine: Machine
) -> None:
    tree = machine(name)
    reader = LinkReader(tree, address)
    assert (reader.links, reader.read(), reader.sample(), verdict(reader.links, None, moved=True)) == ((), (), None, None)


def test_a_port_whose_services_say_that_it_ends_a_link_begins_none(machine: Machine) -> None:
    tree = machine("desktop")
    assert len(links(tree, "0000:01:00.0")) == 1
    folder = Path(tree.root, "sys/devices/pci0000:00/0000:00:01.0/0000:00:01.0:pcie102")
    folder.mkdir()
    assert links(tree, "0000:01:00.0") == ()


@pytest.mark.parametrize(
    ("name", "address", "now", "possible"),
    [
        ("desktop", "0000:01:00.0", "0000:00:01.0 0000:01:00.0 Gen4 x16 of Gen4 x16", 31.51),
        ("narrow-slot", "0000:01:00.0", "0000:00:01.1 0000:01:00.0 Gen4 x8 of Gen4 x8", 15.75),
        ("trained-down", "0000:01:00.0", "0000:00:01.1 0000:01:00.0 Gen4 x4 of Gen4 x16", 31.51),
        ("idle-link", "0000:01:00.0", "0000:00:01.0 0000:01:00.0 Gen1 x16 of Gen5 x16", 63.02),
        ("cascaded", "0000:43:00.0", "0000:40:01.1 0000:41:00.0 Gen4 x16 of Gen4 x16", 31.51),
        ("cascaded", "0000:47:00.0", "0000:42:02.0 0000:45:00.0 Gen4 x8 of Gen4 x8", 15.75),
        ("two-cards", "0000:05:00.0", "0000:00:1c.4 0000:05:00.0 Gen3 x4 of Gen3 x4", 3.94),
        ("card-with-switch", "0000:45:00.0", "0000:40:03.1 0000:43:00.0 Gen4 x8 of Gen4 x16", 31.51),
        ("instinct", "0000:c6:00.0", "0000:c0:01.1 0000:c6:00.0 Gen5 x16 of Gen5 x16", 63.02),
        ("instinct-partitions", "0000:05:00.5", "0000:00:01.1 0000:05:00.0 Gen5 x16 of Gen5 x16", 63.02),
    ],
)
def test_the_narrowest_link_limits_the_way(name: str, address: str, now: str, possible: float, machine: Machine) -> None:
    sample = LinkReader(machine(name), address).sample()
    assert sample is not None
    assert str(sample) == now
    assert sample.bandwidth_max == pytest.approx(possible * GB, rel=0.001)
    assert sample.bandwidth == pytest.approx(RATES[sample.generation or 0][sample.width or 0] * GB, rel=0.002)


def test_what_is_no_speed_or_width_is_absent(machine: Machine) -> None:
    tree = machine("strange-links")
    assert [table(tree, f"0000:0{index}:00.0") for index in range(1, 7)] == [
        ["0000:00:01.0 0000:01:00.0 Gen? x? of Gen4 x16"],
        ["0000:00:02.0 0000:02:00.0 Gen4 x? of Gen4 x16"],
        ["0000:00:03.0 0000:03:00.0 Gen? x? of Gen? x?"],
        ["0000:00:04.0 0000:04:00.0 Gen4 x16 of Gen? x?"],
        ["0000:00:05.0 0000:05:00.0 Gen3 x16 of Gen4 x16"],
        ["0000:00:06.0 0000:06:00.0 Gen? x? of Gen? x?"],
    ]
    samples = [LinkReader(tree, f"0000:0{index}:00.0").sample() for index in range(1, 7)]
    assert [sample and str(sample.now) for sample in samples] == [None, None, None, "Gen4 x16", "Gen3 x16", None]


@pytest.mark.parametrize("index", [1, 2, 3, 4, 6])
def test_nothing_is_said_of_a_link_one_end_of_which_does_not_tell(index: int, machine: Machine) -> None:
    reader = LinkReader(machine("strange-links"), f"0000:0{index}:00.0")
    found = verdict(reader.links, reader.sample(), moved=True, achieved=1 * GB)
    assert found is None or found == Verdict()


def judged(tree: Tree, address: str, *, moved: bool = True, achieved: float | None = None) -> Verdict | None:
    reader = LinkReader(tree, address)
    return verdict(reader.links, reader.sample(), moved=moved, achieved=achieved)


def test_a_link_at_its_best_is_not_degraded(machine: Machine) -> None:
    assert judged(machine("desktop"), "0000:01:00.0") == Verdict(degraded=False)
    assert judged(machine("two-sockets"), "0000:8c:00.0") == Verdict(degraded=False)


def test_what_the_two_ends_of_a_cable_say_of_its_speed_is_not_believed(machine: Machine) -> None:
    tree = machine("enclosure")
    assert table(tree, "0000:2d:00.0") == ["0000:00:07.0 0000:2b:00.0 Gen? x? of Gen? x?", "0000:2c:01.0 0000:2d:00.0 Gen3 x4 of Gen3 x4"]
    assert str(narrowest(links(tree, "0000:2d:00.0"), possible=True)) == "0000:2c:01.0 0000:2d:00.0 Gen3 x4 of Gen3 x4"
    assert judged(tree, "0000:2d:00.0", achieved=2.6 * GB) is None


def test_the_link_inside_a_card_that_says_it_is_the_slowest_there_is_counts_for_nothing(machine: Machine) -> None:
    tree = machine("arc")
    assert table(tree, "0000:03:00.0") == ["0000:00:01.0 0000:01:00.0 Gen4 x8 of Gen4 x16"]
    sentence = "PCIe link 0000:00:01.0 - 0000:01:00.0: x8 of x16 while bytes moved, 15.8 GB/s of 31.5 GB/s"
    assert judged(tree, "0000:03:00.0") == Verdict(degraded=True, sentence=sentence)


def test_a_link_with_fewer_lanes_than_both_its_ends_have_is_degraded_while_bytes_moved(machine: Machine) -> None:
    sentence = "PCIe link 0000:00:01.1 - 0000:01:00.0: x4 of x16 while bytes moved, 7.88 GB/s of 31.5 GB/s"
    assert judged(machine("trained-down"), "0000:01:00.0", achieved=6.4 * GB) == Verdict(degraded=True, sentence=sentence)


def test_the_slot_of_a_card_with_a_switch_is_judged_and_not_the_full_link_inside(machine: Machine) -> None:
    sentence = "PCIe link 0000:40:03.1 - 0000:43:00.0: x8 of x16 while bytes moved, 15.8 GB/s of 31.5 GB/s"
    assert judged(machine("card-with-switch"), "0000:45:00.0") == Verdict(degraded=True, sentence=sentence)


def test_an_idle_reading_is_no_verdict(machine: Machine) -> None:
    assert judged(machine("idle-link"), "0000:01:00.0", moved=False) == Verdict()
    assert judged(machine("trained-down"), "0000:01:00.0", moved=False) == Verdict()


def test_a_slow_reading_while_more_bytes_moved_than_it_allows_is_stale(machine: Machine) -> None:
    assert judged(machine("idle-link"), "0000:01:00.0", achieved=22 * GB) == Verdict(stale=True)


def test_a_link_that_passes_more_than_both_its_ends_could_is_not_believed(machine: Machine) -> None:
    assert judged(machine("narrow-slot"), "0000:01:00.0", achieved=22 * GB) == Verdict(degraded=False, stale=True)


def test_a_low_generation_that_stays_while_bytes_move_is_degraded(machine: Machine) -> None:
    sentence = "PCIe link 0000:00:01.0 - 0000:01:00.0: Gen1 of Gen5 while bytes moved, 4.00 GB/s of 63.0 GB/s"
    assert judged(machine("idle-link"), "0000:01:00.0", achieved=3.3 * GB) == Verdict(degraded=True, sentence=sentence)


def test_a_port_that_offers_less_than_the_card_could_use_is_narrow_and_not_degraded(machine: Machine) -> None:
    sentence = (
        "PCIe port 0000:00:01.1 is narrow: with it 0000:01:00.0 can do Gen4 x8 (15.8 GB/s), "
        "in a better one it could do Gen4 x16 (31.5 GB/s)"
    )
    assert judged(machine("narrow-slot"), "0000:01:00.0") == Verdict(degraded=False, narrow=True, sentence=sentence)
    assert judged(machine("narrow-slot"), "0000:01:00.0", moved=False) == Verdict(narrow=True, sentence=sentence)


def test_a_narrow_port_between_switches_is_narrow_to_what_is_behind_it_alone(machine: Machine) -> None:
    tree = machine("cascaded")
    found = judged(tree, "0000:47:00.0")
    assert found is not None
    assert (found.degraded, found.narrow) == (False, True)
    assert "port 0000:42:02.0 is narrow: with it 0000:45:00.0" in (found.sentence or "")
    assert judged(tree, "0000:43:00.0") == Verdict(degraded=False)


def test_a_card_that_could_use_less_than_its_port_offers_is_not_narrow(machine: Machine) -> None:
    found = judged(machine("desktop"), "0000:01:00.0")
    assert found is not None
    assert not found.narrow


def test_of_emulated_ports_nothing_is_said_but_what_the_card_itself_reads(machine: Machine) -> None:
    tree = machine("vm-emulated")
    assert judged(tree, "0000:01:00.0") is None
    assert table(tree, "0000:01:00.0") == ["0000:00:02.0 0000:01:00.0 Gen5 x16 of Gen? x?"]
    assert table(tree, "0000:02:00.0") == ["0000:00:03.0 0000:02:00.0 Gen? x? of Gen? x?"]
    assert LinkReader(tree, "0000:02:00.0").sample() is None


def test_of_a_device_with_coherent_links_to_the_host_nothing_is_said(machine: Machine) -> None:
    reader = LinkReader(machine("gh200"), "0009:01:00.0")
    assert verdict(reader.links, reader.sample(), moved=True, coherent=True) is None
    assert verdict(reader.links, reader.sample(), moved=True) is not None


def test_a_sleeping_device_is_not_read_and_is_once_it_is_awake(machine: Machine) -> None:
    tree = machine("asleep")
    reads: list[str] = []

    class Watched(Tree):
        def bytes(self, path: str) -> bytes:
            reads.append(path)
            return super().bytes(path)

    reader = LinkReader(Watched(tree.root), "0000:01:00.0")
    assert (reader.links, reader.sample()) == ((), None)
    assert not [path for path in reads if "link" in path]
    folder = Path(tree.root, "sys/devices/pci0000:00/0000:00:01.1/0000:01:00.0")
    (folder / "power/runtime_status").write_text("active\n")
    (folder / "current_link_speed").write_text("16.0 GT/s PCIe\n")
    (folder / "current_link_width").write_text("8\n")
    assert str(reader.sample()) == "0000:00:01.1 0000:01:00.0 Gen4 x8 of Gen4 x8"
    (folder / "power/runtime_status").write_text("suspending\n")
    assert reader.sample() is None
    assert len(reader.links) == 1


def test_a_sample_reads_two_files_of_each_link_and_whether_the_device_is_awake(machine: Machine) -> None:
    tree = machine("cascaded")
    reads: list[str] = []

    class Watched(Tree):
        def bytes(self, path: str) -> bytes:
            reads.append(path.rpartition("/")[2])
            return super().bytes(path)

    reader = LinkReader(Watched(tree.root), "0000:47:00.0")
    reader.sample()
    reads.clear()
    reader.sample()
    assert sorted(reads) == ["current_link_speed"] * 3 + ["current_link_width"] * 3 + ["runtime_status"]


BEST = Lanes(5, 16)


def link(now: Lanes, most: Lanes = BEST, child: str = "0000:01:00.0") -> Link:
    return Link("0000:00:01.0", child, most, most, now)


def test_the_best_of_several_samples_counts() -> None:
    slow, fast = link(Lanes(1, 16)), link(Lanes(5, 16))
    assert (best(slow, fast), best(fast, slow), best(None, slow), best(slow, None), best(None, None)) == (fast, fast, slow, slow, None)


def test_the_narrowest_is_not_known_where_one_link_is_not() -> None:
    assert narrowest([link(Lanes(4, 16)), link(Lanes(None, 16))]) is None
    assert narrowest([]) is None


def test_of_equally_narrow_links_the_one_that_could_do_no_more_is_the_limit() -> None:
    recovering, small = link(Lanes(4, 8)), link(Lanes(4, 8), Lanes(4, 8), "0000:02:00.0")
    assert narrowest([recovering, small]) is small
    assert narrowest([link(Lanes(1, 16)), small], possible=True) is small
    assert verdict([recovering, small], narrowest([recovering, small]), moved=True) == Verdict(degraded=False)


def test_on_this_machine_links_are_known_in_full_or_not_at_all() -> None:
    for device in pci.devices(HERE):
        for found in links(HERE, device.address):
            assert found.generation in (None, *range(1, 7))
            assert found.width is None or 1 <= found.width <= 32
