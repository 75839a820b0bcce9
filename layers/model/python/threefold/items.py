"""One DynamoDB item at a time: written under a condition, read as JSON."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from threefold.outcomes import from_attribute, to_attribute

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_dynamodb import DynamoDBClient

Values = dict[str, Any]
_NAME: Final = re.compile(r"#(\w+)")


def read_values(item: Mapping[str, Any]) -> Values:
    """An item's attributes as JSON."""
    return {name: from_attribute(value) for name, value in item.items()}


def get(client: DynamoDBClient, table: str, key: Mapping[str, Any]) -> Values | None:
    """An item as it stands now, or None."""
    found = client.get_item(TableName=table, Key=key, ConsistentRead=True)
    return read_values(found["Item"]) if "Item" in found else None


def update(  # noqa: PLR0913 - an item's address has three parts, a condition two
    client: DynamoDBClient,
    table: str,
    key: Mapping[str, Any],
    values: Mapping[str, object],
    *,
    condition: str,
    operands: Mapping[str, object],
    added: Mapping[str, int] | None = None,
) -> bool:
    """Set some of an item's attributes, if a condition holds.

    Args:
        client: a DynamoDB client.
        table: the table's name.
        key: the item's.
        values: what to set; None is left as it is.
        condition: of attributes as `#name` and operands as `:name`; no operand has the name of a value.
        operands: what the condition speaks of, by name.
        added: numbers that are added to what stands there.

    Returns:
        Whether it held.
    """
    kept = {name: value for name, value in values.items() if value is not None}
    sums = added or {}
    spoken = _NAME.findall(condition)
    parts = ["SET " + ", ".join(f"#{name} = :{name}" for name in kept)] if kept else []
    parts += ["ADD " + ", ".join(f"#{name} :{name}" for name in sums)] if sums else []
    try:
        client.update_item(
            TableName=table,
            Key=key,
            UpdateExpression=" ".join(parts),
            ConditionExpression=condition,
            ExpressionAttributeNames={f"#{name}": name for name in {*kept, *sums, *spoken}},
            ExpressionAttributeValues={
                f":{name}": to_attribute(value) for name, value in {**operands, **kept, **sums}.items()
            },
        )
    except client.exceptions.ConditionalCheckFailedException:
        return False
    return True
