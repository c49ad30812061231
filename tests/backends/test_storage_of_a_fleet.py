"""Storage of a fleet for real: Jaeger on OpenSearch, a Collector before it, both restarted while loads arrive; nothing is missing."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import loadspan
from backends.process import until
from backends.programs import Collector, Jaeger, opensearch, spans_of
from backends.ranks import Load, fleet
from backends.sending import from_disk

if TYPE_CHECKING:
    from pathlib import Path

    from backends.stores import OpenSearch
    from recorded import Spans

LOADS, RANKS = 200, 16


def recorded(spans: Spans, folder: Path) -> dict[str, Any]:
    """A load that loadspan recorded here, with stages inside stages and one after the other."""
    weights = folder / "weights.bin"
    weights.write_bytes(os.urandom(4 << 20))
    with loadspan.load("template", path=str(weights)):
        with loadspan.stage("decrypt", path=weights, size=4 << 20), loadspan.stage("read", path=weights) as read:
            read.add(len(weights.read_bytes()))
        with loadspan.stage("deserialize", size=4 << 20, format="safetensors"):
            pass
        with loadspan.stage("to_device", size=4 << 20, device="cpu"):
            pass
    return spans.load()


def queued(port: int, folder: Path) -> dict[str, Any]:
    """A Collector that keeps on disk what Jaeger has not taken yet."""
    queue = {"enabled": True, "storage": "file_storage", "queue_size": 100_000}
    retry = {"initial_interval": "100ms", "max_interval": "1s", "max_elapsed_time": "5m"}
    exporter = {"endpoint": f"127.0.0.1:{port}", "tls": {"insecure": True}, "sending_queue": queue, "retry_on_failure": retry}
    return {
        "exporters": {"otlp_grpc": exporter},
        "extensions": {"file_storage": {"directory": str(folder), "create_directory": True}},
        "service": {"extensions": ["file_storage"], "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["otlp_grpc"]}}},
    }


def whole(jaeger: Jaeger, load: Load) -> bool:
    """
    Whether a load is there as it was sent, no span more and none less.

    Some are there twice: a Collector that was killed sends again what it had sent and not yet noted as sent.
    """
    trace = jaeger.trace(load.trace_id)
    found = {span["spanId"]: from_disk(span) for span in spans_of(trace)} if trace else {}
    if found.keys() != load.spans.keys():
        return False
    assert found == load.spans
    return True


def test_two_hundred_loads_of_sixteen_ranks_are_found_by_attribute_and_complete(
    opensearch_node: OpenSearch, spans: Spans, tmp_path: Path
) -> None:
    template = recorded(spans, tmp_path)
    with (
        Jaeger(tmp_path / "jaeger", backend=opensearch(opensearch_node.url, "fleet")) as jaeger,
        Collector(queued(jaeger.grpc, tmp_path / "queue"), tmp_path / "collector") as collector,
        fleet(collector.grpc, RANKS, template) as servers,
    ):
        loads = [servers.load(number) for number in range(LOADS // 2)]
        jaeger.stop()  # in order: what it took and has not written yet is in its memory alone
        loads += [servers.load(number) for number in range(LOADS // 2, LOADS * 3 // 4)]
        servers.flush()
        collector.kill()  # what it took is on disk
        collector.start()
        jaeger.start()
        loads += [servers.load(number) for number in range(LOADS * 3 // 4, LOADS)]
        servers.flush()
        for load in loads:
            assert until(partial(whole, jaeger, load), f"{load.id} as it was sent", patience=120, pause=0.5)
            assert jaeger.search("server", {"loadspan.load.id": load.id, "loadspan.rank": str(RANKS - 1)}) == [load.trace_id], load.id
        of_model = {load.trace_id for load in loads if load.model == "model-3"}
        assert set(jaeger.search("server", {"loadspan.model.name": "model-3", "loadspan.rank": "0"}, limit=100)) == of_model
        assert jaeger.search("server", {"loadspan.load.id": "load-200"}) == []
