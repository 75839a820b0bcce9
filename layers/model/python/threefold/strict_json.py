"""JSON as the doors speak it: strict in what goes out, and the non-finite literals understood in what comes in."""

from __future__ import annotations

import json
from typing import Any

import orjson

from threefold.errors import Malformed


def loads(content: bytes | str) -> Any:  # noqa: ANN401 - JSON
    """Parse JSON; NaN, Infinity and -Infinity are read as such.

    Raises:
        Malformed: it is no JSON.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        # Only the standard library reads the literals, and only it takes time: what it refuses too is malformed.
        try:
            document = json.loads(content)
            # It reads half a surrogate pair too, which is no text: nothing could write it again.
            json.dumps(document, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            message = f"body: want JSON, got {error}"
            raise Malformed(message) from error
        return document


def dumps(document: Any) -> bytes:  # noqa: ANN401 - JSON
    """Write strict JSON; numpy's numbers and arrays are written with their own shortest text."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
