"""Jaeger as one process: its pages get our links, its data outlive it, and it does not trace itself."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from shipped import CONFIGURATIONS, arrived, demo, send, sent

from backends.process import get

if TYPE_CHECKING:
    from shipped import Machine


def test_its_pages_are_told_our_links(here: Machine) -> None:
    jaeger = here.jaeger()
    told = re.search(r"JAEGER_CONFIG = (\{.*?\});", get(f"{jaeger.url}/search").decode(), re.DOTALL)
    assert told is not None
    assert json.loads(told[1]) == json.loads((CONFIGURATIONS / "jaeger" / "ui-config.json").read_text())


def test_its_data_outlive_it_and_it_does_not_trace_itself(here: Machine) -> None:
    jaeger = here.jaeger()
    for request in demo():
        send(jaeger.http, request)
    arrived(jaeger, sent(demo()))
    jaeger.restart()
    assert arrived(jaeger, sent(demo())) == sent(demo())
    assert jaeger.services() == ["serve"]
