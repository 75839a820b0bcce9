"""What a collection takes and what it leaves, against a bucket that keeps versions and a table of jobs."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
from botocore.exceptions import ClientError
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from threefold.jobs import JobState
from threefold.release import Challenger, Release, Version
from threefold_ops import target as targets
from threefold_ops.errors import OperatorError
from threefold_ops.registry import collection, inventory
from threefold_ops.registry.inventory import Inventory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threefold_ops.registry.collection import Collected, ModelPlan, Plan
    from threefold_ops.target import Target

OLD: Final = 200
CONTENT: Final = b"a package"


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def version(name: str) -> Version:
    return Version(digest(name), name)


class World:
    """A registry and a table of jobs, in which time has passed."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.s3, self.dynamodb = target.client("s3"), target.client("dynamodb")
        self.bucket = self.jobs = f"world-{uuid.uuid4().hex}"
        self.s3.create_bucket(Bucket=self.bucket)
        self.s3.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})
        self.dynamodb.create_table(
            TableName=self.jobs,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        )

    def put(self, key: str, content: bytes, days: float) -> str:
        """An object version that was written so many days ago."""
        found: str = self.s3.put_object(Bucket=self.bucket, Key=key, Body=content)["VersionId"]
        (written,) = [
            each
            for each in s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[self.bucket].keys.getlist(key)
            if each.version_id == found
        ]
        written.last_modified = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=days)
        return found

    def publish(self, *names: str, days: float = OLD, model: str = "wine", labels: bool = True) -> None:
        for name in names:
            self.put(f"packages/{model}/{digest(name)}.zip", CONTENT, days)
            if labels:
                self.put(f"packages/{model}/versions/{name}", digest(name).encode(), days)

    def release(
        self, champion: str, *previous: str, days: float = 0, model: str = "wine", challenger: str | None = None
    ) -> str:
        trial = Challenger(digest(challenger), challenger, mode="canary", percent=5, salt="") if challenger else None
        document = Release(
            model=model, champion=version(champion), challenger=trial, previous=tuple(map(version, previous))
        )
        return self.put(f"releases/{model}.json", json.dumps(document.to_json()).encode(), days)

    def job(self, state: str, *, sk: str = "job", **values: str) -> None:
        item = {"pk": f"job#{uuid.uuid4().hex}", "sk": sk, "state": state, **values}
        self.dynamodb.put_item(TableName=self.jobs, Item={name: {"S": value} for name, value in item.items()})

    def plan(self, **options: Any) -> Plan:
        return collection.plan(self.target, self.bucket, self.jobs, **options)

    def planned(self, model: str = "wine", **options: Any) -> ModelPlan:
        (found,) = [one for one in self.plan(**options).models if one.model == model]
        return found

    def collect(self, found: Plan | None = None) -> Collected:
        return collection.collect(self.target, found or self.plan())

    def there(self, name: str, model: str = "wine") -> bool:
        listed = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=f"packages/{model}/{digest(name)}.zip")
        return bool(listed["KeyCount"] == 1)


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield targets.emulator(f"http://{host}:{port}")
    server.stop()


@pytest.fixture
def world(target: Target) -> World:
    return World(target)


def going(found: ModelPlan) -> list[str]:
    return [one.version for one in found.goes]


def test_what_the_release_names_stays_however_old(world: World) -> None:
    world.publish("1.0", "1.1", "1.2", "1.3")
    world.release("1.2", "1.1", challenger="1.3", days=OLD)
    found = world.planned()
    assert going(found) == ["1.0"]
    assert found.stays == {"released": 3}


def test_a_package_that_waits_for_its_promotion_stays_for_the_kept_days(world: World) -> None:
    world.publish("1.0")
    world.release("1.0", days=OLD)
    world.publish("2.0", days=89)
    world.publish("3.0", days=91)
    found = world.planned()
    assert going(found) == ["3.0"]
    assert found.stays == {"released": 1, "recent": 1}
    assert going(world.planned(keep_days=80)) == ["3.0", "2.0"]


def test_what_was_in_force_when_the_kept_days_began_stays_and_what_ended_before_goes(world: World) -> None:
    names = ["early", "at-the-edge", "within", "now"]
    world.publish(*names)
    world.release("early", days=150)
    world.release("at-the-edge", days=100)  # In force until 50 days ago.
    world.release("within", days=50)
    for i in range(collection.KEPT_RELEASES):
        world.release("now", days=10 - i / 10)
    found = world.planned()
    assert going(found) == ["early"]
    assert found.stays == {"history": 2, "released": 1}
    (one,) = found.goes
    assert one.named_until is not None
    assert abs(datetime.now(UTC) - timedelta(days=100) - one.named_until) < timedelta(minutes=1)


def test_the_last_ten_releases_count_whatever_their_age(world: World) -> None:
    names = [f"1.{i}" for i in range(12)]
    world.publish(*names)
    for i, name in enumerate(names):
        world.release(name, days=190 - i)
    found = world.planned()
    assert set(going(found)) == {"1.0", "1.1"}
    assert found.stays == {"history": 9, "released": 1}


def test_what_no_release_ever_named_goes_and_says_so(world: World) -> None:
    world.publish("1.0", "stray", labels=False)
    world.release("1.0", days=OLD)
    (one,) = world.planned().goes
    assert (one.digest, one.version, one.named_until) == (digest("stray"), "", None)
    assert (one.size_bytes, (datetime.now(UTC) - one.published).days) == (len(CONTENT), OLD)


def test_a_model_without_a_release_keeps_what_is_recent_alone(world: World) -> None:
    world.publish("old", model="beer")
    world.publish("new", model="beer", days=1)
    found = world.planned("beer")
    assert (going(found), found.stays, found.release_id) == (["old"], {"recent": 1}, "")
    assert len(world.collect().deleted) == 1


def test_what_a_release_that_cannot_be_read_may_name_stays(world: World) -> None:
    world.publish("1.0", "1.1")
    world.put("releases/wine.json", b'{"schema": 99}', 5)
    world.release("1.1", days=1)
    found = world.planned()
    assert (going(found), found.stays) == ([], {"released": 1, "unread": 1})


@pytest.mark.parametrize("state", list(JobState))
def test_a_job_that_can_still_run_keeps_its_package_and_all_that_its_release_names(
    world: World, state: JobState
) -> None:
    world.publish("own", "champion", "challenger", "now", "stray")
    pinned = world.release("champion", challenger="challenger", days=150)
    for i in range(collection.KEPT_RELEASES):
        world.release("now", days=120 - i)
    world.job(state, model="wine", digest=digest("own"), release=pinned)
    # A chunk of it, and one that was refused before it was pinned, say nothing.
    world.job(state, sk="chunk#00000", model="wine", digest=digest("stray"), release=pinned)
    world.job(state, model="wine")
    found = world.planned()
    if state == JobState.COMPLETE:
        assert set(going(found)) == {"own", "champion", "challenger", "stray"}
    else:
        assert going(found) == ["stray"]
        assert found.stays == {"job": 3, "released": 1}


@pytest.mark.parametrize("code", ["NoSuchVersion", "InvalidArgument"])
def test_a_job_keeps_nothing_of_another_model_and_its_lost_release_stops_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    world.publish("1.0", "1.1")
    world.publish("1.0", "1.1", model="beer")
    for model in ("wine", "beer"):
        world.release("1.1", model=model, days=OLD)
    world.job("failed", model="wine", digest=digest("1.0"), release="gone")
    read = Inventory._read

    def gone(self: Inventory, key: str, version: str | None = None) -> bytes:
        if version == "gone":
            raise ClientError({"Error": {"Code": code, "Message": "as S3 says it"}}, "GetObject")
        return read(self, key, version)

    monkeypatch.setattr(Inventory, "_read", gone)
    found = world.plan()
    assert {one.model: going(one) for one in found.models} == {"beer": ["1.0"], "wine": []}


def test_a_plan_changes_nothing_and_is_json(world: World) -> None:
    world.publish("1.0", "1.1")
    world.release("1.1", days=OLD)
    document = json.loads(json.dumps(world.plan().to_json()))
    assert document["size_bytes"] == len(CONTENT)
    (model,) = document["models"]
    assert (model["model"], model["stays"]) == ("wine", {"released": 1})
    assert [(one["digest"], one["version"]) for one in model["goes"]] == [(digest("1.0"), "1.0")]
    assert world.there("1.0")


def test_what_was_deleted_is_had_back_by_its_marker_and_labels_and_layers_stay(world: World) -> None:
    world.publish("1.0", "1.1")
    world.put("layers/model/0123.zip", b"a layer", OLD)
    world.release("1.1", days=OLD)
    done = world.collect()
    assert not world.there("1.0")
    assert world.there("1.1")
    assert (done.restored, done.skipped, done.size_bytes) == ((), {}, len(CONTENT))
    for key in ("packages/wine/versions/1.0", "layers/model/0123.zip", "releases/wine.json"):
        assert world.s3.head_object(Bucket=world.bucket, Key=key)
    (gone,) = json.loads(json.dumps(done.to_json()))["deleted"]
    key = f"packages/wine/{gone['digest']}.zip"
    world.s3.delete_object(Bucket=world.bucket, Key=key, VersionId=gone["marker"])
    assert world.s3.get_object(Bucket=world.bucket, Key=key)["Body"].read() == CONTENT


def test_a_model_whose_release_changed_since_the_plan_is_left_alone(world: World) -> None:
    for model in ("beer", "wine"):
        world.publish("1.0", "1.1", model=model)
        world.release("1.1", model=model, days=OLD)
    found = world.plan()
    world.release("1.1", model="beer")
    done = world.collect(found)
    assert list(done.skipped) == ["beer"]
    assert (world.there("1.0", "beer"), world.there("1.0", "wine")) == (True, False)


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Something happens after the packages went and before it is looked again whether they are needed."""
    look = collection._still_needless

    def later(*arguments: Any) -> Any:
        act()
        return look(*arguments)

    monkeypatch.setattr(collection, "_still_needless", later)


def test_a_package_that_is_promoted_while_it_goes_comes_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish("1.0", "1.1", "1.2")
    world.release("1.2", days=OLD)
    meanwhile(monkeypatch, lambda: world.release("1.0", "1.2"))
    done = world.collect()
    assert [one.version for one in done.restored] == ["1.0"]
    assert [one.package.version for one in done.deleted] == ["1.1"]
    assert (world.there("1.0"), world.there("1.1")) == (True, False)
    assert json.loads(json.dumps(done.to_json()))["restored"][0]["version"] == "1.0"


def test_a_promotion_that_is_rolled_back_while_packages_go_counts_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish("1.0", "1.2")
    world.release("1.2", days=OLD)

    def there_and_back() -> None:
        world.release("1.0", "1.2", days=0.001)
        world.release("1.2")

    meanwhile(monkeypatch, there_and_back)
    assert [one.version for one in world.collect().restored] == ["1.0"]
    assert world.there("1.0")


def test_another_promotion_while_packages_go_brings_nothing_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish("1.0", "1.1", "1.2")
    world.release("1.2", "1.1", days=OLD)
    meanwhile(monkeypatch, lambda: world.release("1.1"))
    done = world.collect()
    assert (done.restored, world.there("1.0")) == ((), False)


def test_a_release_that_cannot_be_read_while_packages_go_brings_all_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish("1.0", "1.1", "1.2")
    world.release("1.2", days=OLD)
    meanwhile(monkeypatch, lambda: world.put("releases/wine.json", b'{"schema": 99}', 0))
    done = world.collect()
    assert ({one.version for one in done.restored}, done.deleted) == ({"1.0", "1.1"}, ())
    assert world.there("1.0")


def test_a_job_that_begins_while_its_package_goes_gets_it_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish("1.0", "1.1")
    pinned = world.release("1.1", days=OLD)
    meanwhile(monkeypatch, lambda: world.job("planned", model="wine", digest=digest("1.0"), release=pinned))
    assert [one.version for one in world.collect().restored] == ["1.0"]
    assert world.there("1.0")


def test_more_than_a_page_of_everything_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "_PAGE", 2)
    names = [f"1.{i:02d}" for i in range(13)]
    world.publish(*names, "stray")
    for i, name in enumerate(names):
        world.release(name, days=190 - i)
    for name in names[:2]:
        world.job("running", model="wine", digest=digest(name), release="gone")
    found = world.planned()
    assert set(going(found)) == {"1.02", "stray"}
    assert found.stays == {"released": 1, "history": 9, "job": 2}
    assert {one.version: one.named_until is None for one in found.goes} == {"1.02": False, "stray": True}


def test_a_table_that_is_not_there_stops_the_plan(world: World) -> None:
    with pytest.raises(OperatorError, match="want to read"):
        collection.plan(world.target, world.bucket, "nothing")


def test_a_bucket_that_deletes_for_good_is_refused(world: World) -> None:
    world.publish("1.0")
    found = world.plan()
    world.s3.put_bucket_versioning(Bucket=world.bucket, VersioningConfiguration={"Status": "Suspended"})
    with pytest.raises(OperatorError, match="want one that keeps versions"):
        world.collect(found)
    assert world.there("1.0")
