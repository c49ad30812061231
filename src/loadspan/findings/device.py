"""The way to the device: its link, and the NUMA node it is attached to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadspan import names, units
from loadspan.findings.rule import NOTABLE, Rule, Told, number, part

if TYPE_CHECKING:
    from loadspan.model import Load

_TO_DEVICE = names.partition(names.TO_DEVICE)
_NODES = 1 << 10  # more than Linux can have
_ENDS = 2


def _link_degraded(load: Load, seconds: float) -> Told | None:
    if load.attributes.get(names.LINK_DEGRADED) is not True:
        return None
    ends = (load.text(names.LINK_ENDS) or "").split()
    link = f"the PCIe link between {ends[0]} and {ends[1]}" if len(ends) == _ENDS else "its PCIe link"
    now, most = _width(load, names.LINK_GENERATION, names.LINK_WIDTH), _width(load, names.LINK_GENERATION_MAX, names.LINK_WIDTH_MAX)
    ran = f"ran at {now} while bytes moved, where both ends support {most}" if now and most else "ran below what both ends support"
    rate, possible = number(load, names.LINK_BANDWIDTH), number(load, names.LINK_BANDWIDTH_MAX)
    rates = f": {units.throughput(rate)} instead of {units.throughput(possible)}" if rate and possible else ""
    took = number(load, _TO_DEVICE)
    stake = f"; to_device took {part(took, seconds)}" if took else ""
    return Told(f"Check the slot, riser, cable and firmware settings of the device: {link} {ran}{rates}{stake}.", took or None)


def _width(load: Load, generation: str, width: str) -> str | None:
    """`Gen4 x16`."""
    found, lanes = number(load, generation), number(load, width)
    return f"Gen{found:.0f} x{lanes:.0f}" if found and lanes else None


def _numa_remote(load: Load, seconds: float, took: float) -> Told | None:
    # Where little was brought to the device it does not matter from where.
    if load.text(names.NUMA_RELATION) != "remote" or took < NOTABLE * seconds:
        return None
    near, far = _node(load, names.DEVICE_NUMA_NODE), _node(load, names.THREAD_NUMA_NODE)
    where = f"the CPUs of NUMA node {near} (numactl --cpunodebind={near} --preferred={near})" if near else "CPUs near the device"
    device = f"the device is attached to node {near}, " if near else ""
    thread = f"CPUs of node {far}" if far else "CPUs of another NUMA node"
    return Told(f"Load on {where}: {device}the loading thread may only use {thread}, and to_device took {part(took, seconds)}.")


def _node(load: Load, name: str) -> str | None:
    found = number(load, name)
    return f"{found:.0f}" if found is not None and found < _NODES else None


RULES = (
    Rule(
        id="link-degraded",
        when="the link ran below what both ends support while bytes moved; loads of less than a second too",
        mechanism="A link that trained to fewer lanes or to a lower speed carries less, whatever the host and the device could do.",
        needs=(),
        uses=(
            names.LINK_DEGRADED,
            names.LINK_GENERATION,
            names.LINK_WIDTH,
            names.LINK_GENERATION_MAX,
            names.LINK_WIDTH_MAX,
            names.LINK_BANDWIDTH,
            names.LINK_BANDWIDTH_MAX,
            names.LINK_ENDS,
            _TO_DEVICE,
        ),
        check=_link_degraded,
        of_short=True,
    ),
    Rule(
        id="numa-remote",
        when="the loading thread may only use CPUs that are not those near the device, "
        f"and to_device took at least {units.share(NOTABLE)} of the load",
        mechanism="Copies from memory of another NUMA node cross the link between the processors.",
        needs=(_TO_DEVICE,),
        uses=(names.NUMA_RELATION, names.THREAD_NUMA_NODE, names.DEVICE_NUMA_NODE),
        check=_numa_remote,
    ),
)
