"""Jaeger's real pages in a real browser: the waterfall of a load, its critical path, and what a stage says of itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from backends.browser import dom, picture
from backends.critical_path import critical_path
from backends.process import get
from backends.sending import hexadecimal, load, provider

if TYPE_CHECKING:
    from pathlib import Path

    from backends.programs import Jaeger


def test_jaeger_serves_the_real_pages(jaeger: Jaeger) -> None:
    page = get(f"{jaeger.url}/trace/1").decode()
    script = re.search(r'src="\./(static/index-[^"]+\.js)"', page)
    assert script, page[:2000]
    assert b"criticalPathForTrace" in get(f"{jaeger.url}/{script[1]}")


def test_the_page_of_a_trace_draws_its_spans_and_its_critical_path(jaeger: Jaeger, tmp_path: Path) -> None:
    with provider("grpc", jaeger.grpc, service_name="drawn") as tracing:
        spans = load(tracing)
    trace_id, _ = hexadecimal(spans[0])
    jaeger.await_trace(trace_id, len(spans))
    page = dom(f"{jaeger.url}/trace/{trace_id}", tmp_path / "profile")
    names = re.findall(r'<small class="endpoint-name">([^<]+)</small>', page)
    assert names == ["load model", "read", "to_device"]
    assert page.count('class="SpanBar--criticalPath"') == len(critical_path(jaeger.as_drawn(trace_id)))


def test_the_link_to_a_span_opens_its_attributes(jaeger: Jaeger, tmp_path: Path) -> None:
    with provider("grpc", jaeger.grpc, service_name="opened") as tracing:
        spans = load(tracing)
    trace_id, span_id = hexadecimal(spans[1])
    jaeger.await_trace(trace_id, len(spans))
    url = f"{jaeger.url}/trace/{trace_id}?uiFind={span_id}"
    page = dom(url, tmp_path / "profile")
    assert "loadspan.size" in page
    picture(url, tmp_path / "profile", tmp_path / "page.png")
