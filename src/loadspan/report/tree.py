"""
Raw spans and state files to loads.

The tree is rebuilt from parent ids, which a hostile or torn file may have wrong in every way: missing, doubled, circular, a million deep.
Every span ends up in exactly one load.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from loadspan import names
from loadspan.model import Load, OpenStage, Stage
from loadspan.report.otlp import RawSpan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from loadspan.model import Value
    from loadspan.report.statefile import Process, RunningLoad

LAST_SEEN = "loadspan.last_seen"
"""
Attribute of a load without an end: when its process last wrote its state (nanoseconds). Made here, never recorded.
"""

_MAX_DEPTH = 64  # deeper spans are kept at this depth, so that no later step can run out of stack
_SAME_START = 1_000_000  # a stage of the state file that starts this close (1 ms) to a finished one of its name is that one

_Key = tuple[str, str]


def build(spans: Iterable[RawSpan], processes: Sequence[Process] = ()) -> list[Load]:
    """Loads of *spans*, completed with what *processes* had open, sorted by start."""
    forest = _Forest()
    for span in spans:
        forest.add(span)
    for process in processes:
        for load in process.loads:
            forest.add_running(load, process)
    return sorted(forest.loads(), key=lambda load: load.start)


class _Forest:
    """Spans by id while they are put into trees."""

    def __init__(self) -> None:
        self._spans: dict[_Key, RawSpan] = {}
        self._doubles: list[RawSpan] = []
        self._foreign: dict[_Key, str | None] = {}
        self._running: dict[str, list[RawSpan]] = defaultdict(list)
        self._open: dict[_Key, tuple[OpenStage, ...]] = {}
        self._children: dict[int, list[RawSpan]] = defaultdict(list)

    def add(self, span: RawSpan) -> None:
        key = (span.trace_id, span.span_id)
        if not span.ours:
            self._foreign[key] = span.parent_id
        elif key not in self._spans and span.span_id:
            self._spans[key] = span
        else:
            known = self._spans.get(key)
            # A Collector that retries writes a span twice; only a different span under the same id is worth keeping.
            if known is None or (known.name, known.start, known.end) != (span.name, span.start, span.end):
                self._doubles.append(span)

    def add_running(self, load: RunningLoad, process: Process) -> None:
        """A load the state file has open, unless the trace has its end."""
        key = (load.trace_id, load.span_id)
        if key in self._spans:
            return
        span = RawSpan(names.LOAD_SPAN, load.trace_id, load.span_id, load.parent_id, load.start, None, pid=process.pid)
        told = {
            names.MODEL_NAME: load.model,
            names.LOADER: load.loader,
            names.IMPLICIT: load.implicit or None,
            names.SIZE: load.size or None,
        }
        span.attributes = {**_present(told), **load.curve, LAST_SEEN: process.updated}
        self._spans[key] = span
        self._running[load.trace_id].append(span)
        self._open[key] = tuple(OpenStage(name=stage.name, size=stage.size, file_size=stage.file_size) for stage in load.stages)
        finished = [(other.name, other.start) for other in self._spans.values() if other.trace_id == load.trace_id]
        outer = [stage.span_id or f"{load.span_id}/outer/{number}" for number, stage in enumerate(load.outer)]
        inner = [stage.span_id or f"{load.span_id}/{number}" for number, stage in enumerate(load.stages)]
        for stage, known in zip((*load.outer, *load.stages), (*outer, *inner), strict=True):
            ended = any(name == stage.name and abs(start - stage.start) < _SAME_START for name, start in finished)
            if ended or (load.trace_id, known) in self._spans:
                continue
            above = outer[stage.above] if stage.above is not None and stage.above < len(outer) else load.span_id
            running = RawSpan(stage.name, load.trace_id, known, above, stage.start, None, pid=process.pid)
            running.attributes = _present({names.SIZE: stage.size, names.FILE_SIZE: stage.file_size, names.FILE_PATH: stage.file})
            self._spans[(load.trace_id, running.span_id)] = running

    def loads(self) -> list[Load]:
        spans = [*self._spans.values(), *self._doubles]
        tops: list[RawSpan] = []
        orphans: dict[tuple[str, str | None, int | None], list[RawSpan]] = defaultdict(list)
        for span in spans:
            parent = self._parent(span)
            if parent is not None:
                self._children[id(parent)].append(span)
            elif span.name == names.LOAD_SPAN:
                tops.append(span)
            else:
                orphans[(span.trace_id, span.parent_id, span.pid)].append(span)
        tops.extend(self._rebuilt(parent, children) for (_, parent, _), children in orphans.items())
        tops.extend(self._cut_cycles(spans, tops))
        return [self._load(top) for top in tops]

    def _parent(self, span: RawSpan) -> RawSpan | None:
        """The span's parent among ours: through spans of other scopes, else for a stage the load that was open around it."""
        parent_id, seen = span.parent_id, 0
        while parent_id is not None and (span.trace_id, parent_id) not in self._spans and seen < _MAX_DEPTH:
            parent_id, seen = self._foreign.get((span.trace_id, parent_id)), seen + 1
        found = self._spans.get((span.trace_id, parent_id)) if parent_id is not None else None
        if found is not None:
            return found if found is not span else None
        if span.name == names.LOAD_SPAN:
            return None
        # Its parent was a stage that never ended. State files name no ids of stages, so the load it ran in has to do.
        around = [load for load in self._running.get(span.trace_id, ()) if load.start <= span.start]
        return max(around, key=lambda load: (load.pid == span.pid, load.start), default=None)

    def _rebuilt(self, parent_id: str | None, children: list[RawSpan]) -> RawSpan:
        """The load whose root was never written, from the stages that name it as their parent."""
        first = min(children, key=lambda span: span.start)
        load = RawSpan(names.LOAD_SPAN, first.trace_id, parent_id or "", None, first.start, None, pid=first.pid)
        models = {text for span in children if isinstance(text := span.attributes.get(names.MODEL_NAME), str)}
        if len(models) == 1:
            load.attributes = {names.MODEL_NAME: models.pop()}
        self._children[id(load)] = children
        return load

    def _cut_cycles(self, spans: list[RawSpan], tops: list[RawSpan]) -> list[RawSpan]:
        """Loads for the spans that no top leads to: their parents run in a circle, which is cut at the earliest."""
        reached = set(map(id, self._below(tops)))
        found = []
        for span in sorted((span for span in spans if id(span) not in reached), key=lambda span: span.start):
            if id(span) in reached:
                continue
            parent = self._parent(span)
            self._children[id(parent)].remove(span)
            found.append(span if span.name == names.LOAD_SPAN else self._rebuilt(None, [span]))
            reached.update(map(id, self._below([span])))
        return found

    def _below(self, spans: list[RawSpan]) -> list[RawSpan]:
        """*spans* and everything below them, parents before children."""
        found = list(spans)
        for span in found:  # grows while it is walked
            found.extend(self._children.get(id(span), ()))
        return found

    def _load(self, top: RawSpan) -> Load:
        """The finished tree of *top*, made from the leaves up because the spans are frozen."""
        depth = {id(top): 0}
        holder: dict[int, RawSpan] = {}
        order = self._below([top])
        for span in order:
            for child in self._children.get(id(span), ()):
                deep = depth[id(span)] >= _MAX_DEPTH
                depth[id(child)] = depth[id(span)] + (not deep)
                holder[id(child)] = holder[id(span)] if deep else span
        done: dict[int, list[Load | Stage]] = defaultdict(list)
        for span in reversed(order[1:]):
            done[id(holder[id(span)])].append(self._finish(span, done.pop(id(span), [])))
        load = self._finish(top, done[id(top)])
        assert isinstance(load, Load)  # noqa: S101 - tops are loads; tells the type checker
        return load

    def _finish(self, span: RawSpan, children: list[Load | Stage]) -> Load | Stage:
        children.sort(key=lambda child: child.start)
        if span.name == names.LOAD_SPAN:
            return Load(
                name=span.name,
                span_id=span.span_id,
                parent_id=span.parent_id,
                start=span.start,
                end=span.end,
                attributes=span.attributes,
                error=span.error,
                children=tuple(children),
                trace_id=span.trace_id,
                pid=span.pid,
                open_stages=self._open.get((span.trace_id, span.span_id), ()),
            )
        return Stage(
            name=span.name,
            span_id=span.span_id,
            parent_id=span.parent_id,
            start=span.start,
            end=span.end,
            attributes=span.attributes,
            error=span.error,
            children=tuple(children),
        )


def _present(values: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if value is not None}
