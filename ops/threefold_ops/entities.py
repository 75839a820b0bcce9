"""What is known of entities, from an operator's side: fields loaded from a CSV, and a look at one of them."""

from __future__ import annotations

import csv
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from threefold.errors import InvalidTable
from threefold.feature_table import entity_key, window_key
from threefold.jobs import iso
from threefold.outcomes import item_bytes
from threefold.tables.compressed import MAGIC, gunzip
from threefold.tables.header import read_header
from threefold.tables.objects import PIECE_BYTES
from threefold.tables.records import fill, read_blocks
from threefold.windows import Ring
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mypy_boto3_dynamodb import DynamoDBClient

    from threefold.tables.header import Header

    Item = dict[str, Any]

# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchWriteItem.html
WRITES_PER_CALL: Final = 25
_CALLS_AT_A_TIME: Final = 8
_TRIES: Final = 12
_LONGEST_WAIT_SECONDS: Final = 4.0
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html: 400 KB, names and key included.
_MAXIMUM_ITEM_BYTES: Final = 390 * 1024


class EntityDesk:
    """Loads fields of entities into the features table, and reads what stands there."""

    def __init__(self, client: DynamoDBClient, table: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Make a desk.

        Args:
            client: a DynamoDB client.
            table: the features table's name.
            sleep: waits between tries.

        Raises:
            OperatorError: the system has no such table.
        """
        if not table:
            message = "features table: want one, got none; deploy this release's stacks with 'threefold deploy'"
            raise OperatorError(message)
        self._client = client
        self._table = table
        self._sleep = sleep

    def load(
        self, path: Path, entity: str, *, ttl_days: float | None, moved: Callable[[int], None] = lambda _bytes: None
    ) -> int:
        """Put the rows of a CSV into the table: an item a row, which takes the place of what was loaded before.

        Args:
            path: a CSV with a header, plain or gzip, of any size; empty cells are fields that are not known.
            entity: the column that says whose row it is; all others are fields.
            ttl_days: how long they stay; None for ever.
            moved: told of bytes that were read.

        Returns:
            How many rows were loaded.

        Raises:
            OperatorError: a row is wrong, and which; or the table does not take it. Rows before it are loaded.
        """
        expires = None if ttl_days is None else str(int(time.time() + ttl_days * 86_400))
        rows, done = _rows(path, entity, moved), 0
        with ThreadPoolExecutor(_CALLS_AT_A_TIME) as pool:
            # Group by group, so that of two rows of one entity the later one stays.
            for group in _groups(rows, _CALLS_AT_A_TIME * WRITES_PER_CALL):
                last = {row.value: row for row in group}
                items = [row.item(entity, expires) for row in last.values()]
                batches = [items[i : i + WRITES_PER_CALL] for i in range(0, len(items), WRITES_PER_CALL)]
                for _ in pool.map(self._write, batches):
                    pass
                done += len(group)
        return done

    def get(self, entity: str, value: str, model: str | None = None) -> dict[str, Any]:
        """What is known of one entity.

        Args:
            entity: the field.
            value: its value.
            model: whose windows are wanted too.

        Returns:
            `fields` and when they `expire`, and of a model's `windows` what was counted and when last.
        """
        found: dict[str, Any] = {"entity": entity, "value": value, "fields": None}
        item = self._item(entity_key((entity, value)))
        if item is not None:
            found["fields"] = {name: cell["S"] for name, cell in sorted(item["fields"]["M"].items())}
            if "expires" in item:
                found["expires"] = iso(int(item["expires"]["N"]) * 1000)
        if model is not None:
            state = self._item(window_key(model, (entity, value)))
            rings = {} if state is None else state["rings"]["M"]
            found["windows"] = [_shown(name, bytes(ring["B"])) for name, ring in sorted(rings.items())]
        return found

    def _item(self, key: str) -> Item | None:
        return self._client.get_item(TableName=self._table, Key={"pk": {"S": key}}, ConsistentRead=True).get("Item")

    def _write(self, items: list[Item]) -> None:
        requests: Any = {self._table: [{"PutRequest": {"Item": item}} for item in items]}
        wait = 0.05
        for _ in range(_TRIES):
            requests = self._client.batch_write_item(RequestItems=requests).get("UnprocessedItems")
            if not requests:
                return
            self._sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
        left = len(requests[self._table])
        message = f"features table: want {len(items)} items written, got {left} left unprocessed after {_TRIES} tries"
        raise OperatorError(message)


class _Row:
    """One row of the CSV."""

    def __init__(self, value: str, fields: dict[str, str]) -> None:
        self.value = value
        self._fields = fields

    def item(self, entity: str, expires: str | None) -> Item:
        fields = {name: {"S": cell} for name, cell in self._fields.items()}
        item: Item = {"pk": {"S": entity_key((entity, self.value))}, "fields": {"M": fields}}
        return item if expires is None else item | {"expires": {"N": expires}}


def _groups(rows: Iterator[_Row], size: int) -> Iterator[list[_Row]]:
    """So many rows at a time; before an error, those that came before it."""
    group: list[_Row] = []
    try:
        for row in rows:
            group.append(row)
            if len(group) == size:
                yield group
                group = []
    except OperatorError:
        yield group
        raise
    if group:
        yield group


def _rows(path: Path, entity: str, moved: Callable[[int], None]) -> Iterator[_Row]:
    """The rows of a CSV, each checked."""
    try:
        head, stream = _opened(path, moved)
        top = read_header(head, {entity})
        columns = top.header.columns
        if entity not in columns or len(columns) == 1:
            message = f"{path.name}:1: want a column '{entity}' and others beside it, got {list(columns)}"
            raise OperatorError(message)
        rest = itertools.chain([head[top.size_bytes :]], stream)
        for block in read_blocks(rest, top.header.delimiter, line=top.line):
            lines = block.lines(list(range(len(block))))
            for start, stop, line in zip(block.starts.tolist(), block.stops.tolist(), lines, strict=True):
                yield _row(block.data[start:stop], top.header, entity, f"{path.name}:{line}")
    except (OSError, EOFError) as error:
        message = f"{path}: want a file that can be read, got: {error}"
        raise OperatorError(message) from error
    except InvalidTable as error:
        message = f"{path.name}: {error}"
        raise OperatorError(message) from error


def _row(record: bytes, header: Header, entity: str, where: str) -> _Row:
    columns = header.columns
    try:
        cells = next(csv.reader([record.decode()], delimiter=header.delimiter), [])
    except (csv.Error, UnicodeDecodeError) as error:
        message = f"{where}: want CSV in UTF-8, got: {error}"
        raise OperatorError(message) from error
    if len(cells) != len(columns):
        message = f"{where}: want {len(columns)} cells, got {len(cells)}"
        raise OperatorError(message)
    known = {name: cell for name, cell in zip(columns, cells, strict=True) if cell}
    value = known.pop(entity, None)
    if value is None:
        message = f"{where}: {entity}: want whose row it is, got nothing"
        raise OperatorError(message)
    found = _Row(value, known)
    if (size := item_bytes(found.item(entity, None))) > _MAXIMUM_ITEM_BYTES:
        message = f"{where}: want at most {_MAXIMUM_ITEM_BYTES} bytes, got {size}"
        raise OperatorError(message)
    return found


def _opened(path: Path, moved: Callable[[int], None]) -> tuple[bytes, Iterator[bytes]]:
    """A file's first bytes and what follows, unpacked if it is gzip."""
    head, _ = fill(b"", stream := _pieces(path, moved))
    if not head.startswith(MAGIC):
        return head, stream
    head, _ = fill(b"", stream := gunzip(itertools.chain([head], stream)))
    return head, stream


def _pieces(path: Path, moved: Callable[[int], None]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            moved(len(piece))
            yield piece


def _shown(name: str, content: bytes) -> dict[str, Any]:
    """A series as a person wants to see it."""
    over, _, of = name.partition("#")
    ring = Ring.from_bytes(content)
    newest = max((cell.last_at for cell in ring.cells.values()), default=None)
    count = sum(cell.count for cell in ring.cells.values())
    return {
        "of": of or None,
        "over": _length(int(over)),
        "count": count,
        "sum": sum(cell.total for cell in ring.cells.values()) if of else None,
        "max": max((cell.most for cell in ring.cells.values()), default=None) if of else None,
        "newest": None if newest is None else iso(newest),
    }


def _length(over_ms: int) -> str:
    for unit, size in (("d", 86_400_000), ("h", 3_600_000)):
        if over_ms % size == 0:
            return f"{over_ms // size}{unit}"
    return f"{over_ms // 60_000}m"
