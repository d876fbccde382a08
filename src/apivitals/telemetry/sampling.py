"""What the stock samplers decide, worked out once, so that a request need not ask them.

The stock samplers look at nothing but the trace id and the flag of the parent. Any other sampler is asked, as the
SDK does it.
Source: https://opentelemetry.io/docs/specs/otel/trace/sdk/#built-in-samplers
"""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, StaticSampler, TraceIdRatioBased

#: The part of a trace id that `TraceIdRatioBased` compares with its bound.
MASK = TraceIdRatioBased.TRACE_ID_LIMIT
_ALWAYS, _NEVER = MASK + 1, 0


@dataclass(frozen=True, slots=True)
class SamplingRule:
    """A trace is sampled when the last 64 bits of its id are below `bound`.

    Attributes:
        bound: 0 samples nothing, 2**64 everything.
        parent_decides: a request with a parent is sampled when the parent is, whatever its id.
    """

    bound: int
    parent_decides: bool


def stock_rule(sampler: Sampler) -> SamplingRule | None:
    """The rule of a stock sampler; None for any other, which has to be asked about each request."""
    # The method and not the class, because the SDK itself has subclasses that only differ in how they are made.
    if type(sampler).should_sample is not ParentBased.should_sample:
        bound = _bound(sampler)
        return None if bound is None else SamplingRule(bound, False)
    assert isinstance(sampler, ParentBased)
    bound = _bound(sampler._root)
    delegates = (
        (sampler._remote_parent_sampled, _ALWAYS),
        (sampler._local_parent_sampled, _ALWAYS),
        (sampler._remote_parent_not_sampled, _NEVER),
        (sampler._local_parent_not_sampled, _NEVER),
    )
    if bound is None or any(_bound(delegate) != usual for delegate, usual in delegates):
        return None
    return SamplingRule(bound, True)


def _bound(sampler: Sampler) -> int | None:
    method = type(sampler).should_sample
    if method is StaticSampler.should_sample:
        assert isinstance(sampler, StaticSampler)
        return {Decision.RECORD_AND_SAMPLE: _ALWAYS, Decision.DROP: _NEVER}.get(sampler._decision)
    return sampler.bound if type(sampler) is TraceIdRatioBased else None
