"""The span processors of a provider, sorted by what they want to hear of our spans.

Most processors do nothing when a span starts, and the SDK calls them nevertheless, each with a loop around it.
Whatever one of them raises ends here: the application has nothing to do with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

from apivitals.telemetry.processors import ClassifyingProcessor
from apivitals.telemetry.spans import ServerSpan

logger = logging.getLogger(__name__)

_SILENT_STARTS = {SpanProcessor.on_start, BatchSpanProcessor.on_start, SimpleSpanProcessor.on_start}


class Listeners:
    """Tells a provider's span processors about our spans.

    A processor that has a method `push` is given sampled spans through it, without being made to look at them. Our
    spans have their classes already, so a `ClassifyingProcessor` is passed by.

    Attributes:
        multi: holds the provider's processors.
        known: its processors when they were looked at last. They are a tuple that is replaced when one is added, so
            `multi._span_processors is known` says that none was.
        starting: somebody wants to hear of spans that start.
        ending: somebody wants to hear of spans that end.
    """

    def __init__(self, provider: TracerProvider) -> None:
        multi: Any = provider._active_span_processor
        # Whatever is not the stock one calls its processors in a way of its own.
        self.multi = multi if type(multi) is SynchronousMultiSpanProcessor else _Alone(multi)
        self.known: tuple[SpanProcessor, ...] = ()
        self._starts: list[Callable[..., Any]] = []
        self._endings: list[Callable[[Any], Any]] = []
        self._pushes: list[Callable[[ServerSpan], Any]] = []
        self._ends: list[Callable[[Any], Any]] = []
        self._complained: set[Any] = set()
        self.starting = False
        self.ending = False
        self.refresh()

    def refresh(self) -> None:
        """Look at the processors again."""
        known = self.multi._span_processors
        self._sort(known)
        self.known = known

    def _sort(self, processors: tuple[SpanProcessor, ...]) -> None:
        starts: list[Callable[..., Any]] = []
        endings: list[Callable[[Any], Any]] = []
        pushes: list[Callable[[ServerSpan], Any]] = []
        ends: list[Callable[[Any], Any]] = []
        for processor in processors:
            while type(processor) is ClassifyingProcessor:
                processor = processor._inner
            kind = type(processor)
            push = getattr(processor, "push", None)
            if callable(push):
                pushes.append(push)
                continue
            if kind.on_start not in _SILENT_STARTS:
                starts.append(processor.on_start)
            if kind._on_ending is not SpanProcessor._on_ending:
                endings.append(processor._on_ending)
            if kind.on_end is not SpanProcessor.on_end:
                ends.append(processor.on_end)
        self._starts, self._endings, self._pushes, self._ends = starts, endings, pushes, ends
        self.starting = bool(starts)
        self.ending = bool(endings or pushes or ends)

    def start(self, span: ServerSpan, parent: Context) -> None:
        """A span that is recording has started."""
        for on_start in self._starts:
            try:
                on_start(span, parent_context=parent)
            except Exception:  # noqa: BLE001 - a processor is anybody's code
                self._complain(on_start)

    def end(self, span: ServerSpan) -> None:
        """A span that was recording has ended."""
        for on_ending in self._endings:
            try:
                on_ending(span)
            except Exception:  # noqa: BLE001
                self._complain(on_ending)
        if span.flags & 1:
            for push in self._pushes:
                try:
                    push(span)
                except Exception:  # noqa: BLE001
                    self._complain(push)
        for on_end in self._ends:
            try:
                on_end(span)
            except Exception:  # noqa: BLE001
                self._complain(on_end)

    def _complain(self, called: Callable[..., Any]) -> None:
        if called not in self._complained:
            self._complained.add(called)
            logger.warning("the span processor's %r failed; said once", called, exc_info=True)


class _Alone:
    """A processor in the form of one that holds others."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._span_processors = (processor,)
