"""A load through the agent and the gateway into Jaeger: whole, whatever dies on the way, and kept where others are sampled."""

from __future__ import annotations

import json
import random
import time
import urllib.error
from typing import TYPE_CHECKING, Any

from shipped import arrived, demo, plain, send, sent, traces_of

from backends.process import free_ports, until

if TYPE_CHECKING:
    from shipped import Found, Machine

FOREIGN = "opentelemetry.instrumentation.http"


def identifier(length: int, seed: int) -> str:
    return f"{random.Random(seed).getrandbits(length * 8):0{length * 2}x}"  # noqa: S311 -- not a secret


def foreign(trace: str, span: str, *, failed: bool = False) -> str:
    """A request's span by another instrumentation."""
    now = time.time_ns()
    spans: dict[str, Any] = {"traceId": trace, "spanId": span, "name": "GET /", "kind": 2}
    spans |= {"startTimeUnixNano": str(now - 10**7), "endTimeUnixNano": str(now), "status": {"code": 2} if failed else {}}
    scope = {"scope": {"name": FOREIGN}, "spans": [spans]}
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "web"}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]})


def test_a_load_arrives_as_it_was_sent(here: Machine) -> None:
    jaeger = here.jaeger()
    agent = here.agent(here.gateway(jaeger).grpc)
    for request in demo():
        send(agent.http, request)
    wanted = sent(demo())
    found = arrived(jaeger, wanted)
    assert found == wanted
    sizes = [span["attributes"].get("loadspan.size") for span in found.values()]
    assert all(isinstance(size, int) for size in sizes if size is not None)
    assert max(size for size in sizes if size) > 1 << 28


def test_the_machine_is_named_by_the_agent_and_what_the_program_said_is_kept(here: Machine) -> None:
    jaeger = here.jaeger()
    agent = here.agent(here.gateway(jaeger).grpc)
    send(agent.http, demo()[0])
    (trace,) = traces_of(sent(demo()[:1]))
    message = jaeger.await_trace(trace)
    said = {pair["key"]: pair["value"]["stringValue"] for pair in message["resourceSpans"][0]["resource"]["attributes"]}
    assert said["service.name"] == "serve"
    own = json.loads(demo()[0])["resourceSpans"][0]["resource"]["attributes"]
    assert {pair["key"]: pair["value"]["stringValue"] for pair in own}.items() <= said.items()
    assert said["host.name"]
    assert said["os.type"] == "linux"


def test_nothing_that_the_agent_accepted_is_lost_when_all_behind_it_and_it_itself_are_killed(here: Machine) -> None:
    jaeger = here.jaeger()
    gateway = here.gateway(jaeger)
    agent = here.agent(gateway.grpc)
    numbers = iter(range(1, 1000))
    accepted: list[str] = []

    def load(count: int) -> None:
        for number in (next(numbers) for _ in range(count)):
            for request in demo(number):
                send(agent.http, request)
                accepted.append(request)

    load(3)
    gateway.kill()  # while it may hold what it has not handed on
    load(3)
    agent.kill()  # with a queue
    agent.start()
    load(3)
    jaeger.kill()
    gateway.start()
    load(3)
    gateway.kill()  # with a queue
    gateway.start()
    jaeger.start()
    load(3)
    wanted = sent(accepted)
    assert len(wanted) == 15 * 30
    found = arrived(jaeger, wanted)
    assert found == wanted


def test_traces_are_shared_out_among_gateways_and_none_is_torn(here: Machine) -> None:
    stores = [here.jaeger("first-jaeger"), here.jaeger("second-jaeger")]
    ports = [str(port) for port in free_ports(2)]
    gateways = [here.gateway(store, INSTANCE=f"gateway-{port}", SPAN_METRICS_PORT=port) for store, port in zip(stores, ports, strict=True)]
    # This machine has one name, so the two are listed here, as DNS lists them elsewhere.
    hosts = {"hostnames": [f"127.0.0.1:{gateway.grpc}" for gateway in gateways]}
    agent = here.agent(gateways[0].grpc, {"exporters": {"load_balancing": {"resolver": {"dns": None, "static": hosts}}}})
    requests = [request for number in range(1, 11) for request in demo(number)]
    for request in requests:
        send(agent.http, request)
    wanted = sent(requests)

    def stored() -> list[Found] | None:
        found = [plain([message for trace in traces_of(wanted) if (message := store.trace(trace))]) for store in stores]
        return found if sum(map(len, found)) >= len(wanted) else None

    first, second = until(stored, "all spans in one Jaeger or the other", 60, 0.3)
    assert first
    assert second
    assert set(traces_of(first)) & set(traces_of(second)) == set()
    assert first | second == wanted


def test_the_agent_says_so_when_its_queue_is_full(here: Machine) -> None:
    agent = here.agent(free_ports(1)[0])
    agent.stop()
    agent.environment["QUEUE_BYTES"] = "200000"
    agent.start()

    def refused() -> bool:
        try:
            for request in demo(7):
                send(agent.http, request)
        except urllib.error.HTTPError as error:
            with error:
                return error.code in {429, 503}
        return False

    until(refused, "the agent refuses what it cannot keep", 20)


def test_every_load_is_kept_where_other_traces_are_sampled(here: Machine) -> None:
    jaeger = here.jaeger()
    gateway = here.gateway(jaeger, OTHER_TRACES_PERCENT="0")
    for number in range(1, 6):
        for request in demo(number):
            send(gateway.http, request)
    (first, *_) = traces_of(sent(demo(1)))
    around, failed = identifier(8, 1), identifier(16, 2)
    send(gateway.http, foreign(first, around))
    send(gateway.http, foreign(failed, identifier(8, 3), failed=True))
    dropped = [identifier(16, seed) for seed in range(100, 150)]
    for trace in dropped:
        send(gateway.http, foreign(trace, identifier(8, int(trace[:6], 16))))
    wanted = sent(request for number in range(1, 6) for request in demo(number))
    found = arrived(jaeger, wanted, more=1)
    assert {key: span for key, span in found.items() if key != (first, around)} == wanted
    assert found[first, around]["name"] == "GET /"  # of the rest, what is in the trace of a load
    jaeger.await_trace(failed)  # and what failed
    assert [trace for trace in dropped if jaeger.trace(trace)] == []


def test_loads_do_not_wait_for_the_decision_about_other_traces(here: Machine) -> None:
    jaeger = here.jaeger()
    gateway = here.gateway(jaeger, DECISION_WAIT="300s", OTHER_TRACES_PERCENT="0")
    for request in demo():
        send(gateway.http, request)
    wanted = sent(demo())
    assert arrived(jaeger, wanted) == wanted


def test_long_values_are_cut_and_numbers_and_lists_are_not(here: Machine) -> None:
    jaeger = here.jaeger()
    gateway = here.gateway(jaeger)
    message = json.loads(demo(9)[0])
    (span, *_) = message["resourceSpans"][0]["scopeSpans"][0]["spans"]
    span["attributes"] += [
        {"key": "note", "value": {"stringValue": "x" * 5000}},
        {"key": "loadspan.curve.size", "value": {"arrayValue": {"values": [{"intValue": str(1 << 40)}] * 1000}}},
    ]
    send(gateway.http, json.dumps(message))
    found = arrived(jaeger, sent([json.dumps(message)]))
    attributes = found[span["traceId"], span["spanId"]]["attributes"]
    assert attributes["note"] == "x" * 2000
    assert attributes["loadspan.curve.size"] == [1 << 40] * 1000
