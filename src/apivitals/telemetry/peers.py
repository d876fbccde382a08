"""What the requests of one client to one host have in common: made once and kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from opentelemetry.util.http import detect_synthetic_user_agent

#: Peers that are kept; then they are forgotten, so that clients that come and go take no memory.
_KEPT = 1024
#: Host and agent of a peer that is kept. Clients choose them, and can make them as long as the server allows.
_KEPT_LENGTH = 512

# RFC 3986, section 3.2, without the user information, which is not for a Host header.
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.~!$&'()*+,;=%-]+)(?::(\d{0,5}))?", re.ASCII)
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Peer:
    """What the requests of one client to one host have in common; `encoded` is the span encoder's.

    Attributes:
        attributes: of the spans.
        scheme, version: of URL and protocol, which are attributes of the shape of a request.
        active: by method, where the requests are counted that are being served.
    """

    __slots__ = ("active", "attributes", "encoded", "scheme", "version")

    def __init__(
        self, host: str | None, port: int | None, agent: str | None, client: str | None, scheme: str, version: str
    ) -> None:
        pairs = {
            "server.address": host,
            "server.port": port,
            "user_agent.original": agent,
            "user_agent.synthetic.type": detect_synthetic_user_agent(agent),
            "client.address": client,
        }
        self.attributes: tuple[tuple[str, Any], ...] = tuple(
            (name, value) for name, value in pairs.items() if value is not None
        )
        self.encoded: bytes | None = None
        self.scheme = scheme
        self.version = version
        self.active: dict[str, set[int]] = {}


#: For spans that bring all of their attributes themselves.
NO_PEER = Peer(None, None, None, None, "", "")


class Peers:
    """The peers that were seen last."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Peer] = {}

    def of(self, scope: MutableMapping[str, Any], headers: Mapping[bytes, bytes]) -> Peer:
        """The peer of a request.

        Args:
            scope: of HTTP or of a WebSocket session.
            headers: by name.
        """
        client = scope.get("client")
        host, agent = headers.get(b"host"), headers.get(b"user-agent")
        key = (host, agent, client[0] if client else None, scope.get("scheme"), scope.get("http_version"))
        return self._kept.get(key) or self._made(key, scope)

    def _made(self, key: tuple[Any, ...], scope: MutableMapping[str, Any]) -> Peer:
        host, agent, client, scheme, version = key
        scheme = scheme or ("ws" if scope["type"] == "websocket" else "http")
        address, port = server_address(host, scheme, scope.get("server"))
        peer = Peer(
            address, port, None if agent is None else agent.decode("latin-1"), client or None, scheme, version or ""
        )
        if len(host or b"") + len(agent or b"") <= _KEPT_LENGTH:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[key] = peer
        return peer


def server_address(host: bytes | None, scheme: str, server: Any) -> tuple[str | None, int | None]:
    """`server.address` and `server.port`: of the Host header, without one of the socket; None for a malformed host.

    Args:
        host: the value of the header.
        scheme: decides the port that the header leaves out.
        server: of the ASGI scope: address and port, or a path and None for a Unix socket.
    """
    if host is None:
        return (server[0] or None, server[1]) if server else (None, None)
    matched = _AUTHORITY.fullmatch(host.decode("latin-1").strip())
    if matched is None:
        return None, None
    address, digits = matched.groups()
    port = int(digits) if digits else _PORTS.get(scheme)
    return (address.strip("[]"), port) if port is None or port <= 65535 else (None, None)
