"""The record API: named features in, predictions out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threefold import strict_json
from threefold.errors import Malformed

if TYPE_CHECKING:
    from threefold.prediction import Outcomes


def decode(body: bytes) -> list[dict[str, Any]]:
    """The records of a `{"records": [{...}]}` body.

    Raises:
        Malformed: it is not of that form.
    """
    document = strict_json.loads(body)
    records = document.get("records") if isinstance(document, dict) else None
    if not isinstance(records, list) or not records:
        message = f'body: want {{"records": [{{...}}, ...]}} with at least one record, got {_kind(document)}'
        raise Malformed(message)
    return records


def encode(outcomes: Outcomes) -> bytes:
    """The answer: one prediction a record, in order; a rejected record stands in its place with its reason."""
    return strict_json.dumps({"predictions": outcomes.predictions()})


def _kind(document: object) -> str:
    if isinstance(document, dict):
        return f"an object with {sorted(document)[:5]}"
    return f"a JSON {type(document).__name__}"
