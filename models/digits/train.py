"""Train the digits example on scikit-learn's bundled data and write its ONNX graph and quality assets."""

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
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]

FOLDER = Path(__file__).resolve().parent
SEED = 20
TRAIN, CONFIDENCE, EXAMPLES = 1197, 300, 40  # records; what is left over is the held-out set
REFERENCE = 400  # records of the training set kept as the reference for drift


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


def with_shifts(x: Floats, y: Labels) -> tuple[Floats, Labels]:
    """Return images [n, 64] and their copies moved by one pixel each way [5n, 64]: a writer is never quite centered."""
    padded = np.pad(x.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    corners = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    moved = [padded[:, top : top + 8, left : left + 8] for top, left in corners]
    return np.concatenate(moved).reshape(-1, 64), np.tile(y, len(corners))


def expectations(model: Pipeline, x: Floats) -> list[dict[str, Any]]:
    """Return what scikit-learn itself predicts for records [n, 64]."""
    labels, scores = model.predict(x), model.predict_proba(x)
    return [
        {
            "label": int(label),
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
        f"  data_sha256: {hashlib.sha256(x.astype('<f4').tobytes() + y.astype('<i8').tobytes()).hexdigest()}\n"
        f"  script_sha256: {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}\n"
        f"  libraries: {{{libraries}}}\n"
        f"  at: {at!r}\n"
    )
    manifest = FOLDER / "model.yaml"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(re.sub(r"(?m)^training:\n(?:  .*\n)*", block, text), encoding="utf-8")


def main() -> None:
    """Train, convert, and write every generated file of the folder."""
    data = load_digits()
    names = list(data.feature_names)
    x, y = data.data.astype(np.float32), data.target.astype(np.int64)
    keys = [f"image-{row:04d}" for row in range(len(x))]

    rows = np.arange(len(x))
    train, rest = train_test_split(rows, train_size=TRAIN, stratify=y, random_state=SEED)
    confidence, rest = train_test_split(rest, train_size=CONFIDENCE, stratify=y[rest], random_state=SEED)
    examples, held_out = train_test_split(rest, train_size=EXAMPLES, stratify=y[rest], random_state=SEED)

    # Scaled by the range a pixel can have, not by what each column happened to hold: the border is mostly blank.
    scaler = MinMaxScaler().fit(np.array([[0.0] * 64, [16.0] * 64]))
    images, labels = with_shifts(x[train], y[train])
    network = MLPClassifier((128,), alpha=0.1, max_iter=400, random_state=SEED).fit(scaler.transform(images), labels)
    model = make_pipeline(scaler, network)

    graph = convert_sklearn(
        model,
        name="digits",
        initial_types=[("features", FloatTensorType([None, len(names)]))],
        final_types=[("label", Int64TensorType([None])), ("scores", FloatTensorType([None, len(model.classes_)]))],
        options={"zipmap": False},
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    graph.opset_import.sort(key=lambda opset: opset.domain)  # skl2onnx leaves them in the order of a set
    (FOLDER / "model.onnx").write_bytes(graph.SerializeToString(deterministic=True))

    write_lines(
        FOLDER / "examples.jsonl",
        [
            {"record": {"image_id": keys[row], **dict(zip(names, map(short, x[row]), strict=True))}, "expect": expect}
            for row, expect in zip(examples, expectations(model, x[examples]), strict=True)
        ],
    )
    write_lines(
        FOLDER / "held-out.expected.jsonl",
        [{"key": keys[row], **expect} for row, expect in zip(held_out, expectations(model, x[held_out]), strict=True)],
    )
    write_csv(
        FOLDER / "held-out.csv",
        ["image_id", *names, "site"],
        [[keys[row], *map(short, x[row]), ("north", "south")[row % 2]] for row in held_out],
    )
    write_csv(
        FOLDER / "confidence.csv",
        ["image_id", *names, "label"],
        [[keys[row], *map(short, x[row]), y[row]] for row in confidence],
    )
    write_csv(FOLDER / "reference.csv", names, [list(map(short, x[row])) for row in train[:REFERENCE]])
    write_training(x[train], y[train])
    sys.stdout.write(f"accuracy on the confidence set: {model.score(x[confidence], y[confidence]):.4f}\n")


if __name__ == "__main__":
    main()
