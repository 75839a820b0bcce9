"""Lambda's Runtime API on a loopback port: the conversation with the one runtime client that was given its address."""

from __future__ import annotations

import selectors
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_RECEIVE_BYTES: Final = 1 << 20
_HEAD_LIMIT_BYTES: Final = 4 << 20
PREFIX: Final = "/2018-06-01/runtime/"


class ProtocolError(Exception):
    """The client sent what the Runtime API does not know."""


@dataclass(slots=True)
class Request:
    """One HTTP request of the runtime client, to be answered on its connection."""

    connection: socket.socket
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    size_bytes: int


class RuntimeApi:
    """The server side for one environment; no thread of its own: whoever waits for the client does the reading.

    https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
    """

    def __init__(self, body_limit_bytes: int) -> None:
        """Listen on a free loopback port; of a longer body only the size is kept."""
        self._body_limit_bytes = body_limit_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._partial: dict[socket.socket, _Incoming] = {}

    @property
    def address(self) -> str:
        """Host and port, as AWS_LAMBDA_RUNTIME_API has them."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def receive(self, wait_seconds: float) -> Request | None:
        """Wait this long for a whole request.

        Raises:
            ProtocolError: what came is no request that a runtime client makes.
        """
        for key, _ in self._selector.select(wait_seconds):
            if key.fileobj is self._listener:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._selector.register(connection, selectors.EVENT_READ)
                self._partial[connection] = _Incoming(self._body_limit_bytes)
                continue
            connection = key.fileobj  # type: ignore[assignment]
            try:
                data = connection.recv(_RECEIVE_BYTES)
            except ConnectionError:
                data = b""
            if not data:
                self._drop(connection)
            elif (request := self._partial[connection].feed(connection, data)) is not None:
                self._partial[connection] = _Incoming(self._body_limit_bytes)
                return request
        return None

    @staticmethod
    def answer(
        request: Request, status: str, body: bytes = b'{"status":"OK"}', headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer a request; a client that has gone is noticed by its exit."""
        lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        try:
            request.connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        except OSError:
            return

    def close(self) -> None:
        """Stop listening and hang up: an idle runtime client exits of itself when that happens."""
        for connection in list(self._partial):
            self._drop(connection)
        self._selector.close()
        self._listener.close()

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._partial[connection]
        connection.close()


class _Incoming:
    """The bytes of one request so far."""

    __slots__ = ("_buffer", "_head", "_limit_bytes", "_seen_bytes", "_size_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, str]] | None = None
        self._size_bytes = 0
        self._seen_bytes = 0

    def feed(self, connection: socket.socket, data: bytes) -> Request | None:
        if self._head is None:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _HEAD_LIMIT_BYTES:
                    message = "request head too long"
                    raise ProtocolError(message)
                return None
            self._read_head(bytes(self._buffer[:end]))
            if self._head is not None and self._head[2].get("expect", "").lower() == "100-continue":
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            del self._buffer[: end + 4]
            self._seen_bytes = len(self._buffer)
        else:
            self._seen_bytes += len(data)
            # A body over the limit is drained, not kept: the client sends it all before it reads the answer.
            if self._size_bytes <= self._limit_bytes:
                self._buffer += data
        if self._seen_bytes < self._size_bytes or self._head is None:
            return None
        method, path, headers = self._head
        return Request(connection, method, path, headers, bytes(self._buffer), self._size_bytes)

    def _read_head(self, head: bytes) -> None:
        first, *rest = head.decode("latin-1").split("\r\n")
        try:
            method, path, _ = first.split(" ")
            pairs = [line.split(":", 1) for line in rest]
            headers = {name.strip().lower(): value.strip() for name, value in pairs}
            self._size_bytes = int(headers.get("content-length") or 0)
        except ValueError as error:
            message = f"not an HTTP request: {first[:80]!r}"
            raise ProtocolError(message) from error
        if headers.get("transfer-encoding"):
            message = "a streamed response is not supported by the embedded AWS"
            raise ProtocolError(message)
        self._head = (method, path, headers)
