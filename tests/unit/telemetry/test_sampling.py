"""The rule of a stock sampler decides as the sampler does; any other sampler has none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    AlwaysRecordSampler,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from apivitals.telemetry.sampling import MASK, SamplingRule, stock_rule

STOCK: list[Sampler] = [
    ALWAYS_ON,
    ALWAYS_OFF,
    DEFAULT_ON,
    DEFAULT_OFF,
    TraceIdRatioBased(0.0),
    TraceIdRatioBased(0.05),
    TraceIdRatioBased(1.0),
    ParentBasedTraceIdRatio(0.3),
    ParentBased(TraceIdRatioBased(0.7)),
]


@given(
    st.sampled_from(STOCK),
    st.integers(1, 2**128 - 1),
    st.sampled_from([None, (False, False), (False, True), (True, False), (True, True)]),
)
def test_a_rule_decides_as_its_sampler(sampler: Sampler, trace_id: int, parent: tuple[bool, bool] | None) -> None:
    rule = stock_rule(sampler)
    assert rule is not None
    context = Context()
    if parent is not None:
        sampled, remote = parent
        span = SpanContext(trace_id, 1, remote, TraceFlags(TraceFlags.SAMPLED if sampled else 0))
        context = set_span_in_context(NonRecordingSpan(span), context)
    decided = parent[0] if parent is not None and rule.parent_decides else trace_id & MASK < rule.bound
    asked = sampler.should_sample(context, trace_id, "GET", attributes={})
    assert decided is (asked.decision is Decision.RECORD_AND_SAMPLE)
    assert asked.decision is not Decision.RECORD_ONLY


class Own(Sampler):
    def should_sample(self, *arguments: Any, **more: Any) -> SamplingResult:
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return "own"


class OwnRatio(TraceIdRatioBased):
    @property
    def bound(self) -> int:
        return 0


class OwnParent(ParentBased):
    should_sample = Own.should_sample  # type: ignore[assignment]


@pytest.mark.parametrize(
    "sampler",
    [
        Own(),
        OwnRatio(0.5),
        OwnParent(ALWAYS_ON),
        StaticSampler(Decision.RECORD_ONLY),
        AlwaysRecordSampler(ALWAYS_ON),
        ParentBased(Own()),
        ParentBased(AlwaysRecordSampler(ALWAYS_OFF)),
        ParentBased(ALWAYS_ON, remote_parent_sampled=ALWAYS_OFF),
        ParentBased(ALWAYS_ON, local_parent_sampled=TraceIdRatioBased(0.5)),
        ParentBased(ALWAYS_ON, remote_parent_not_sampled=Own()),
        ParentBased(ALWAYS_ON, local_parent_not_sampled=ALWAYS_ON),
    ],
)
def test_any_other_sampler_has_no_rule(sampler: Sampler) -> None:
    assert stock_rule(sampler) is None


def test_the_rules_themselves() -> None:
    assert stock_rule(ALWAYS_ON) == SamplingRule(2**64, False)
    assert stock_rule(DEFAULT_OFF) == SamplingRule(0, True)
    assert stock_rule(ParentBasedTraceIdRatio(0.25)) == SamplingRule(2**62, True)
