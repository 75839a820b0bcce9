"""Two packages' answers to every row, side by side in a CSV file."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Any, Final

from threefold import strict_json
from threefold.tables.results import escape
from threefold_ops.errors import OperatorError
from threefold_ops.evaluation.row_set import said
from threefold_ops.figures import to_document

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from threefold.package import Manifest
    from threefold_ops.evaluation.row_set import RowSet

_ANSWERS: Final = {"classification": ("label", "score"), "regression": ("value",)}


def write_rows(path: Path, sets: Sequence[RowSet], manifests: tuple[Manifest, Manifest]) -> None:
    """Write every row's answers: UTF-8, with a header; text that looks like a formula has an apostrophe before it.

    The columns are set, line, key, truth and, for either package, its answer and why it rejects the row; then `same`:
    whether both say the same label, or the same numbers.

    Args:
        path: the file; one that is there is replaced.
        sets: of a comparison.
        manifests: of its two packages.

    Raises:
        OperatorError: the file cannot be written.
    """
    parts = _ANSWERS.get(manifests[0].output.kind) or tuple(
        dict.fromkeys(spec.name for manifest in manifests for spec in manifest.signature.outputs)
    )
    answers = [f"{side}_{part}" for side in "ab" for part in (*parts, "rejected")]
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["set", "line", "key", "truth", *answers, "same"])
            for one in sets:
                writer.writerows(_lines(one, parts, manifests))
    except OSError as error:
        raise OperatorError(f"{path}: want a file that can be written, got: {error.strerror}") from error


def _lines(one: RowSet, parts: Sequence[str], manifests: tuple[Manifest, Manifest]) -> Iterator[list[object]]:
    rows, agreement = one.read, one.agreement
    distance = dict(zip(agreement.positions.tolist(), agreement.distance.tolist(), strict=True))
    for position, line in enumerate(rows.lines):
        cells: list[object] = [one.name, line, rows.keys and rows.keys[position], rows.truth.get(position)]
        found = [said(answer, manifest, position) for answer, manifest in zip(one.answers, manifests, strict=True)]
        cells += [answer.get(part) for answer in found for part in (*parts, "rejected")]
        labels = [answer.get("label") for answer in found]
        same = labels[0] == labels[1] if agreement.flips is not None else distance.get(position) == 0
        yield [*map(_cell, cells), ("yes" if same else "no") if position in distance else ""]


def _cell(value: Any) -> object:  # noqa: ANN401 - JSON
    if isinstance(value, float) and not math.isfinite(value):
        return to_document(value)
    if isinstance(value, list):
        return strict_json.dumps(to_document(value)).decode()
    return escape(value) if isinstance(value, str) else value
