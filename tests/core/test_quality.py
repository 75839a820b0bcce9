"""Metrics: what scikit-learn says, or a plain refusal."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from threefold.errors import ThreefoldError
from threefold.quality import METRICS, NotMeasurable, measure

LABELS = st.sampled_from(["north", "south", "east", "west"])
NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)


@st.composite
def scored(draw: st.DrawFn, dtype: type[np.floating[Any]] = np.float64) -> tuple[list[int], Any, int]:
    """Truth in which every class is, and probabilities with many ties; the number of classes."""
    width = draw(st.integers(2, 5))
    truth = draw(st.permutations([*range(width), *draw(st.lists(st.integers(0, width - 1), max_size=20))]))
    weights = draw(
        st.lists(
            st.lists(st.integers(0, 4), min_size=width, max_size=width).filter(any),
            min_size=len(truth),
            max_size=len(truth),
        )
    )
    scores = np.array(weights, dtype)
    return list(truth), scores / scores.sum(axis=1, keepdims=True), width


@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=40))
def test_accuracy_and_f1_are_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    truth, labels = map(list, zip(*pairs, strict=True))
    assert measure("accuracy", truth, labels=labels) == pytest.approx(sklearn.accuracy_score(truth, labels))
    assert measure("f1_macro", truth, labels=labels) == pytest.approx(sklearn.f1_score(truth, labels, average="macro"))


@given(scored())
def test_the_area_under_the_curve_is_scikit_learns(drawn: tuple[list[int], Any, int]) -> None:
    truth, scores, width = drawn
    given_scores = scores[:, 1] if width == 2 else scores
    want = sklearn.roc_auc_score(truth, given_scores, multi_class="ovr", average="macro")
    assert measure("auc", truth, scores=scores, classes=range(width)) == pytest.approx(want)


@given(scored(np.float64), scored(np.float32))
def test_the_logarithmic_loss_is_scikit_learns(
    wide: tuple[list[int], Any, int], narrow: tuple[list[int], Any, int]
) -> None:
    for (truth, scores, width), tolerance in ((wide, 1e-12), (narrow, 1e-5)):
        want = sklearn.log_loss(truth, scores, labels=range(width))
        got = measure("log_loss", truth, scores=scores, classes=range(width))
        assert got == pytest.approx(want, rel=tolerance, abs=tolerance)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=40))
def test_the_metrics_of_a_regression_are_scikit_learns(pairs: list[tuple[float, float]]) -> None:
    truth, values = map(list, zip(*pairs, strict=True))
    found = {name: measure(name, truth, values=np.array(values)) for name in ("rmse", "mae")}
    assert found["rmse"] == pytest.approx(sklearn.root_mean_squared_error(truth, values))
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(truth, values))
    if np.ptp(truth) > 1e-3:
        got = measure("r2", truth, values=np.array(values))
        assert got == pytest.approx(sklearn.r2_score(truth, values), rel=1e-6, abs=1e-9)


def test_the_classes_have_the_order_of_the_scores_and_not_of_the_alphabet() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], np.float32)
    truth = ["yes", "yes", "no"]
    assert measure("auc", truth, scores=scores, classes=["yes", "no"]) == 1.0
    assert measure("auc", truth, scores=scores, classes=["no", "yes"]) == 0.0
    good, bad = (measure("log_loss", truth, scores=scores, classes=order) for order in (["yes", "no"], ["no", "yes"]))
    assert good < 0.5 < bad


def test_two_classes_are_told_apart_by_the_score_of_the_second() -> None:
    scores = np.array([[0.5, 0.1], [0.5, 0.9]])
    assert measure("auc", ["no", "yes"], scores=scores, classes=["no", "yes"]) == 1.0


def test_scores_of_half_the_width_are_taken_too() -> None:
    scores = np.array([[0.75, 0.25], [0.5, 0.5]], np.float16)
    assert measure("log_loss", ["a", "b"], scores=scores, classes=["a", "b"]) == pytest.approx(0.4904, abs=1e-4)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_says_which_way_is_better(name: str) -> None:
    """Right predictions measure better than wrong ones, in the direction that the table says."""
    metric = METRICS[name]
    if metric.kind == "regression":
        right, wrong = (measure(name, [1.0, 2.0, 3.0], values=np.array(said)) for said in ([1, 2, 3], [3, 2, 1]))
    else:
        scores = np.array([[0.9, 0.1], [0.2, 0.8]])
        right, wrong = (
            measure(name, truth, labels=["a", "b"], scores=scores, classes=["a", "b"]) for truth in ("ab", "ba")
        )
    assert (right > wrong) is metric.higher_is_better
    assert (metric.name, right != wrong) == (name, True)


EVEN = np.array([[0.5, 0.5], [0.5, 0.5]])
AB = ["a", "b"]


@pytest.mark.parametrize(
    ("metric", "truth", "said", "message"),
    [
        ("acuracy", ["a"], {}, r"metric: want one of \['accuracy', .*\], got 'acuracy'"),
        ("accuracy", [], {"labels": []}, "accuracy: want at least one row, got none"),
        ("accuracy", AB, {"labels": ["a"]}, "accuracy: want a prediction for each of 2 rows, got 1"),
        ("accuracy", [1.0], {"values": np.array([1.0])}, "accuracy: want predicted classes, got none"),
        ("accuracy", ["a", "c"], {"labels": AB, "classes": AB}, r"want truth out of the classes \['a', 'b'\], got 'c'"),
        ("f1_macro", ["1"], {"labels": [1], "classes": [1, 2]}, r"truth out of the classes \[1, 2\], got '1'"),
        ("auc", AB, {"labels": AB, "classes": AB}, "auc: want a score per class, got none"),
        ("auc", ["a", "a"], {"scores": EVEN, "classes": AB}, r"auc: want truth of every class, got none of \['b'\]"),
        ("auc", AB, {"scores": EVEN * math.nan, "classes": AB}, "auc: want finite scores, got nan"),
        ("auc", AB, {"scores": EVEN[:1], "classes": AB}, r"want scores of shape \[2, 2\], got \[1, 2\]"),
        ("auc", AB, {"scores": EVEN, "classes": ["a", "b", "c"]}, r"want scores of shape \[2, 3\], got \[2, 2\]"),
        ("auc", AB, {"scores": EVEN}, "auc: want the names of two classes or more, got 0"),
        ("auc", AB, {"scores": EVEN.astype(np.int64), "classes": AB}, "want scores that are floating-point numbers"),
        ("log_loss", ["a", []], {"scores": EVEN, "classes": AB}, r"want truth out of the classes .*, got \[\]"),
        ("log_loss", AB, {"scores": EVEN * 4, "classes": AB}, r"log_loss: want scores in \[0, 1\], got 2"),
        ("log_loss", AB, {"scores": EVEN / 2, "classes": AB}, "log_loss: want scores that add up to 1, got 0.5"),
        ("rmse", AB, {"labels": AB}, "rmse: want predicted values, got none"),
        ("rmse", ["1", "2"], {"values": np.ones(2)}, "rmse: want truth that are numbers, got '1'"),
        ("mae", [1.0, math.nan], {"values": np.ones(2)}, "mae: want finite truth, got nan"),
        ("mae", [1.0, 2.0], {"values": np.array([1, math.inf])}, "mae: want finite predicted values, got inf"),
        (
            "mae",
            [1.0, 2.0],
            {"values": np.array(["x", "y"], object)},
            "want predicted values that are numbers, got 'x'",
        ),
        ("mae", [1.0, 2.0], {"values": np.ones((2, 1))}, r"want predicted values of shape \[n\], got \[2, 1\]"),
        ("rmse", [1e300, 2.0], {"values": np.ones(2)}, "rmse: want a finite figure, got inf"),
        ("r2", [3, 3], {"values": np.ones(2)}, "r2: want truth that varies, got 2 times 3"),
    ],
)
def test_what_cannot_be_measured_is_said_plainly(
    metric: str, truth: list[Any], said: dict[str, Any], message: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NotMeasurable, match=message) as caught:
            measure(metric, truth, **said)
    assert isinstance(caught.value, ThreefoldError)
    assert "\n" not in str(caught.value)
