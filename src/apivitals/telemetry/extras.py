"""Captured headers and hooks: what a request pays for only where somebody asked for it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry.trace import Span, Tracer

from apivitals.settings import Settings
from apivitals.telemetry.options import InstrumentationOptions, names
from apivitals.telemetry.request import Message, Receive, Request

logger = logging.getLogger(__name__)

#: Header names of which is remembered whether they are captured; clients choose them.
_REMEMBERED = 256


class HeaderCapture:
    """Turns headers into span attributes named `http.request.header.x_name`, as the upstream instrumentor names them.

    Args:
        side: `request` or `response`.
        names: regular expressions that a name has to match from end to end, in any case.
        sanitized: regular expressions; the value of a header whose name has one in it is replaced.
    """

    def __init__(self, side: str, names: Sequence[str], sanitized: Sequence[str]) -> None:
        self._side = side
        self._wanted = _any_of(names).fullmatch
        self._hidden = _any_of(sanitized).search if sanitized else None
        self._keys: dict[bytes, tuple[str, bool] | None] = {}

    def attributes(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
        """The attributes of some headers: a list of values each."""
        found: dict[str, list[str]] = {}
        for name, value in headers:
            key = self._key(name)
            if key is not None:
                found.setdefault(key[0], []).append("[REDACTED]" if key[1] else _decoded(value))
        return found

    def _key(self, name: bytes) -> tuple[str, bool] | None:
        try:
            return self._keys[name]
        except KeyError:
            text = _decoded(name).lower()
            key = None
            if self._wanted(text):
                hidden = self._hidden is not None and self._hidden(text) is not None
                key = (f"http.{self._side}.header.{text.replace('-', '_')}", hidden)
            if len(self._keys) < _REMEMBERED:
                self._keys[name] = key
            return key


class Extras:
    """What the requests of an application are accompanied by.

    Attributes:
        request_hook, response_hook: for each message received and sent, with a span of its own.
    """

    def __init__(self, settings: Settings, options: InstrumentationOptions, tracer: Tracer) -> None:
        sanitized = names(options.http_capture_headers_sanitize_fields, settings.http_capture_headers_sanitize_fields)
        asked = names(options.http_capture_headers_server_request, settings.http_capture_headers_server_request)
        answered = names(options.http_capture_headers_server_response, settings.http_capture_headers_server_response)
        excluded = options.exclude_spans or ()
        self.tracer = tracer
        self.request_hook = None if "receive" in excluded else options.client_request_hook
        self.response_hook = None if "send" in excluded else options.client_response_hook
        self._response_headers = HeaderCapture("response", answered, sanitized) if answered else None
        self._request_headers = HeaderCapture("request", asked, sanitized) if asked else None
        self._server_hook = options.server_request_hook
        self._complained: set[Any] = set()

    @classmethod
    def of(cls, settings: Settings, options: InstrumentationOptions, tracer: Tracer) -> Extras | None:
        """What was asked for, None for nothing."""
        extras = cls(settings, options, tracer)
        wanted = (
            extras.request_hook,
            extras.response_hook,
            extras._response_headers,
            extras._request_headers,
            extras._server_hook,
        )
        return None if all(one is None for one in wanted) else extras

    def begin(self, span: Span, scope: MutableMapping[str, Any]) -> None:
        """A request or a session begins."""
        if self._request_headers is not None and span.is_recording():
            span.set_attributes(self._request_headers.attributes(scope["headers"]))
        if self._server_hook is not None:
            self.call(self._server_hook, span, span, scope)

    def call(self, hook: Callable[..., None], span: Span, *arguments: Any) -> None:
        """Call a hook; what it raises is noted in the span, and goes no further."""
        try:
            hook(*arguments)
        except Exception as error:
            span.record_exception(error)
            if hook not in self._complained:
                self._complained.add(hook)
                logger.warning("the hook %r failed; said once", hook, exc_info=True)

    def message_span(self, kind: str, span: Span, scope: MutableMapping[str, Any]) -> AbstractContextManager[Span]:
        """The span of one message.

        Args:
            kind: `receive` or `send`.
            span: of the request or session.
            scope: as ASGI has it.
        """
        return self.tracer.start_as_current_span(f"{getattr(span, 'name', '')} {scope['type']} {kind}".strip())

    async def receive(self, receive: Receive, span: Span, scope: MutableMapping[str, Any]) -> Message:
        """Receive one message, in a span that the hook sees."""
        if self.request_hook is None:
            return await receive()
        with self.message_span("receive", span, scope) as own:
            message = await receive()
            own.set_attribute("asgi.event.type", message["type"])
            self.call(self.request_hook, own, own, scope, message)
        return message

    def sending(self, span: Span, scope: MutableMapping[str, Any], message: Message) -> None:
        """A message is about to be sent."""
        if message["type"] == "http.response.start" and self._response_headers is not None and span.is_recording():
            captured = self._response_headers.attributes(message.get("headers") or ())
            span.set_attributes(captured)
        if self.response_hook is not None:
            with self.message_span("send", span, scope) as own:
                own.set_attribute("asgi.event.type", message["type"])
                self.call(self.response_hook, own, own, scope, message)


class ExtrasRequest(Request):
    """A request that is accompanied."""

    __slots__ = ()

    async def receive(self) -> Message:
        """Hand on what the client sent, and show it to the hook."""
        extras = self._middleware.extras
        assert extras is not None
        return await extras.receive(super().receive, self.span, self.scope)

    async def send(self, message: Message) -> None:
        """Hand on what the application sends, once the hook and the span have seen it."""
        extras = self._middleware.extras
        assert extras is not None
        extras.sending(self.span, self.scope, message)
        await super().send(message)


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


def _decoded(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
