"""A load that arrives on a fixed schedule, whatever the service does with it.

    python paced.py PORT RATE SECONDS

The latency of a request is counted from the moment it was due, not from when a connection was free for it: a service
that stalls is charged for everybody who had to wait (Tene, "How NOT to Measure Latency": coordinated omission). Prints
JSON, see `main`. Standard library only; one thread, which sleeps in `select` because `epoll` counts milliseconds.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

CONNECTIONS = 32
#: Seconds at the beginning that are not counted, and at the end to wait for what is still on its way.
WARM_UP, GRACE = 1.0, 3.0


@dataclass(slots=True, eq=False)
class Connection:
    """A kept connection; `due` is when the request that is on its way should have been sent."""

    socket: socket.socket
    due: float = 0.0
    received: bytearray = field(default_factory=bytearray)

    def send(self, request: bytes, due: float) -> None:
        """Send one request."""
        self.due = due
        self.received.clear()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Take what has come; True when the response is complete.

        Raises:
            RuntimeError: the connection was closed, or the response is not 200.
        """
        data = self.socket.recv(65536)
        if not data:
            raise RuntimeError("the service closed a connection")
        self.received += data
        return is_complete(bytes(self.received))


def is_complete(response: bytes) -> bool:
    """Whether a response that has a `Content-Length` is all there.

    Raises:
        RuntimeError: its status is not 200.
    """
    head, separator, body = response.partition(b"\r\n\r\n")
    if not separator:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the service answered {head.splitlines()[0].decode('latin-1')}")
    _, _, rest = head.lower().partition(b"content-length:")
    return len(body) >= int(rest.split(b"\r\n", 1)[0])


def quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank quantile of values in order; 0 of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def run(port: int, rate: float, seconds: float, request: bytes) -> tuple[list[float], list[float], int]:
    """Send `rate` requests a second.

    Returns:
        Latencies in seconds after the warm-up, those of requests that were not answered as `GRACE`; how late this
        generator itself was for each request, which is in the latencies too; how many were not answered in time.
    """
    idle = []
    for _ in range(CONNECTIONS):
        connected = socket.create_connection(("127.0.0.1", port))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        idle.append(Connection(connected))
    busy: dict[socket.socket, Connection] = {}
    waiting: deque[float] = deque()
    latencies: list[float] = []
    lateness: list[float] = []
    total = int(rate * (WARM_UP + seconds))
    made = 0
    start = time.perf_counter() + 0.05
    end = start + WARM_UP + seconds + GRACE
    while (now := time.perf_counter()) < end and (made < total or waiting or busy):
        while made < total and (due := start + made / rate) <= now:
            waiting.append(due)
            lateness.append(now - due)
            made += 1
        while waiting and idle:
            connection = idle.pop()
            connection.send(request, waiting.popleft())
            busy[connection.socket] = connection
        pause = max(0.0, start + made / rate - time.perf_counter()) if made < total else end - now
        for ready in select.select(list(busy), [], [], pause)[0]:
            connection = busy[ready]
            if connection.receive():
                if connection.due >= start + WARM_UP:
                    latencies.append(time.perf_counter() - connection.due)
                idle.append(busy.pop(ready))
    unanswered = total - made + len(waiting) + len(busy)
    for connection in (*idle, *busy.values()):
        connection.socket.close()
    return [*latencies, *([GRACE] * unanswered)], lateness, unanswered


def main() -> None:
    """Prints `{"p50": s, "p99": s, "p99.9": s, "max": s, "generator": s, "count": n, "sent": n, "unanswered": n}`."""
    port, rate, seconds, head = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.stdin.read()
    latencies, lateness, unanswered = run(port, rate, seconds, head.encode())
    ordered = sorted(latencies)
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    print(
        json.dumps(
            {
                **{name: quantile(ordered, share) for name, share in shares.items()},
                "generator": quantile(sorted(lateness), 0.99),
                "count": len(ordered),
                "sent": int(rate * (WARM_UP + seconds)),
                "unanswered": unanswered,
            }
        )
    )


if __name__ == "__main__":
    main()
