"""One kept HTTP connection to one endpoint, on which an exchange as a whole has a deadline.

A socket's timeout is one of each read: a server that sends a byte now and then would hold its client for
ever. Here what is left of the exchange's time is set before every read and write.
"""

from __future__ import annotations

import io
import os
import socket
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from apivitals.errors import ConfigurationError
from apivitals.export.otlp_settings import OtlpSettings

if TYPE_CHECKING:
    import http.client
    import ssl

#: More of an answer than this is not read.
_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said: its status, its headers with names in lower case, and the start of its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """Posts to the endpoint of the settings, one request at a time.

    Raises:
        ConfigurationError: the certificates that the settings name cannot be used.
    """

    def __init__(self, settings: OtlpSettings) -> None:
        self._url = urlsplit(settings.endpoint)
        self._port = self._url.port or (443 if self._url.scheme == "https" else 80)
        self._tls = _tls(settings) if self._url.scheme == "https" else None
        self._proxy = _proxy(self._url)
        self._kept: http.client.HTTPConnection | None = None

    @property
    def kept(self) -> bool:
        """Whether the connection of an earlier request is still there."""
        return self._kept is not None

    def post(self, body: bytes, headers: Mapping[str, str | bytes], deadline: float) -> Answer:
        """Send a request and read the answer until `deadline` of the monotonic clock, a look-up of the name apart.

        Raises:
            OSError, http.client.HTTPException, ValueError: it did not work out; the connection is closed.
        """
        try:
            connection = self._kept
            if connection is None:
                connection = self._kept = self._opened(deadline)
            else:
                socket_: Any = connection.sock
                socket_.deadline = deadline
            connection.request("POST", self._target(), body, headers)
            response = connection.getresponse()
            answer = Answer(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(_ANSWER_BYTES),
            )
        except BaseException:
            self.close()
            raise
        # The rest of a long answer would be taken for the next one.
        if connection.sock is None or not response.isclosed():
            self.close()
        return answer

    def close(self) -> None:
        """Close what is kept; the next request opens a new connection."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def _target(self) -> str:
        path = urlunsplit(("", "", self._url.path or "/", self._url.query, ""))
        if self._proxy is not None and self._tls is None:
            return f"http://{self._url.netloc}{path}"
        return path

    def _opened(self, deadline: float) -> http.client.HTTPConnection:
        import http.client

        host = self._url.hostname or ""
        via = self._proxy
        found = _reach(*((via.hostname or "", via.port or 80) if via else (host, self._port)), deadline)
        try:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                if via is not None:
                    _tunnel(found, host, self._port, via, deadline)
                found.settimeout(_left(deadline))
                found = self._tls.wrap_socket(found, server_hostname=host)
        except BaseException:
            found.close()
            raise
        connection = http.client.HTTPConnection(host, self._port)
        connection.default_port = 443 if self._tls is not None else 80
        # The deadline is that of an exchange, so a new connection must never be made behind our back.
        connection.auto_open = 0
        connection.sock = _DeadlineSocket(found, deadline)
        return connection


class _DeadlineSocket:
    """As much of a socket as http.client uses."""

    def __init__(self, inner: socket.socket, deadline: float) -> None:
        self._inner = inner
        self.deadline = deadline

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._inner.settimeout(_left(self.deadline))
            view = view[self._inner.send(view) :]

    def makefile(self, mode: str, *args: Any) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self))

    def close(self) -> None:
        self._inner.close()


class _DeadlineReader(io.RawIOBase):
    def __init__(self, owner: _DeadlineSocket) -> None:
        self._owner = owner
        # A file of the socket keeps it open when http.client closes it, with the body still to be read.
        self._file = owner._inner.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._owner._inner.settimeout(_left(self._owner.deadline))
        return self._file.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _left(deadline: float) -> float:
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _reach(host: str, port: int, deadline: float) -> socket.socket:
    """A connected socket; all addresses of the host together have the time that is left."""
    problem: OSError = OSError(f"{host!r} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        found = socket.socket(family, kind, protocol)
        try:
            found.settimeout(_left(deadline))
            found.connect(address)
        except OSError as error:
            problem = error
            found.close()
        else:
            return found
    raise problem


def _tunnel(found: socket.socket, host: str, port: int, via: SplitResult, deadline: float) -> None:
    """Have a proxy connect us through."""
    from http.client import HTTPResponse

    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    asked = _DeadlineSocket(found, deadline)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if via.username:
        lines.append(f"Proxy-Authorization: {proxy_credentials(via)}")
    asked.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
    response = HTTPResponse(asked, method="CONNECT")  # type: ignore[arg-type]
    try:
        response.begin()
        if response.status != 200:
            raise OSError(f"the proxy {via.hostname} answered {response.status} {response.reason}")
    finally:
        response.close()


def proxy_credentials(via: SplitResult) -> str:
    """The value of Proxy-Authorization for the user and the password of a proxy's URL."""
    text = f"{unquote(via.username or '')}:{unquote(via.password or '')}"
    return f"Basic {b64encode(text.encode()).decode()}"


def _proxy(url: SplitResult) -> SplitResult | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name for a URL."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass

    named = getproxies_environment().get(url.scheme)
    if not named or proxy_bypass(url.netloc):
        return None
    via = urlsplit(named if "//" in named else f"//{named}", scheme="http")
    try:
        usable = via.scheme == "http" and via.hostname and via.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(f"{url.scheme}_proxy is no proxy that can be used; give a URL like http://host:3128")
    return via


def _tls(settings: OtlpSettings) -> ssl.SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=settings.certificate or None)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the trusted certificates in {settings.certificate!r} cannot be read ({error}); give a PEM file"
        ) from error
    if settings.client_certificate:
        try:
            # A key that is encrypted would make OpenSSL ask for its password on the terminal.
            context.load_cert_chain(settings.client_certificate, settings.client_key or None, password="")
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the client certificate {settings.client_certificate!r} and its key "
                f"{settings.client_key or settings.client_certificate!r} cannot be used ({error}); "
                "give two PEM files that belong together, the key not encrypted"
            ) from error
    return context
