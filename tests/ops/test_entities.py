"""Fields of entities from the command line: loaded whole and in order, or refused by line; and a look at one."""

from __future__ import annotations

import gzip
import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from threefold.feature_table import FeatureTable
from threefold.sources import WindowSource
from threefold.windows import Events, Windows
from threefold_ops.entities import EntityDesk
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLE = "features"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        found = boto3.client("dynamodb")
        found.create_table(
            TableName=TABLE,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        )
        yield found


def written(folder: Path, text: str, name: str = "users.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["users.csv", "users.csv.gz"])
def test_more_rows_than_calls_at_a_time_are_all_there_as_a_door_reads_them(
    name: str, client: Any, tmp_path: Path
) -> None:
    text = "\ufeffage;user_id;town\r\n" + "".join(f'{i};{i:04d};"B;ern"\r\n' for i in range(500)) + ";0001;\r\n"
    moved: list[int] = []
    desk, path = EntityDesk(client, TABLE), written(tmp_path, text, name)
    assert desk.load(path, "user_id", ttl_days=None, moved=moved.append) == 501
    assert sum(moved) == path.stat().st_size
    entities = [("user_id", f"{i:04d}") for i in range(500)]
    _, fields = FeatureTable(client, TABLE).read("any", (), entities)
    # The last of two rows of one entity stays, and a cell without text is a field that is not known.
    wanted = {("user_id", f"{i:04d}"): {"age": str(i), "town": "B;ern"} for i in range(500)}
    assert fields == wanted | {("user_id", "0001"): {}}


def test_what_is_loaded_stays_for_as_long_as_is_said(client: Any, tmp_path: Path) -> None:
    desk = EntityDesk(client, TABLE)
    desk.load(written(tmp_path, "user_id,age\n1,41\n"), "user_id", ttl_days=2)
    desk.load(written(tmp_path, "user_id,age\n2,42\n"), "user_id", ttl_days=None)
    expires = float(client.get_item(TableName=TABLE, Key={"pk": {"S": "entity#user_id#1"}})["Item"]["expires"]["N"])
    assert expires == pytest.approx(time.time() + 2 * 86_400, abs=60)
    assert "expires" in desk.get("user_id", "1")
    assert desk.get("user_id", "2") == {"entity": "user_id", "value": "2", "fields": {"age": "42"}}
    assert desk.get("user_id", "3")["fields"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "users.csv: file: want a header row, got nothing"),
        ("id,age\n1,2\n", r"users.csv:1: want a column 'user_id' and others beside it, got \['id', 'age'\]"),
        ("user_id\n1\n", "want a column 'user_id' and others"),
        ("user_id,user_id\n1,2\n", "want each name once"),
        ("user_id,age\n1,2\n\n2\n", "users.csv:4: want 2 cells, got 1"),
        ("user_id,age\n1,2\n,3\n", "users.csv:3: user_id: want whose row it is, got nothing"),
        ("user_id,age\n1," + "x" * 400_000 + "\n", "users.csv:2: want at most 399360 bytes, got"),
    ],
)
def test_a_wrong_row_is_said_by_its_line(text: str, said: str, client: Any, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=said):
        EntityDesk(client, TABLE).load(written(tmp_path, text), "user_id", ttl_days=None)


def test_rows_before_a_wrong_one_are_loaded(client: Any, tmp_path: Path) -> None:
    desk, text = EntityDesk(client, TABLE), "user_id,age\n" + "".join(f"{i},{i}\n" for i in range(300))
    with pytest.raises(OperatorError, match=r"users.csv:302: user_id: want whose row it is"):
        desk.load(written(tmp_path, text + ",1\n301,1\n"), "user_id", ttl_days=None)
    known = [desk.get("user_id", str(i))["fields"] for i in (0, 299, 301)]
    assert known == [{"age": "0"}, {"age": "299"}, None]


def test_what_is_no_text_is_said_by_its_line(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_bytes(b"user_id,age\n1,2\n2,\xff\n")
    with pytest.raises(OperatorError, match=r"users.csv:3: want CSV in UTF-8"):
        EntityDesk(client, TABLE).load(path, "user_id", ttl_days=None)
    with pytest.raises(OperatorError, match="want a file that can be read"):
        EntityDesk(client, TABLE).load(tmp_path / "none.csv", "user_id", ttl_days=None)


def test_items_that_are_left_unprocessed_are_written_again(client: Any, tmp_path: Path) -> None:
    path, slept = written(tmp_path, "user_id,age\n1,2\n"), []
    item = {"pk": {"S": "entity#user_id#1"}, "fields": {"M": {"age": {"S": "2"}}}}
    request = {TABLE: [{"PutRequest": {"Item": item}}]}
    with Stubber(client) as stub:
        stub.add_response("batch_write_item", {"UnprocessedItems": request}, {"RequestItems": request})
        stub.add_response("batch_write_item", {}, {"RequestItems": request})
        assert EntityDesk(client, TABLE, sleep=slept.append).load(path, "user_id", ttl_days=None) == 1
        stub.assert_no_pending_responses()
    assert len(slept) == 1
    with Stubber(client) as stub:
        for _ in range(12):
            stub.add_response("batch_write_item", {"UnprocessedItems": request})
        with pytest.raises(OperatorError, match="want 1 items written, got 1 left unprocessed after 12 tries"):
            EntityDesk(client, TABLE, sleep=slept.append).load(path, "user_id", ttl_days=None)


def test_a_models_windows_are_shown_beside_the_fields(client: Any) -> None:
    windows = Windows(
        (
            ("spend", WindowSource(entity="card", agg="sum", of="amount", over="7d")),
            ("count", WindowSource(entity="card", agg="count", over="90m")),
        )
    )
    records = [{"card": "c", "amount": 2.0}, {"card": "c", "amount": 3.0}]
    events = Events.of(windows, records, [1_773_342_238_123, 1_773_342_238_124], ["1", "2"])
    FeatureTable(client, TABLE).count("fraud", windows, events, deadline=time.monotonic() + 9)
    newest = "2026-03-12T19:03:58.124Z"
    assert EntityDesk(client, TABLE).get("card", "c", "fraud")["windows"] == [
        {"of": None, "over": "90m", "count": 2, "sum": None, "max": None, "newest": newest},
        {"of": "amount", "over": "7d", "count": 2, "sum": 5.0, "max": 3.0, "newest": newest},
    ]
    assert EntityDesk(client, TABLE).get("card", "d", "fraud")["windows"] == []


def test_a_system_without_the_table_says_so(client: Any) -> None:
    with pytest.raises(OperatorError, match="features table: want one, got none; deploy"):
        EntityDesk(client, "")
