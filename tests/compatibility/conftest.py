"""The kept files, and an account that they are put back into."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.request import Request, urlopen

import pytest
from obstore.store import MemoryStore

from tests.compatibility.account import BUCKETS, TABLES, Account, environment, files
from tests.functions.conftest import aws, aws_url, load
from threefold.package import Package, unpack
from threefold.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

__all__ = ["aws", "aws_url", "load"]

SCHEMAS: Final = sorted(Path(__file__).parent.glob("schema-*"))


@pytest.fixture(params=SCHEMAS, ids=lambda path: path.name)
def kept(request: pytest.FixtureRequest) -> Path:
    """One folder of kept files."""
    path: Path = request.param
    return path


def read(path: Path) -> Any:
    """A kept JSON document."""
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass
class Restored:
    """The account as the earlier code left it, and the functions of today within it."""

    kept: Path
    account: Account
    stream: ModuleType
    batch: ModuleType

    def job(self, name: str) -> dict[str, Any]:
        """The item of an upload's job, as today's code reads it."""
        event = read(self.kept / "events" / "uploads" / f"{name}.json")
        found = self.batch._jobs().find(self.batch.Upload.from_event(event["Records"][0]).job)
        assert found is not None, name
        return dict(found)

    def event(self, path: str) -> Any:
        """A kept event."""
        return read(self.kept / "events" / path)


@pytest.fixture
def restored(kept: Path, aws: str, load: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Restored]:
    account = Account()
    account.create_state_machine()
    for name, value in environment(account.queue_url).items():
        monkeypatch.setenv(name, value)
    versions = read(kept / "versions.json")
    for bucket in BUCKETS:
        for key, content in files(kept / "buckets" / bucket):
            account.put(bucket, key, content, versions.get(bucket, {}).get(key))
    for table in TABLES:
        for item in read(kept / "tables" / f"{table}.json"):
            account.dynamodb.put_item(TableName=table, Item=item)
    yield Restored(kept, account, load("stream"), load("batch"))
    with urlopen(Request(f"{aws}/moto-api/reset", method="POST")):
        pass


def contains(whole: Any, part: Any) -> bool:
    """Whether a document has all that another has; it may have more fields."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(name in whole and contains(whole[name], part[name]) for name in part)
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(contains, whole, part))
    if isinstance(part, float) and isinstance(whole, int | float):
        return bool(whole == pytest.approx(part, rel=1e-5, nan_ok=True))
    return bool(whole == part)


def labels(kept: Path) -> dict[tuple[str, str], str]:
    """The recorded digest of each package, by model and label."""
    found = (kept / "buckets" / "models" / "packages").glob("*/versions/*")
    return {(path.parent.parent.name, path.name): path.read_text() for path in found}


def packages(kept: Path, scratch: Path) -> dict[tuple[str, str], Package]:
    """All kept packages, unpacked."""
    return {
        label: unpack(kept / "buckets" / "models" / "packages" / label[0] / f"{digest}.zip", digest, scratch / digest)
        for label, digest in labels(kept).items()
    }


def memory(scratch: Path) -> Registry:
    return Registry(MemoryStore(), cache=scratch / "cache", baked=scratch / "baked", refresh_seconds=0.0)
