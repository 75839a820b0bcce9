"""An AWS that sometimes fails: a proxy before the embedded one, for the calls that a function makes."""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOP: Final = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


class Faults:
    """What is done to calls, and how often it was.

    Attributes:
        done: how often each fault was given, by its name.
    """

    def __init__(self, seed: int, *, throttled: float, unprocessed: float, unsent: float, refused: float) -> None:
        """Set the shares: of writes that are throttled, or done in part; of sends that are done in part, or refused."""
        self.done: Counter[str] = Counter()
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._shares = {"throttled": throttled, "unprocessed": unprocessed, "unsent": unsent, "refused": refused}

    def hits(self, fault: str) -> bool:
        with self._lock:
            hit = self._dice.random() < self._shares[fault]
            self.done[fault] += hit
            return hit

    def before(self, operation: str, document: Any) -> tuple[int, dict[str, Any]] | None:
        """An answer in the place of AWS's."""
        if operation.endswith("BatchWriteItem") and self.hits("throttled"):
            return 400, {"__type": "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"}
        if operation.endswith("SendMessageBatch") and self.hits("refused"):
            return 503, {"__type": "com.amazonaws.sqs#ServiceUnavailable", "message": "try again"}
        return None

    def divide(self, operation: str, document: Any) -> tuple[Any, list[Any]]:
        """What of a call goes through, and what does not."""
        if operation.endswith("BatchWriteItem") and self.hits("unprocessed"):
            ((table, requests),) = document["RequestItems"].items()
            if len(requests) > 1:
                half = len(requests) // 2
                return document | {"RequestItems": {table: requests[:half]}}, requests[half:]
        if operation.endswith("SendMessageBatch") and self.hits("unsent"):
            entries = document["Entries"]
            if len(entries) > 1:
                half = len(entries) // 2
                return document | {"Entries": entries[:half]}, entries[half:]
        return document, []

    def complete(self, document: Any, answer: Any, left: list[Any]) -> Any:
        """AWS's answer with what did not go through."""
        if "RequestItems" in document:
            ((table, _),) = document["RequestItems"].items()
            return answer | {"UnprocessedItems": {table: left}}
        failed = [{"Id": entry["Id"], "SenderFault": False, "Code": "InternalError"} for entry in left]
        return answer | {"Failed": [*answer.get("Failed", []), *failed]}


@contextmanager
def proxy(endpoint_url: str, faults: Faults) -> Iterator[str]:  # noqa: C901 - a class within, which is one handler
    """Run the proxy; its URL."""
    address = urlsplit(endpoint_url)
    held = threading.local()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def finish(self) -> None:
            """Close what the caller's connection was passed on through."""
            super().finish()
            if (connection := getattr(held, "connection", None)) is not None:
                connection.close()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def _answer(self, status: int, headers: Any, body: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            operation = self.headers.get("x-amz-target") or ""
            document = json.loads(body) if operation and body else None
            left: list[Any] = []
            if document is not None:
                if (instead := faults.before(operation, document)) is not None:
                    kind = [("content-type", "application/x-amz-json-1.0")]
                    self._answer(instead[0], kind, json.dumps(instead[1]).encode())
                    return
                passed, left = faults.divide(operation, document)
                if left:
                    body = json.dumps(passed).encode()
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            connection = getattr(held, "connection", None)
            if connection is None:
                connection = held.connection = http.client.HTTPConnection(str(address.hostname), address.port)
            try:
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                found = response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                held.connection = None
                self.close_connection = True
                return
            if left and response.status == http.HTTPStatus.OK:
                found = json.dumps(faults.complete(document, json.loads(found), left)).encode()
                kept = [(name, value) for name, value in response.getheaders() if name.lower() != "x-amz-crc32"]
                self._answer(response.status, kept, found)
                return
            self._answer(response.status, response.getheaders(), found)

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _pass  # noqa: N815 - the base class's names

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Say nothing of callers that were killed."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
