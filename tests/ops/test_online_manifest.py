"""Features that are looked up, as model.yaml declares them: what they become, and each mistake by its line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from threefold.sources import TableSource, WindowSource
from threefold_ops.authoring.manifest import inspect_model_file, read_model_file

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "schema: 1\nname: fraud\nversion: '1'\noutput: {kind: regression, value: value}\ntime: happened_at\nfeatures:\n"


def written(folder: Path, *features: str) -> Path:
    path = folder / "model.yaml"
    path.write_text(HEAD + "".join(f"  - {{{feature}}}\n" for feature in features))
    return path


def test_a_looked_up_feature_goes_into_the_signature_with_its_source(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "name: amount, type: float32",
        "name: spend_7d, type: float32, from: window, entity: card_id, of: amount, agg: sum, over: 7d",
        "name: count_1h, type: int32, from: window, entity: card_id, agg: count, over: 1h, missing: 0",
        "name: age, type: float32, from: table, entity: user_id, field: years, min: 0",
    )
    found = read_model_file(path)
    assert found.time == "happened_at"
    amount, spend, count, age = (part.feature() for part in found.features)
    assert amount.source is None
    assert spend.source == WindowSource(entity="card_id", of="amount", agg="sum", over="7d")
    assert (count.source, count.missing) == (WindowSource(entity="card_id", agg="count", over="1h"), 0)
    assert (age.source, age.min) == (TableSource(entity="user_id", field="years"), 0)


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ("from: window, entity: card, agg: sum, over: 7d", "want of, the field that sum is of, got none"),
        ("from: window, entity: card", "want agg and over with from: window, got none"),
        ("from: table, entity: card", "want field with from: table, got none"),
        ("from: table, entity: card, field: x, agg: sum", "want no agg with from: table, got 'sum'"),
        ("from: window, entity: c, agg: count, over: 1h, field: x", "want no field with from: window, got 'x'"),
        ("entity: card", "want no entity with a feature that records bring, got 'card'"),
        ("from: window, entity: card, agg: count, over: 7w", "over: want <n>m, <n>h or <n>d, with n from 1 to 9999"),
        ("from: stream, entity: card", "from: want 'window' or 'table', got 'stream'"),
        ("from: window, entity: card, agg: median, of: x, over: 1h", "agg: want 'sum', 'count', 'mean', 'max' or"),
    ],
)
def test_a_mistake_is_said_by_its_line(feature: str, said: str, tmp_path: Path) -> None:
    (finding,) = inspect_model_file(
        written(tmp_path, "name: a, type: float32", f"name: b, type: float32, {feature}")
    ).findings
    assert finding.line == 8
    assert said in finding.message


@pytest.mark.parametrize(("type_", "agg"), [("int32", "max"), ("bool", "count"), ("string", "last")])
def test_a_window_feature_is_a_number_that_holds_what_it_says(type_: str, agg: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"name: a, type: {type_}, from: window, entity: card, agg: {agg}, of: x, over: 1h")
    (finding,) = inspect_model_file(path).findings
    assert f"for {agg}, got {type_}" in finding.message


@pytest.mark.parametrize("part", ["entity: a, of: x", "entity: card, of: a"])
def test_what_is_looked_up_by_must_be_brought(part: str, tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "name: a, type: float32, from: table, entity: user, field: a",
        f"name: b, type: float32, from: window, agg: sum, over: 1h, {part}",
    )
    (finding,) = inspect_model_file(path).findings
    assert "want time, entity and of that a record brings, got ['a'], looked up themselves" in finding.message


def test_what_is_aggregated_is_no_text(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "name: region, type: string",
        "name: b, type: float32, from: window, agg: sum, over: 1h, entity: card, of: region",
    )
    (finding,) = inspect_model_file(path).findings
    assert "want of to name a number, got ['region'], a string" in finding.message
