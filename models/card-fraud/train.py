"""Generate card payments, train the card-fraud example on them, and write its ONNX graph and quality assets.

No payment here was ever made: amounts, cards and frauds come from a seeded generator, and the figures say something
of it alone. The windows are computed by `threefold.windows`, the very code that counts at the doors.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from threefold.sources import WindowSource
from threefold.windows import Events, Windows, replay

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Record = dict[str, Any]

FOLDER = Path(__file__).resolve().parent
SEED = 7
START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 45
CARDS, CONFIDENCE_CARDS, HELD_OUT_CARDS = 260, 60, 40
EXAMPLES = 24
# As in model.yaml; were the two to differ, the doors would not say what training saw, and `make demo` would fail.
WINDOWS = Windows(
    (
        ("count_1h", WindowSource(entity="card_id", agg="count", over="1h")),
        ("spend_7d", WindowSource(entity="card_id", of="amount", agg="sum", over="7d")),
        ("mean_30d", WindowSource(entity="card_id", of="amount", agg="mean", over="30d")),
    )
)
NAMES = ["amount", "abroad", "count_1h", "spend_7d", "mean_30d", "credit_limit"]
OWN = ["payment_id", "happened_at", "card_id", "amount", "abroad"]
# The `missing` defaults of model.yaml.
MISSING = {"abroad": 0, "mean_30d": 0.0, "credit_limit": 2000.0}


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


def generate(card: int, chance: np.random.Generator) -> list[Record]:
    """Make up the payments of one card, in the order of time: its owner's, and of one card in three a thief's."""
    usual, limit = float(chance.lognormal(3.3, 0.5)), float(chance.choice([1000, 2000, 5000]))
    payments = []

    def pay(seconds: float, amount: float, abroad: float, label: str) -> None:
        payments.append(
            {
                "happened_at": START + timedelta(seconds=round(seconds)),
                "card_id": f"card-{card:03d}",
                "amount": round(max(0.5, amount), 2),
                "abroad": int(chance.random() < abroad),
                "credit_limit": limit,
                "label": label,
            }
        )

    for _ in range(int(chance.integers(8, 40))):
        pay(float(chance.uniform(0, DAYS * 86_400)), usual * float(chance.lognormal(0, 0.6)), 0.05, "genuine")
    if card % 3 == 0:
        # A stolen card is used in a hurry: several payments within the hour, most of them dearer than its owner's.
        began = float(chance.uniform(20 * 86_400, (DAYS - 1) * 86_400))
        for _ in range(int(chance.integers(3, 8))):
            pay(began, usual * float(chance.lognormal(1.0, 0.8)), 0.4, "fraud")
            began += float(chance.uniform(30, 900))
    return sorted(payments, key=lambda payment: payment["happened_at"])


def with_windows(payments: list[Record]) -> None:
    """Put the windows' values into payments, each as it was at its own time."""
    at_ms = [round(payment["happened_at"].timestamp() * 1000) for payment in payments]
    found = replay(WINDOWS, Events.of(WINDOWS, payments, at_ms, None), {})
    for i, payment in enumerate(payments):
        payment |= {name: float(column[i]) for name, column in found.items()}


def matrix(payments: list[Record]) -> Floats:
    """Make the tensor [n, features], with defaults for what is missing."""
    rows = [[payment[name] for name in NAMES] for payment in payments]
    values = np.array([[np.nan if value is None else value for value in row] for row in rows], np.float32)
    for name, default in MISSING.items():
        column = values[:, NAMES.index(name)]
        column[np.isnan(column)] = default
    return values


def cells(payment: Record, names: list[str]) -> list[Any]:
    """Return some of a payment's values as they are written."""
    found = []
    for name in names:
        value = payment[name]
        if isinstance(value, datetime):
            value = value.isoformat().replace("+00:00", "Z")
        elif name in NAMES and value is not None:
            value = "" if np.isnan(value) else short(value)
        found.append("" if value is None else value)
    return found


def expectations(model: Pipeline, payments: list[Record]) -> list[dict[str, Any]]:
    """Return what scikit-learn itself predicts."""
    x = matrix(payments)
    return [
        {
            "label": str(label),
            "scores": {str(name): short(score) for name, score in zip(model.classes_, row, strict=True)},
        }
        for label, row in zip(model.predict(x), model.predict_proba(x), strict=True)
    ]


def write_training(x: Floats, y: list[str]) -> None:
    """Rewrite the `training` block of model.yaml; the date can be given as the first argument."""
    libraries = ", ".join(f"{name}: {version(name)!r}" for name in ("scikit-learn", "skl2onnx", "onnx", "numpy"))
    at = sys.argv[1] if len(sys.argv) > 1 else datetime.now(UTC).date().isoformat()
    block = (
        "training:\n"
        "  data: generated by train.py\n"
        f"  data_sha256: {hashlib.sha256(x.astype('<f4').tobytes() + ','.join(y).encode()).hexdigest()}\n"
        f"  script_sha256: {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}\n"
        f"  libraries: {{{libraries}}}\n"
        f"  at: {at!r}\n"
    )
    manifest = FOLDER / "model.yaml"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(re.sub(r"(?m)^training:\n(?:  .*\n)*", block, text), encoding="utf-8")


def main() -> None:
    """Generate, train, convert, and write every generated file of the folder."""
    chance = np.random.default_rng(SEED)
    cards = [generate(card, chance) for card in range(CARDS + CONFIDENCE_CARDS + HELD_OUT_CARDS)]
    payments = [payment for card in cards for payment in card]
    for number, payment in enumerate(payments):
        payment["payment_id"] = f"pay-{number:05d}"
    with_windows(payments)

    train = [payment for card in cards[:CARDS] for payment in card]
    confidence = [payment for card in cards[CARDS : CARDS + CONFIDENCE_CARDS] for payment in card]
    held_out = cards[CARDS + CONFIDENCE_CARDS :]
    x, y = matrix(train), [payment["label"] for payment in train]
    model = make_pipeline(
        StandardScaler(), PolynomialFeatures(2, include_bias=False), LogisticRegression(C=0.3, max_iter=2000)
    ).fit(x, y)

    graph = convert_sklearn(
        model,
        name="card-fraud",
        initial_types=[("features", FloatTensorType([None, len(NAMES)]))],
        final_types=[("label", StringTensorType([None])), ("scores", FloatTensorType([None, len(model.classes_)]))],
        options={"zipmap": False},
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    graph.opset_import.sort(key=lambda opset: opset.domain)  # skl2onnx leaves them in the order of a set
    (FOLDER / "model.onnx").write_bytes(graph.SerializeToString(deterministic=True))

    # Of the confidence cards, the frauds and as many others: the examples.
    frauds = [payment for payment in confidence if payment["label"] == "fraud"][: EXAMPLES // 2]
    others = [payment for payment in confidence if payment["label"] != "fraud"][:: len(confidence) // 12][
        : EXAMPLES // 2
    ]
    write_examples(model, frauds + others)
    taken = {payment["payment_id"] for payment in frauds + others}
    measured = [payment for payment in confidence if payment["payment_id"] not in taken]
    write_csv(
        FOLDER / "confidence.csv",
        ["payment_id", *NAMES, "label"],
        [[*cells(payment, ["payment_id", *NAMES]), payment["label"]] for payment in measured],
    )
    write_csv(FOLDER / "reference.csv", NAMES, [cells(payment, NAMES) for payment in train[::3]])
    write_held_out(model, held_out)
    write_training(x, y)
    fraud = [payment["label"] == "fraud" for payment in measured]
    auc = roc_auc_score(fraud, model.predict_proba(matrix(measured))[:, 0])
    sys.stdout.write(f"auc on the confidence set: {auc:.4f}, of {len(measured)} payments {sum(fraud)} frauds\n")


def write_examples(model: Pipeline, payments: list[Record]) -> None:
    """Write examples.jsonl: the payments with what was looked up for them."""
    documents = []
    for payment, expect in zip(payments, expectations(model, payments), strict=True):
        names = [*OWN, *NAMES[2:]]
        record = {name: value for name, value in zip(names, cells(payment, names), strict=True) if value != ""}
        documents.append({"record": record, "expect": expect})
    write_lines(FOLDER / "examples.jsonl", documents)


def write_held_out(model: Pipeline, cards: list[list[Record]]) -> None:
    """Write the last payment of each card as held-out.csv, and all before it as history.csv.

    Nothing was loaded for these cards, so that their credit limit is the default; and some payments do not say
    whether they were made abroad.
    """
    last = [{**card[-1], "credit_limit": None} for card in cards]
    for payment in last[::7]:
        payment["abroad"] = None
    history = [payment for card in cards for payment in card[:-1]]
    write_csv(FOLDER / "history.csv", OWN, [cells(payment, OWN) for payment in history])
    columns = [*OWN, *NAMES[2:]]
    write_csv(FOLDER / "held-out.csv", columns, [cells(payment, columns) for payment in last])
    predictions = expectations(model, last)
    write_lines(
        FOLDER / "held-out.expected.jsonl",
        [{"key": payment["payment_id"], **expect} for payment, expect in zip(last, predictions, strict=True)],
    )


if __name__ == "__main__":
    main()
