"""What the verbs make of their input, before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from threefold_ops.cli.reading import read_messages
from threefold_ops.errors import OperatorError
from threefold_ops.manifest import read_model_file
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
    file.write_text(delimiter.join(["a", "b"]) + "\r\n" + delimiter.join(["1.5", "red", "too many"]) + "\r\n")
    assert read_messages("wine", file) == [{"model": "wine", "record": {"a": 1.5, "b": "red"}}]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"a": 1}\n{"a": \n', "lines:2: want a JSON object"), (b"\x1f\x8b\x08\x00", "want UTF-8 text")],
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


def test_without_node_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OperatorError, match=r"^want Node 20 or newer on the PATH, got none[^\n]*$"):
        Synthesizer()
