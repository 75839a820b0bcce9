"""A registry in memory, a clock that a test moves, and a bucket that nobody answers for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from obstore.store import MemoryStore, S3Store

from threefold.registry import Registry
from threefold.release import Release, Version

if TYPE_CHECKING:
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
