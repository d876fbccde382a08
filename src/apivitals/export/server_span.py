"""What the span encoder needs to know of a SERVER span of our own; whoever makes one has these fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Shape(Protocol):
    """What the SERVER spans of one method, route, status and error have in common; `encoded` is ours to fill.

    `status_code` is 0 unset, 1 ok, 2 error.
    """

    name: str
    attributes: tuple[tuple[str, Any], ...]
    status_code: int
    status_description: str
    encoded: bytes | None


class Peer(Protocol):
    """What the SERVER spans of one client, agent and host have in common; `encoded` is ours to fill."""

    attributes: tuple[tuple[str, Any], ...]
    encoded: bytes | None


class ServerSpan(Protocol):
    """A finished SERVER span: ids as integers (`parent_id` 0 for none), times in nanoseconds since the epoch.

    It may say `touched = False`: user code has written nothing to it, so that name, status, events, links and
    dropped counts are not asked for, and its own attributes repeat no key.

    Its attributes are those of the peer and those of the shape, which have no key in common, and then its own,
    which stand for those of the same key.
    Events and links are like the SDK's. `status_override` is a code and a description that stand for the
    shape's. `resource` and `instrumentation_scope` are the SDK's.
    """

    @property
    def trace_id(self) -> int:
        """128 bits."""

    @property
    def span_id(self) -> int:
        """64 bits."""

    @property
    def parent_id(self) -> int:
        """The caller's span, 0 at the root of a trace."""

    @property
    def trace_state(self) -> str:
        """As its header has it, empty for none."""

    @property
    def remote_parent(self) -> bool:
        """Whether the caller is in another process."""

    @property
    def name(self) -> str:
        """That of the shape, unless user code gave another."""

    @property
    def start_ns(self) -> int:
        """Nanoseconds since the epoch."""

    @property
    def end_ns(self) -> int:
        """Nanoseconds since the epoch."""

    @property
    def shape(self) -> Shape:
        """Shared by all spans of its kind."""

    @property
    def peer(self) -> Peer:
        """Shared by all spans of its client."""

    @property
    def status_override(self) -> tuple[int, str] | None:
        """Code and description in place of the shape's, None for the shape's."""

    @property
    def events(self) -> Sequence[Any]:
        """Like the SDK's."""

    @property
    def links(self) -> Sequence[Any]:
        """Like the SDK's."""

    @property
    def dropped_attributes(self) -> int:
        """Beyond the limit."""

    @property
    def dropped_events(self) -> int:
        """Beyond the limit."""

    @property
    def dropped_links(self) -> int:
        """Beyond the limit."""

    def own_attributes(self) -> list[tuple[str, Any]]:
        """What it shares with no other; of a key that is here twice the last counts."""
