"""Small models that scikit-learn trained, as model folders: two classifiers and two regressions over the same data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from skl2onnx import to_onnx
from sklearn.linear_model import LinearRegression, LogisticRegression

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

NAMES: Final = ("a", "b", "c", "d")
# The second of each pair takes its features in another order.
TURNED: Final = ("d", "b", "a", "c")
CLASSES: Final = ("red", "rosé", "white")
ROWS: Final = 240


@dataclass(frozen=True)
class Trained:
    """A model folder, and what scikit-learn itself says of the rows.

    Attributes:
        said: its labels or values.
        scores: its probabilities, in the order of CLASSES.
    """

    folder: Path
    said: npt.NDArray[Any]
    scores: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Models:
    """All of them, and rows that none was trained on, with their truth, as a CSV."""

    x: npt.NDArray[np.float32]
    truth: npt.NDArray[Any]
    data: Path
    a: Trained
    b: Trained
    line: Trained
    slope: Trained


def train(root: Path) -> Models:
    """Train, export and write down everything."""
    random = np.random.default_rng(7)
    x = random.normal(size=(600, len(NAMES))).astype(np.float32)
    score = x @ np.array([1.0, -2.0, 0.5, 1.5]) + random.normal(scale=0.7, size=len(x))
    labels = np.array(CLASSES)[np.digitize(score, [-1.0, 1.0])]
    test, learn = slice(0, ROWS), slice(ROWS, None)
    data = root / "data.csv"
    data.write_text(table(NAMES, x[test], key=True, label=labels[test].tolist()), encoding="utf-8")
    found = {}
    for name, estimator, rows, truth, order in (
        ("a", LogisticRegression(), learn, labels, NAMES),
        ("b", LogisticRegression(), slice(ROWS, ROWS + 40), labels, TURNED),
        ("line", LinearRegression(), learn, score, NAMES),
        ("slope", LinearRegression(), slice(ROWS, ROWS + 12), score, TURNED),
    ):
        columns = [NAMES.index(feature) for feature in order]
        estimator.fit(x[rows][:, columns], truth[rows])
        found[name] = _write(root / name, estimator, x[test], truth[test], order)
    return Models(x=x[test], truth=labels[test], data=data, **found)


def _write(folder: Path, estimator: Any, x: npt.NDArray[np.float32], truth: Any, order: Sequence[str]) -> Trained:
    folder.mkdir()
    classifier = hasattr(estimator, "predict_proba")
    turned = x[:, [NAMES.index(feature) for feature in order]]
    graph = to_onnx(estimator, turned[:1], options={"zipmap": False} if classifier else None, target_opset=17)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    outputs = [output.name for output in graph.graph.output]
    said = estimator.predict(turned)
    scores = estimator.predict_proba(turned).astype(np.float32) if classifier else None
    expects = [
        {"value": float(np.ravel(said)[i])} if scores is None else {"label": said[i], "scores": _scores(scores[i])}
        for i in range(10)
    ]
    records = [dict(zip(NAMES, map(_short, row), strict=True)) for row in x[:10]]
    lines = [json.dumps({"record": record, "expect": expect}) for record, expect in zip(records, expects, strict=True)]
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")
    target = {"label": truth.tolist()} if classifier else {"value": [repr(float(value)) for value in truth]}
    (folder / "confidence.csv").write_text(table(NAMES, x, key=True, **target), encoding="utf-8")
    output = (
        f"{{kind: classification, label: {outputs[0]}, scores: {outputs[1]}, classes: [{', '.join(CLASSES)}]}}"
        if classifier
        else f"{{kind: regression, value: {outputs[0]}}}"
    )
    gate = "metric: accuracy, acceptable: [0.3, 1]" if classifier else "metric: rmse, acceptable: [0, 10]"
    features = "".join(f"  - {{name: {name}, type: float32, min: -6, max: 6}}\n" for name in order)
    (folder / "model.yaml").write_text(
        f"schema: 1\nname: trained-{folder.name}\nversion: 1.0.0\ndescription: a test's\nkey: id\n"
        f"features:\n{features}layout: packed\noutput: {output}\n"
        f"gate: {{examples: examples.jsonl, confidence: confidence.csv, {gate}}}\n"
        + ("serving: {abstain_below: 0.5}\n" if folder.name == "a" else ""),
        encoding="utf-8",
    )
    return Trained(folder, np.ravel(said), scores)


def table(names: Sequence[str], x: npt.NDArray[np.float32], *, key: bool, **more: Sequence[object]) -> str:
    """Rows as CSV, each number by its shortest text."""
    lines = [",".join([*(["id"] if key else []), *names, *more])]
    for i, row in enumerate(x):
        cells = [*([f"row-{i}"] if key else []), *(repr(_short(value)) for value in row)]
        lines.append(",".join([*cells, *(str(column[i]) for column in more.values())]))
    return "\n".join(lines) + "\n"


def _short(number: np.float32) -> float:
    return float(str(number))


def _scores(row: npt.NDArray[np.float32]) -> dict[str, float]:
    return dict(zip(CLASSES, row.tolist(), strict=True))
