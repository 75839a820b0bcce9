"""The models that are measured: 200 gradient-boosted trees and a linear one over the same 30 features, seeded."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from obstore.store import MemoryStore

from threefold.model import open_session
from threefold.predictor import Predictor
from threefold.registry import Registry
from threefold_ops.paths import BUILD
from threefold_ops.registry.publish import publish

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnxruntime as ort

SEED: Final = 20
TREES: Final = 200
NAMES: Final = tuple(f"feature_{i:02d}" for i in range(30))
KINDS: Final = ("tree", "linear")
_FOLDER: Final = BUILD / "bench-model"
_CLASSES: Final = (0, 1)


@dataclass(frozen=True, slots=True)
class BenchModel:
    """One published model with the means to ask it directly.

    Attributes:
        folder: what was published: model.yaml, model.onnx, examples.jsonl.
        session: on the same file, with the same options, for the references.
    """

    name: str
    folder: Path
    registry: Registry
    session: ort.InferenceSession

    def predictor(self) -> Predictor:
        """A predictor that has the model loaded and its release confirmed, with no network behind it."""
        predictor = Predictor(self.registry, budget_bytes=512 * 1024**2)
        predictor.ready(self.name)
        return predictor


def open_model(kind: str) -> BenchModel:
    """Publish one of the models into a registry in memory; it is trained once and kept under .threefold."""
    folder = _trained() / kind
    cache = Path(tempfile.gettempdir()) / "threefold-bench-packages"
    registry = Registry(MemoryStore(), cache=cache, baked=_FOLDER / "none")
    publish(registry, folder, by="bench")
    return BenchModel(f"bench-{kind}", folder, registry, open_session(folder / "model.onnx"))


def matrix(rows: int) -> npt.NDArray[np.float32]:
    """Values like those trained on, shape [rows, 30], the same every time."""
    return np.random.default_rng(SEED + 1).normal(size=(rows, len(NAMES))).astype(np.float32)


def record_list(rows: int) -> list[dict[str, float]]:
    """The rows of `matrix` as JSON has them, each number by its shortest text."""
    return [dict(zip(NAMES, map(_short, row), strict=True)) for row in matrix(rows)]


def _trained() -> Path:
    """The folder of the trained models, made anew when this module changes."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = _FOLDER / digest
    if folder.is_dir():
        return folder
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=_FOLDER) as scratch:
        _train(Path(scratch) / "made")
        (Path(scratch) / "made").rename(folder)
    return folder


def _train(target: Path) -> None:
    from skl2onnx import to_onnx  # noqa: PLC0415 - takes seconds, and only the first run needs it
    from sklearn.ensemble import GradientBoostingClassifier  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    random = np.random.default_rng(SEED)
    x = random.normal(size=(4000, len(NAMES))).astype(np.float32)
    weights = random.normal(size=len(NAMES))
    y = (x @ weights + np.sin(3 * x[:, 0]) * x[:, 1] + random.normal(size=len(x)) > 0).astype(np.int64)
    estimators: dict[str, Any] = {
        "tree": GradientBoostingClassifier(n_estimators=TREES, random_state=SEED),
        "linear": make_pipeline(StandardScaler(), LogisticRegression()),
    }
    for kind, estimator in estimators.items():
        estimator.fit(x, y)
        folder = target / kind
        folder.mkdir(parents=True)
        graph = to_onnx(estimator, x[:1], options={"zipmap": False}, target_opset={"": 18, "ai.onnx.ml": 3})
        (folder / "model.onnx").write_bytes(graph.SerializeToString())
        (folder / "model.yaml").write_text(_manifest(kind, [output.name for output in graph.graph.output]))
        _write_examples(folder / "examples.jsonl", estimator, x[:24])


def _write_examples(path: Path, estimator: Any, x: npt.NDArray[np.float32]) -> None:  # noqa: ANN401 - scikit-learn's
    lines = []
    for row, label, scores in zip(x, estimator.predict(x), estimator.predict_proba(x), strict=True):
        expect = {"label": int(label), "scores": {str(name): float(scores[name]) for name in _CLASSES}}
        record = dict(zip(NAMES, map(_short, row), strict=True))
        lines.append(json.dumps({"record": record, "expect": expect}) + "\n")
    path.write_text("".join(lines))


def _manifest(kind: str, outputs: list[str]) -> str:
    features = "".join(f"  - {{name: {name}, type: float32, min: -10, max: 10}}\n" for name in NAMES)
    label, scores = outputs
    return (
        f"schema: 1\nname: bench-{kind}\nversion: 1.0.0\nkey: id\nfeatures:\n{features}layout: packed\n"
        f"output: {{kind: classification, label: {label}, scores: {scores}, classes: [0, 1]}}\n"
        "gate: {examples: examples.jsonl}\n"
    )


def _short(number: np.float32) -> float:
    return float(str(number))
