"""A bucket on loopback that holds one release document: enough S3 for a function that starts."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from threefold.names import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.models import BenchModel


@contextmanager
def serve_release(bucket: str, model: BenchModel) -> Iterator[str]:
    """Serve a model's release document.

    Yields:
        The address, as AWS_ENDPOINT_URL has it.
    """
    content = json.dumps(model.registry.release(model.name).release.to_json()).encode()
    path = f"/{bucket}/{Prefix.RELEASES}{model.name}.json"

    class Handler(BaseHTTPRequestHandler):
        """Answers the one object, and 404 for all else."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == path
            body = content if found else b"<Error><Code>NoSuchKey</Code></Error>"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
            if found:
                self.send_header("ETag", '"0123456789abcdef0123456789abcdef"')
                self.send_header("x-amz-version-id", "bench-version")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
