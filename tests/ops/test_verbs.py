"""What the verbs make of their input, before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from threefold_ops.authoring.manifest import check_serving, read_model_file
from threefold_ops.cli.reading import read_messages
from threefold_ops.errors import OperatorError
from threefold_ops.system import Synthesizer

if TYPE_CHECKING:
    from pathlib import Path


def test_lines_are_records_or_whole_messages(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"a": 1}\n\n{"id": "x", "record": {"a": 2}}\n{"inputs": []}\n')
    assert read_messages("wine", file) == [
        {"model": "wine", "record": {"a": 1}},
        {"model": "wine", "id": "x", "record": {"a": 2}},
        {"model": "wine", "inputs": []},
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_csv_is_read_by_its_own_delimiter(delimiter: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    lines = [[" a", "b ", "c", "d", "e"], ["1.5", "red", "true", "", "null"], ["1", '"two\nlines"', "[1]", "007", "x"]]
    file.write_text("\ufeff" + "\r\n".join(map(delimiter.join, lines)), newline="")
    assert [message["record"] for message in read_messages("wine", file)] == [
        {"a": 1.5, "b": "red", "c": True, "e": "null"},
        {"a": 1, "b": "two\nlines", "c": "[1]", "d": "007", "e": "x"},
    ]


def test_json_is_read_as_lines_or_as_an_array(tmp_path: Path) -> None:
    file = tmp_path / "records"
    for text in ('[{"a": "x\u2028y"}, {"a": 2}]', '{"a": "x\u2028y"}\r\n{"a": 2}\r\n'):
        file.write_text(text, newline="")
        assert [message["record"] for message in read_messages("wine", file)] == [{"a": "x\u2028y"}, {"a": 2}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n{"a": \n', "lines:2: want JSON, got "),
        (b"[1]", "lines: number 1: want a JSON object, got 1"),
        (b"\x1f\x8b\x08\x00", "want UTF-8 text"),
        (b"a,b\n1,2\n1,2,3\n", "lines:3: want 2 cells, got 3"),
        (b"a,a\n1,2\n", r"want each column once, got \['a'\]"),
        (b"", "want records, got none"),
        (b"a,b\n", "want records, got none"),
        (b"[]", "want records, got none"),
    ],
)
def test_a_file_that_cannot_be_sent_says_why_and_where(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(content)
    with pytest.raises(OperatorError, match=said):
        read_messages("wine", file)
    with pytest.raises(OperatorError, match="No such file"):
        read_messages("wine", tmp_path / "nothere")


def test_classes_that_yaml_reads_as_booleans_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(
        "schema: 1\nname: a\nversion: 1.0.0\noutput: {kind: classification, label: label, classes: [no, yes]}\n"
    )
    with pytest.raises(OperatorError, match=r"model\.yaml:4: output\.classes\.0"):
        read_model_file(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("featurs: []", "5: featurs: want a known key, got this one (is 'features' meant?)"),
        ("zebra: 1", "5: zebra: want a known key, got this one (known are schema, name, version, "),
        ("gate: {latency_ms: 0}", "5: gate.latency_ms: want more than 0, got 0"),
        ("gate: {latency_ms: .inf}", "5: gate.latency_ms: want a finite number, got inf"),
        ("gate:\n  acceptable: [2, 1]", "6: gate.acceptable: want [low, high], got [2, 1]"),
        ("gate:\n  acceptable: [2]", "6: gate.acceptable.1: want it given, got nothing"),
        ("gate:\n  metric: acuracy", "6: gate.metric: want 'accuracy', 'f1_macro', "),
        ("gate: {examples: ../x}", "5: gate.examples: want the name of a file in the folder: letters, "),
        ("drift: {}", "5: drift.reference: want it given, got nothing"),
        ("key: 2026-01-01", "5: key: want text, got 2026-01-01 (in quotes it is text)"),
        ("bake: perhaps", "5: bake: want true or false, got 'perhaps'"),
        ("notes: [a]", "5: notes: want text, got ['a']"),
        ("features: {a: 1}", "5: features: want a list, got {'a': 1}"),
        (
            "features:\n- {name: a, type: bool, missing: [1]}",
            "6: features.0.missing: want true or false, a whole number, ",
        ),
        ("features:\n- {name: a, type: int64, min: 5, max: 1}", "6: features.0: want min <= max, got 5.0 > 1.0"),
        ("serving:\n  options: many", "6: serving.options: want a whole number, got 'many'"),
        ("serving: {rollback_on_failure: 2}", "5: serving.rollback_on_failure: want true or false, got 2"),
        ("version: 2.0.0", "5: version: want a key once, got it again (first in line 3)"),
        ("training: {at: 1,\n  at: 2}", "6: at: want a key once, got it again (first in line 5)"),
        ("1: 2", "5: 1: want text for a key, got 1"),
        ("a: b: c", "5: want YAML, got: mapping values are not allowed here (column 5)"),
    ],
)
def test_a_mistake_is_told_in_words_with_the_line_that_it_stands_on(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(f'schema: 1\nname: a\nversion: "1.0"\noutput: {{kind: tensors}}\n{text}\n')
    with pytest.raises(OperatorError) as caught:
        read_model_file(file)
    assert str(caught.value).startswith(f"{file}:{said}")
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text("schema: 1\nname: My Model\noutput: {kind: tensors}\nfeaturs: []\n")
    with pytest.raises(OperatorError) as caught:
        read_model_file(file)
    assert str(caught.value).splitlines() == [
        f"{file}: version: want it given, got nothing",
        f"{file}:2: name: want a-z, 0-9 and -, at most 63, no - first, got 'My Model'",
        f"{file}:4: featurs: want a known key, got this one (is 'features' meant?)",
    ]


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"a: 2026-13-45", b"[" * 3000, b"&a [*a]", b"a: 1\n---\nb: 2", b"\xff", b"a: \x00"]
)
def test_what_is_no_model_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_bytes(content)
    with pytest.raises(OperatorError, match=r"^[^\n]*model\.yaml(:\d+)?: [^\n]*want [^\n]*got[^\n]*$"):
        read_model_file(file)


def test_a_merge_is_no_repetition(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(
        'schema: 1\nname: a\nversion: "1.0"\noutput: {kind: tensors}\n'
        "training: {base: &base {at: 1, by: x}, run: {<<: *base, at: 2}}\n"
    )
    assert read_model_file(file).training["run"] == {"at": 2, "by": "x"}


def test_serving_is_checked_on_its_own_as_in_a_model_file() -> None:
    assert check_serving({"abstain_below": 0.6, "rollback_on_failure": True}) == {
        "abstain_below": 0.6,
        "rollback_on_failure": True,
    }
    assert check_serving({"abstain_below": None}) == {}
    with pytest.raises(OperatorError) as caught:
        check_serving({"abstain_below": 2, "abstain": 1})
    assert str(caught.value).splitlines() == [
        "serving.abstain_below: want at most 1, got 2",
        "serving.abstain: want a known key, got this one (is 'abstain_below' meant?)",
    ]


def test_without_node_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OperatorError, match=r"^want Node 20 or newer on the PATH, got none[^\n]*$"):
        Synthesizer()
