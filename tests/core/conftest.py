"""A registry in memory, a clock that a test moves, and buckets that answer badly or not at all."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from obstore.store import MemoryStore, S3Store

from threefold.registry import Registry
from threefold.release import Release, Version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from threefold.package import Package


@dataclass
class Clock:
    """Seconds that go on only when a test says so."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def registry(store: MemoryStore, clock: Clock, tmp_path: Path) -> Registry:
    return Registry(store, cache=tmp_path / "cache", baked=tmp_path / "baked", clock=clock)


@pytest.fixture
def dead_store() -> S3Store:
    """A bucket behind a port that nobody listens on."""
    return S3Store(
        "models",
        endpoint="http://127.0.0.1:1",
        region="eu-central-1",
        access_key_id="none",
        secret_access_key="none",
        client_options={"allow_http": True, "connect_timeout": timedelta(seconds=1)},
        retry_config={"max_retries": 0},
    )


class Shelf:
    """Publishes packages and writes releases as `threefold publish` and `promote` do."""

    def release(self, registry: Registry, champion: Package, **fields: object) -> Release:
        """Put the package and make it champion, whatever was before."""
        registry.packages.publish(champion)
        name = champion.manifest.name
        release = Release(model=name, champion=Version(champion.digest, champion.manifest.version), **fields)  # type: ignore[arg-type]
        current = registry.current(name)
        registry.write_release(release, replaces=current and current[1])
        return release


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


class Line:
    """A bucket at the end of a line that breaks: its connections end after some bytes, or it is dead altogether.

    Attributes:
        objects: content by key.
        cut_after: the bytes of content that one connection carries; None for any number.
        left: the bytes of content that the line carries until it is dead; None for any number.
        ranges: what was asked for, and how much of it was sent: (start, end, sent).
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.cut_after: int | None = None
        self.left: int | None = None
        self.ranges: list[tuple[int, int, int]] = []
        line = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                content = line.objects.get(self.path.removeprefix("/models/"))
                tag = content is not None and f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
                if line.left is not None and line.left <= 0:
                    self.send_error(503)
                elif content is None:
                    self.send_error(404)
                elif self.headers.get("If-Match", tag) != tag:
                    self.send_error(412)
                else:
                    start, end = 0, len(content)
                    if (asked := self.headers.get("Range")) is not None:
                        first, _, last = asked.removeprefix("bytes=").partition("-")
                        start, end = int(first), min(end, int(last) + 1)
                    self.send_response(206 if asked else 200)
                    self.send_header("ETag", str(tag))
                    self.send_header("Last-Modified", "Wed, 21 Oct 2026 07:28:00 GMT")
                    self.send_header("Content-Length", str(end - start))
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
                    self.end_headers()
                    if body:
                        self.wfile.write(content[start : start + line.carries(start, end)])
                self.close_connection = True

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def carries(self, start: int, end: int) -> int:
        sent = min(size for size in (end - start, self.cut_after, self.left) if size is not None)
        if self.left is not None:
            self.left -= sent
        self.ranges.append((start, end, sent))
        return sent

    def store(self, retries: int = 0) -> S3Store:
        """The bucket, by a client that tries again so often by itself."""
        return S3Store(
            "models",
            endpoint=f"http://127.0.0.1:{self._server.server_port}",
            region="eu-central-1",
            access_key_id="none",
            secret_access_key="none",
            client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
            retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=2)},
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()
