"""The record API's body."""

from __future__ import annotations

import pytest

from threefold.errors import Malformed
from threefold.protocols import records


def test_records_are_read() -> None:
    assert records.decode(b'{"records": [{"a": 1}, null]}') == [{"a": 1}, None]


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"[]", "a JSON list"),
        (b"null", "a JSON NoneType"),
        (b"{}", "an object with []"),
        (b'{"records": []}', "an object with ['records']"),
        (b'{"records": {}}', "an object with ['records']"),
        (b'{"instances": [1], "a": 2}', "an object with ['a', 'instances']"),
    ],
)
def test_a_body_of_another_form_is_malformed(content: bytes, got: str) -> None:
    with pytest.raises(Malformed) as caught:
        records.decode(content)
    assert str(caught.value).endswith(f"got {got}")
