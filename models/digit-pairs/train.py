"""Train the digit-pairs example on scikit-learn's bundled data and write its ONNX graph and quality assets."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

if TYPE_CHECKING:
    import numpy.typing as npt
    from onnx import ModelProto

    Floats = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]
    Pairs = tuple[Labels, Labels]

FOLDER = Path(__file__).resolve().parent
SEED = 20
READER, COMPARER, EXAMPLES = 900, 450, 120  # images; what is left over makes the held-out pairs
OPSET, IR_VERSION = 18, 9


def short(number: float | np.floating[Any]) -> float | int:
    """Return a float32 as the number with the fewest digits that reads back as the same float32."""
    shortest = float(str(np.float32(number)))
    return int(shortest) if shortest.is_integer() else shortest


def write_lines(path: Path, documents: list[dict[str, Any]]) -> None:
    """Write one JSON document a line."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")


def with_shifts(x: Floats, y: Labels) -> tuple[Floats, Labels]:
    """Return images [n, 8, 8] and their copies moved by one pixel each way [5n, 8, 8]."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    corners = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    moved = [padded[:, top : top + 8, left : left + 8] for top, left in corners]
    return np.concatenate(moved), np.tile(y, len(corners))


def draw_pairs(y: Labels, count: int, generator: np.random.Generator) -> Pairs:
    """Draw `count` pairs of different images by position; half of them show the same digit."""
    left, right = generator.integers(len(y), size=(2, 20 * count))
    same, different = (y[left] == y[right]) & (left != right), y[left] != y[right]
    drawn = [np.flatnonzero(kind)[: count // 2] for kind in (same, different)]
    chosen = generator.permutation(np.concatenate(drawn))
    return left[chosen], right[chosen]


class Comparison:
    """A reader that says which digit each image may be, and a comparer of what it says about two of them."""

    def __init__(self) -> None:
        """Make both models untrained."""
        self.reader = MLPClassifier((96,), alpha=0.3, max_iter=400, random_state=SEED)
        self.comparer = LogisticRegression(max_iter=1000)

    def read(self, images: Floats) -> npt.NDArray[np.float64]:
        """Return the probability of each digit [n, 10] for images [n, 8, 8] in 0 to 16."""
        digits: npt.NDArray[np.float64] = self.reader.predict_proba(images.reshape(-1, 64) / 16.0)
        return digits

    def compare(self, left: Floats, right: Floats) -> npt.NDArray[np.float64]:
        """Return what the comparer learns from [n, 20]: the same whichever image is left."""
        left_digits, right_digits = self.read(left), self.read(right)
        return np.hstack([np.abs(left_digits - right_digits), left_digits * right_digits])

    def expectations(self, left: Floats, right: Floats) -> list[dict[str, Any]]:
        """Return what scikit-learn itself predicts for pairs of images [n, 8, 8]."""
        same = self.comparer.predict_proba(self.compare(left, right))[:, 1]
        distance = np.linalg.norm(self.read(left) - self.read(right), axis=1)
        return [{"same": short(s), "distance": short(d)} for s, d in zip(same, distance, strict=True)]


def as_graph(comparison: Comparison) -> ModelProto:
    """Write both trained models as one ONNX graph over two batches of images, [n, 8, 8] each."""
    (hidden, digits), (hidden_bias, digits_bias) = comparison.reader.coefs_, comparison.reader.intercepts_
    weights = {
        "hidden": hidden / 16.0,  # the graph takes pixels as they are, 0 to 16
        "hidden_bias": hidden_bias,
        "digits": digits,
        "digits_bias": digits_bias,
        "compare": comparison.comparer.coef_.T,
        "compare_bias": comparison.comparer.intercept_,
    }
    initializers = [numpy_helper.from_array(np.asarray(w, dtype=np.float32), name) for name, w in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "columns"))
    nodes = []
    for side in ("left", "right"):
        nodes += [
            helper.make_node("Flatten", [side], [f"{side}_flat"], axis=1),
            helper.make_node("Gemm", [f"{side}_flat", "hidden", "hidden_bias"], [f"{side}_hidden"]),
            helper.make_node("Relu", [f"{side}_hidden"], [f"{side}_active"]),
            helper.make_node("Gemm", [f"{side}_active", "digits", "digits_bias"], [f"{side}_logits"]),
            helper.make_node("Softmax", [f"{side}_logits"], [f"{side}_digits"], axis=1),
        ]
    nodes += [
        helper.make_node("Sub", ["left_digits", "right_digits"], ["difference"]),
        helper.make_node("ReduceL2", ["difference", "columns"], ["distance"], keepdims=0),
        helper.make_node("Abs", ["difference"], ["apart"]),
        helper.make_node("Mul", ["left_digits", "right_digits"], ["together"]),
        helper.make_node("Concat", ["apart", "together"], ["compared"], axis=1),
        helper.make_node("Gemm", ["compared", "compare", "compare_bias"], ["same_logit"]),
        helper.make_node("Sigmoid", ["same_logit"], ["same_column"]),
        helper.make_node("Squeeze", ["same_column", "columns"], ["same"]),
    ]
    graph = helper.make_graph(
        nodes,
        "digit-pairs",
        [helper.make_tensor_value_info(side, TensorProto.FLOAT, ["n", 8, 8]) for side in ("left", "right")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("same", "distance")],
        initializers,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="digit-pairs")
    checker.check_model(model, full_check=True)
    return model


def write_training(x: Floats, y: Labels) -> None:
    """Rewrite the `training` block of model.yaml; the date can be given as the first argument."""
    libraries = ", ".join(f"{name}: {version(name)!r}" for name in ("scikit-learn", "onnx", "numpy"))
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


def as_inputs(left: Floats, right: Floats) -> dict[str, list[list[int]]]:
    """Return one pair of images [8, 8] as JSON; pixels are whole numbers."""
    return {"left": left.astype(int).tolist(), "right": right.astype(int).tolist()}


def main() -> None:
    """Train, write the graph, and write every other generated file of the folder."""
    data = load_digits()
    x, y = data.images.astype(np.float32), data.target.astype(np.int64)
    generator = np.random.default_rng(SEED)

    rows = np.arange(len(x))
    reader, rest = train_test_split(rows, train_size=READER, stratify=y, random_state=SEED)
    comparer, rest = train_test_split(rest, train_size=COMPARER, stratify=y[rest], random_state=SEED)
    examples, held_out = train_test_split(rest, train_size=EXAMPLES, stratify=y[rest], random_state=SEED)

    comparison = Comparison()
    images, labels = with_shifts(x[reader], y[reader])
    comparison.reader.fit(images.reshape(-1, 64) / 16.0, labels)
    # Of images the reader never saw, where it is as unsure as it will be when it serves.
    images, labels = with_shifts(x[comparer], y[comparer])
    left, right = draw_pairs(labels, 20_000, generator)
    comparison.comparer.fit(comparison.compare(images[left], images[right]), labels[left] == labels[right])
    (FOLDER / "model.onnx").write_bytes(as_graph(comparison).SerializeToString(deterministic=True))

    left, right = (examples[side] for side in draw_pairs(y[examples], 24, generator))
    write_lines(
        FOLDER / "examples.jsonl",
        [
            {"inputs": as_inputs(x[a], x[b]), "expect": expect}
            for a, b, expect in zip(left, right, comparison.expectations(x[left], x[right]), strict=True)
        ],
    )
    left, right = (held_out[side] for side in draw_pairs(y[held_out], 120, generator))
    keys = [f"pair-{a:04d}-{b:04d}" for a, b in zip(left, right, strict=True)]
    write_lines(
        FOLDER / "held-out.jsonl",
        [{"key": key, "inputs": as_inputs(x[a], x[b])} for key, a, b in zip(keys, left, right, strict=True)],
    )
    expected = comparison.expectations(x[left], x[right])
    write_lines(
        FOLDER / "held-out.expected.jsonl",
        [{"key": key, **expect} for key, expect in zip(keys, expected, strict=True)],
    )
    train = np.concatenate([reader, comparer])
    write_training(x[train], y[train])

    left, right = (held_out[side] for side in draw_pairs(y[held_out], 4000, generator))
    correct = comparison.comparer.score(comparison.compare(x[left], x[right]), y[left] == y[right])
    sys.stdout.write(f"accuracy on 4000 held-out pairs: {correct:.4f}\n")


if __name__ == "__main__":
    main()
