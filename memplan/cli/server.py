"""A small HTTP server for this machine alone: GET, one answer a connection, everything bounded.

One thread accepts and reads request heads, however slowly they come, until they are whole or late; a few
workers answer them in the order in which they came. What there is no place for gets a 503, never a reset.
"""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

HOST = "127.0.0.1"
BACKLOG = 512
MOST_OPEN = 400
"""Connections whose request is not whole yet."""
MOST_WAITING = 256
"""Whole requests that wait for a worker."""
MOST_HEAD = 16 * 2**10
WORKERS = 160
"""Threads: most of them wait for pages that are being computed, the others serve what is known."""
RETRY_SECONDS = 10
"""When whoever got a 503 may ask again (Retry-After)."""
HEAD_SECONDS, SEND_SECONDS = 5.0, 10.0
REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request's first line and headers; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    late: float
    head: bytearray = field(default_factory=bytearray)


Answer = Callable[[Request], tuple[int, str]]


class Server:
    """`serve_forever` until `shutdown`; `answer` gives status and HTML for a request, in several threads."""

    def __init__(self, port: int, answer: Answer) -> None:
        self._answer = answer
        self._listener = socket.create_server((HOST, port), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.server_address: tuple[str, int] = self._listener.getsockname()[:2]
        self._selector = selectors.DefaultSelector()
        self._waiting: queue.Queue[_Connection] = queue.Queue(MOST_WAITING)
        self._open: set[_Connection] = set()
        self._stop, self._stopped = threading.Event(), threading.Event()

    def serve_forever(self) -> None:
        """Serve until `shutdown`."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        for _ in range(WORKERS):
            threading.Thread(target=self._work, daemon=True).start()
        try:
            while not self._stop.is_set():
                for key, _ in self._selector.select(0.2):
                    self._accept() if key.data is None else self._read(key.data)
                self._drop_late()
        finally:
            self._stopped.set()

    def shutdown(self) -> None:
        """Stop serving and wait for it, at most five seconds."""
        self._stop.set()
        self._stopped.wait(5)

    def server_close(self) -> None:
        """Close the listener and all connections."""
        self._stop.set()
        for connection in self._open:
            connection.socket.close()
        self._listener.close()
        self._selector.close()

    # ---- reading -------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # nobody else waits, or no descriptor is left: the backlog keeps them
                return
            client.setblocking(False)
            connection = _Connection(client, time.monotonic() + HEAD_SECONDS)
            if len(self._open) >= MOST_OPEN:
                self._refuse(connection, 503)
                continue
            self._open.add(connection)
            self._selector.register(client, selectors.EVENT_READ, connection)

    def _read(self, connection: _Connection) -> None:
        try:
            chunk = connection.socket.recv(MOST_HEAD)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        connection.head += chunk
        if not chunk:
            self._forget(connection)
            connection.socket.close()
        elif b"\r\n\r\n" in connection.head or b"\n\n" in connection.head:
            self._forget(connection)
            try:
                self._waiting.put_nowait(connection)
            except queue.Full:
                self._refuse(connection, 503)
        elif len(connection.head) > MOST_HEAD:
            self._forget(connection)
            self._refuse(connection, 431)

    def _drop_late(self) -> None:
        now = time.monotonic()
        for connection in [each for each in self._open if each.late < now]:
            self._forget(connection)
            self._refuse(connection, 408)

    def _forget(self, connection: _Connection) -> None:
        self._open.discard(connection)
        self._selector.unregister(connection.socket)

    def _refuse(self, connection: _Connection, status: int) -> None:
        """A short answer that fits any socket's buffer, so that sending it never waits."""
        with contextlib.suppress(OSError):
            connection.socket.send(_response(status, REASONS[status]))
        _close(connection.socket)

    # ---- answering -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                connection = self._waiting.get(timeout=5)
            except queue.Empty:
                continue
            if not _has_gone(connection.socket):
                _send(connection.socket, self._respond(bytes(connection.head)))
            _close(connection.socket)

    def _respond(self, head: bytes) -> bytes:
        request = parse(head)
        if request is None:
            return _response(400, REASONS[400])
        if request.method not in ("GET", "HEAD"):
            return _response(405, REASONS[405])
        status, text = self._answer(request)
        return _response(status, text, request.method == "HEAD")


def parse(head: bytes) -> Request | None:
    """The request that a head is; None where it is none."""
    lines = head.decode("latin-1").replace("\r\n", "\n").partition("\n\n")[0].split("\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    pairs = [line.partition(":") for line in lines[1:]]
    names = [name.strip().lower() for name, _, _ in pairs]
    if not all(colon for _, colon, _ in pairs) or names.count("host") > 1:
        return None
    return Request(
        words[0], words[1], {name: pair[2].strip() for name, pair in zip(names, pairs, strict=True)}
    )


def _response(status: int, text: str, head_only: bool = False) -> bytes:
    body = text.encode("utf-8", errors="replace")
    later = f"Retry-After: {RETRY_SECONDS}\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\n{later}Content-Type: text/html; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        "Referrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\nConnection: "
        "close\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if head_only else body)


def _has_gone(client: socket.socket) -> bool:
    """Whether the client closed its side while it waited: nothing needs to be computed for it."""
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _send(client: socket.socket, data: bytes) -> None:
    """All of it within SEND_SECONDS, or not: a client that reads slowly or went away is no error of ours."""
    end = time.monotonic() + SEND_SECONDS
    view = memoryview(data)
    with contextlib.suppress(OSError):
        while view and (left := end - time.monotonic()) > 0:
            client.settimeout(left)
            view = view[client.send(view) :]


def _close(client: socket.socket) -> None:
    """End a connection so that what was sent arrives: closing with unread input would reset it."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        client.setblocking(False)
        for _ in range(64):
            if not client.recv(2**16):
                break
    client.close()
