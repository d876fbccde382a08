"""OTLP protobuf: encoded spans as an ExportTraceServiceRequest, by resource and scope.

Source: opentelemetry/proto/collector/trace/v1/trace_service.proto
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from apivitals.export.otlp_spans import encode_span
from apivitals.export.otlp_values import schema_url_field, sdk_resource_field, sdk_scope_field
from apivitals.export.protobuf import LENGTH, delimited, tag, varint

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

# --- ExportTraceServiceRequest, ResourceSpans, ScopeSpans
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = tag(1, LENGTH), tag(2, LENGTH), tag(2, LENGTH)
_NONE = object()

#: Finished spans of one scope of one resource, encoded.
SpanGroup = tuple["Resource", "InstrumentationScope | None", Sequence[bytes]]


def traces_request(groups: Iterable[SpanGroup]) -> bytes:
    """The ExportTraceServiceRequest of encoded spans; equal resources and equal scopes are put together."""
    resources: list[tuple[Resource, list[tuple[InstrumentationScope | None, list[bytes]]]]] = []
    for resource, scope, bodies in groups:
        scopes = next((found for known, found in resources if known is resource or known == resource), None)
        if scopes is None:
            scopes = []
            resources.append((resource, scopes))
        together = next((found for known, found in scopes if known is scope or known == scope), None)
        if together is None:
            scopes.append((scope, list(bodies)))
        else:
            together.extend(bodies)
    return b"".join(
        delimited(
            _RESOURCE_SPANS,
            sdk_resource_field(resource)
            + b"".join(delimited(_SCOPE_SPANS, _scope_spans(scope, bodies)) for scope, bodies in scopes)
            + schema_url_field(resource.schema_url),
        )
        for resource, scopes in resources
    )


def _scope_spans(scope: InstrumentationScope | None, bodies: Sequence[bytes]) -> bytes:
    parts = [sdk_scope_field(scope)]
    for body in bodies:
        parts += (_SPANS, varint(len(body)), body)
    parts.append(schema_url_field(scope.schema_url if scope is not None else ""))
    return b"".join(parts)


class TraceBatch:
    """An export request that is put together span by span, so that the work can be spread over time.

    Attributes:
        size: how many bytes the spans take.
    """

    def __init__(self) -> None:
        self.size = 0
        self._groups: dict[tuple[int, int], tuple[Resource, InstrumentationScope | None, list[bytes]]] = {}
        self._resource: object = _NONE
        self._scope: InstrumentationScope | None = None
        self._bodies: list[bytes] = []

    @property
    def count(self) -> int:
        """How many spans there are."""
        return sum(len(bodies) for _, _, bodies in self._groups.values())

    def add(self, span: Any) -> None:
        """Encode one finished span; when that raises, the batch is as it was."""
        body = encode_span(span)
        resource, scope = span.resource, span.instrumentation_scope
        # Most spans are of the scope of the one before.
        if scope is not self._scope or resource is not self._resource:
            self._bodies = self._group(resource, scope)
            self._resource, self._scope = resource, scope
        self._bodies.append(body)
        self.size += len(body)

    def _group(self, resource: Resource, scope: InstrumentationScope | None) -> list[bytes]:
        # By identity, because hashing a resource of the SDK renders it as JSON.
        group = self._groups.get((id(resource), id(scope)))
        if group is None:
            group = self._groups[id(resource), id(scope)] = (resource, scope, [])
        return group[2]

    def encode(self) -> bytes:
        """The ExportTraceServiceRequest."""
        return traces_request(self._groups.values())
