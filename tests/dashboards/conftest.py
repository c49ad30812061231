"""A real Prometheus that has scraped a small fleet: two nodes, a fast and a degraded one, loads that succeed and loads that fail."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from backends.stores import Prometheus
from loadspan import names

if TYPE_CHECKING:
    from collections.abc import Iterator

GB = 10**9


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    pytest.importorskip("opentelemetry.exporter.prometheus", reason="opentelemetry-exporter-prometheus is not installed")
    from fleet import Loading

    with ExitStack() as running:
        fast = running.enter_context(
            Loading(service_name="serve", service_version="1", service_instance_id="a", host_name="n1", k8s_node_name="n1")
        )
        slow = running.enter_context(
            Loading(service_name="serve", service_version="2", service_instance_id="b", host_name="n2", k8s_node_name="n2")
        )
        started = running.enter_context(Prometheus(tmp_path_factory.mktemp("prometheus"), [fast.target, slow.target]))
        started.await_series("loadspan_load_count_total == 0", 2)
        link: dict[str, Any] = {names.DEVICE_INDEX: 0, names.LINK_BANDWIDTH: 31.5e9, names.LINK_DEGRADED: False}
        fast.load("base", 12.0, 20 * GB, "nvme", **{names.RANK: 0, names.CACHE_RESIDENCY: 1.0, **link})
        fast.load("base", 1.0, GB, "nvme", "OSError")
        narrow: dict[str, Any] = {names.LINK_BANDWIDTH: 7.9e9, names.LINK_DEGRADED: True}
        slow.load("base", 48.0, 20 * GB, "network", **{names.RANK: 1, names.CACHE_RESIDENCY: 0.0, **link, **narrow})
        slow.load("base", 2.0, GB, "network", "OSError")
        started.await_series("loadspan_load_count_total == 2", 2)
        yield started
