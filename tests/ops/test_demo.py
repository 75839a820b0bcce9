"""The demonstration's own eyes: what it lets pass, and what it does not."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from threefold_ops.demo import Sample, compare, read_sample

if TYPE_CHECKING:
    from pathlib import Path

ANSWER = {
    "model": "wine",
    "key": "a",
    "status": "predicted",
    "label": "red",
    "score": 0.75,
    "digest": "d",
    "version": "1",
}


def sample(**changes: Any) -> Sample:
    """Three doors that agree, but for the last one's changes."""
    found = Sample("wine", "id", [{}], [{"key": "a", "label": "red", "scores": {"red": 0.75}}], table=None)
    found.answers = {door: [copy.deepcopy(ANSWER)] for door in ("https", "csv", "sqs")}
    found.answers["sqs"][0].update(changes)
    return found


def table(**changes: Any) -> Sample:
    """The same for a model with records, whose every field counts."""
    found = sample(**changes)
    from pathlib import Path

    found.table = Path("held-out.csv")
    return found


def test_doors_that_agree_pass() -> None:
    assert compare(table()) == []
    assert compare(table(id="other", at="later")) == []


def test_the_last_digits_of_a_float_may_differ_and_no_more() -> None:
    assert compare(table(score=0.750001)) == []
    assert compare(table(score=0.7501))


@pytest.mark.parametrize(
    "change",
    [
        {"label": "white"},
        {"status": "abstained"},
        {"key": "b"},
        {"version": "2"},
        {"digest": "e"},
        {"role": "canary"},
        {"options": []},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_other_difference_is_named_with_its_door_and_record(change: dict[str, Any]) -> None:
    problems = compare(table(**change))
    assert problems
    assert all("sqs, record 1" in problem for problem in problems)


def test_an_answer_that_is_not_the_training_librarys_is_named() -> None:
    found = table()
    found.expected[0]["label"] = "white"
    found.expected[0]["scores"]["white"] = 0.75
    assert len(compare(found)) == 3


def test_a_missing_answer_is_named() -> None:
    found = table()
    found.answers["csv"] = []
    assert compare(found) == ["wine, csv: want 1 answers, got 0"]


def test_the_held_out_records_hold_defaults_and_missing_values(models: Path) -> None:
    for name in ("breast-cancer", "diabetes", "digits"):
        found = read_sample(models / name, None)
        assert len(found.messages) == len(found.expected) >= 100
    widths = {len(message["record"]) for message in read_sample(models / "diabetes", "patient_id").messages}
    assert len(widths) > 1
