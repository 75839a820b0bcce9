"""The page about configuration says what the code does."""

from __future__ import annotations

from pathlib import Path

from infra import context

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_pages_table_is_the_one_of_the_code() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("<!-- context table -->\n")[2].partition("<!-- end -->")[0]
    lines = table.splitlines()[2:]
    assert lines == [
        f"| `{row.key}` | {row.kind} | {row.default and f'`{row.default}`'} | {row.meaning} |" for row in context.rows()
    ]
