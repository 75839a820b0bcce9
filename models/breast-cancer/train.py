"""Train the breast-cancer example on scikit-learn's bundled data and write its ONNX graph and quality assets."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.str_]
    Indices = npt.NDArray[np.int64]

FOLDER = Path(__file__).resolve().parent
SEED = 3
TRAIN, CONFIDENCE, EXAMPLES = 320, 125, 24  # records; what is left over is the held-out set
# The `missing` defaults of model.yaml, the medians of the training records. Were the two to differ, the examples
# would no longer match and the gate would refuse the package.
MISSING = {"mean_smoothness": 0.096, "mean_symmetry": 0.1783, "worst_fractal_dimension": 0.0803}


def short(number: float | np.floating[Any]) -> float | int:
    """Return a float32 as the number with the fewest digits that reads back as the same float32."""
    shortest = float(str(np.float32(number)))
    return int(shortest) if shortest.is_integer() else shortest


def write_csv(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    """Write a header row and rows."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_lines(path: Path, documents: list[dict[str, Any]]) -> None:
    """Write one JSON document a line."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")


def with_gaps(x: Floats, names: list[str]) -> Floats:
    """Blank some cells [n, f], only of features with a default: one in five records lacks one or more of them."""
    gaps = x.copy()
    for shift, name in enumerate(MISSING):
        gaps[shift * 2 :: 11, names.index(name)] = np.nan
    return gaps


def with_defaults(x: Floats, names: list[str]) -> Floats:
    """Fill the blank cells [n, f] as model.yaml tells the server to."""
    filled = x.copy()
    for name, default in MISSING.items():
        column = filled[:, names.index(name)]
        column[np.isnan(column)] = default
    return filled


def expectations(model: Pipeline, x: Floats) -> list[dict[str, Any]]:
    """Return what scikit-learn itself predicts for records [n, f]."""
    labels, scores = model.predict(x), model.predict_proba(x)
    return [
        {
            "label": str(label),
            "scores": {str(name): short(score) for name, score in zip(model.classes_, row, strict=True)},
        }
        for label, row in zip(labels, scores, strict=True)
    ]


def write_training(x: Floats, y: Labels) -> None:
    """Rewrite the `training` block of model.yaml; the date can be given as the first argument."""
    libraries = ", ".join(f"{name}: {version(name)!r}" for name in ("scikit-learn", "skl2onnx", "onnx", "numpy"))
    at = sys.argv[1] if len(sys.argv) > 1 else datetime.now(UTC).date().isoformat()
    block = (
        "training:\n"
        f"  data_sha256: {hashlib.sha256(x.astype('<f4').tobytes() + ','.join(y).encode()).hexdigest()}\n"
        f"  script_sha256: {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}\n"
        f"  libraries: {{{libraries}}}\n"
        f"  at: {at!r}\n"
    )
    manifest = FOLDER / "model.yaml"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(re.sub(r"(?m)^training:\n(?:  .*\n)*", block, text), encoding="utf-8")


def main() -> None:
    """Train, convert, and write every generated file of the folder."""
    data = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    x = data.data.astype(np.float32)
    y = data.target_names[data.target]
    keys = [f"wdbc-{row:03d}" for row in range(len(x))]

    rows = np.arange(len(x))
    train, rest = train_test_split(rows, train_size=TRAIN, stratify=y, random_state=SEED)
    confidence, rest = train_test_split(rest, train_size=CONFIDENCE, stratify=y[rest], random_state=SEED)
    examples, held_out = train_test_split(rest, train_size=EXAMPLES, stratify=y[rest], random_state=SEED)

    model = make_pipeline(
        SimpleImputer(strategy="median"), StandardScaler(), LogisticRegression(C=0.3, max_iter=1000)
    ).fit(x[train], y[train])

    graph = convert_sklearn(
        model,
        name="breast-cancer",
        initial_types=[("features", FloatTensorType([None, len(names)]))],
        final_types=[("label", StringTensorType([None])), ("scores", FloatTensorType([None, len(model.classes_)]))],
        options={"zipmap": False},
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    graph.opset_import.sort(key=lambda opset: opset.domain)  # skl2onnx leaves them in the order of a set
    (FOLDER / "model.onnx").write_bytes(graph.SerializeToString(deterministic=True))

    write_examples(model, x, names, keys, examples)
    write_held_out(model, x, names, keys, held_out)
    write_csv(
        FOLDER / "confidence.csv",
        ["sample_id", *names, "label"],
        [[keys[row], *map(short, x[row]), y[row]] for row in confidence],
    )
    write_csv(FOLDER / "reference.csv", names, [[short(value) for value in x[row]] for row in train])
    write_training(x[train], y[train])
    sys.stdout.write(f"accuracy on the confidence set: {model.score(x[confidence], y[confidence]):.4f}\n")


def write_examples(model: Pipeline, x: Floats, names: list[str], keys: list[str], rows: Indices) -> None:
    """Write examples.jsonl; a blank cell is an absent field."""
    gaps = with_gaps(x[rows], names)
    documents = []
    for row, values, expect in zip(rows, gaps, expectations(model, with_defaults(gaps, names)), strict=True):
        fields = {name: short(value) for name, value in zip(names, values, strict=True) if not np.isnan(value)}
        documents.append({"record": {"sample_id": keys[row], **fields}, "expect": expect})
    write_lines(FOLDER / "examples.jsonl", documents)


def write_held_out(model: Pipeline, x: Floats, names: list[str], keys: list[str], rows: Indices) -> None:
    """Write held-out.csv, with blank cells and a column that is no feature, and the predictions for it."""
    gaps = with_gaps(x[rows], names)
    table = [
        [keys[row], *("" if np.isnan(value) else short(value) for value in values), ("north", "south")[row % 2]]
        for row, values in zip(rows, gaps, strict=True)
    ]
    write_csv(FOLDER / "held-out.csv", ["sample_id", *names, "site"], table)
    predictions = expectations(model, with_defaults(gaps, names))
    write_lines(
        FOLDER / "held-out.expected.jsonl",
        [{"key": keys[row], **prediction} for row, prediction in zip(rows, predictions, strict=True)],
    )


if __name__ == "__main__":
    main()
