"""Run folders of machines without a network are sent later, once, and whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from shipped import CONFIGURATIONS, arrived, demo, sent, traces_of

from backends.programs import Collector

if TYPE_CHECKING:
    from pathlib import Path

    from shipped import Machine

    from backends.programs import Jaeger


def replay(here: Machine, jaeger: Jaeger, runs: Path) -> Collector:
    settings = {"RUNS": str(runs), "OTLP_ENDPOINT": f"http://127.0.0.1:{jaeger.http}", "REPLAY_DIRECTORY": str(here.folder / "remembered")}
    return here.started(Collector(CONFIGURATIONS / "replay.yaml", here.folder / "replay", environment=settings))


def written(folder: Path, pid: int, lines: list[str], end: str = "\n") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"trace-{pid}.jsonl").write_text("\n".join(lines) + end)


def test_a_run_folder_is_sent_whole_and_one_beside_it_too(here: Machine) -> None:
    jaeger = here.jaeger()
    written(here.folder / "runs" / "20260101-000000-1", 1, demo(1))
    written(here.folder / "runs" / "20260102-000000-2", 2, demo(2))
    written(here.folder / "runs" / "20260102-000000-2", 3, demo(3))
    (here.folder / "runs" / "20260102-000000-2" / "state-2.json").write_text("{}")
    collector = replay(here, jaeger, here.folder / "runs")
    wanted = sent(request for number in (1, 2, 3) for request in demo(number))
    found = arrived(jaeger, wanted)
    assert found == wanted
    assert "error" not in collector.log


def test_processes_that_begin_alike_are_not_taken_for_one_another(here: Machine) -> None:
    jaeger = here.jaeger()
    long = ',{"key":"k8s.pod.labels","value":{"stringValue":"' + "x" * 3000 + '"}}'
    name = '{"key":"service.name","value":{"stringValue":"serve"}}'
    for number in (1, 2, 3):
        written(here.folder / "runs", number, [line.replace(name, name + long) for line in demo(number)])
    replay(here, jaeger, here.folder / "runs")
    wanted = sent(request for number in (1, 2, 3) for request in demo(number))
    assert arrived(jaeger, wanted) == wanted


def test_a_line_of_megabytes_is_sent_and_a_torn_one_does_not_stop_the_rest(here: Machine) -> None:
    jaeger = here.jaeger()
    first, *rest = demo(1)
    size = '{"key":"loadspan.stage",'
    notes = ",".join(json.dumps({"key": f"note{i}", "value": {"stringValue": "x" * 60_000}}) for i in range(10))
    big = first.replace(size, f"{notes},{size}")
    assert len(big) > 1 << 20
    written(here.folder / "runs", 1, [big, *rest, demo(2)[0][:1000]], end="")
    written(here.folder / "runs", 2, demo(3))
    replay(here, jaeger, here.folder / "runs")
    wanted = sent([big, *rest, *demo(3)])
    assert arrived(jaeger, wanted) == wanted


def test_what_was_sent_is_not_sent_again(here: Machine) -> None:
    jaeger = here.jaeger()
    written(here.folder / "runs", 1, demo(1))
    collector = replay(here, jaeger, here.folder / "runs")
    wanted = sent(demo(1))
    arrived(jaeger, wanted)
    collector.stop()
    written(here.folder / "runs", 2, demo(2))
    collector.start()
    wanted = sent(demo(2))
    arrived(jaeger, wanted)
    (trace, *_) = traces_of(sent(demo(1)))
    message = jaeger.trace(trace)
    assert message is not None
    count = sum(len(scope["spans"]) for part in message["resourceSpans"] for scope in part["scopeSpans"])
    assert count == sum(key[0] == trace for key in sent(demo(1)))
