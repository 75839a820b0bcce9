"""What decides whether a record counts says what the encoder will say of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.features import FeatureEncoder
from threefold.lookup import Judge
from threefold.signature import Feature, Signature, TensorSpec
from threefold.sources import Aggregate, WindowSource


def window(name: str, type_: str = "float32", agg: Aggregate = "sum", **fields: Any) -> Feature:
    source = WindowSource(entity="card", agg=agg, of="amount", over="1h")
    return Feature(name=name, type=type_, source=source, **fields)


FEATURES = (
    Feature(name="amount", type="float32", max=1000),
    window("plain"),
    window("given", missing=0.0),
    window("flagged", max=10, outside="flag"),
    window("bounded", min=0, max=10),
    window("listed", allowed=(0.0, 1.0), missing=1.0),
    window("whole", "int32", "count"),
)
VALUES = st.sampled_from([math.nan, 0.0, 1.0, 10.0, 10.5, -1.0, 1e5, 1e30, 3.5e38, 1e300, math.inf])


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@pytest.mark.parametrize("layout", ["packed", "columns"])
@given(values=st.fixed_dictionaries({feature.name: VALUES for feature in FEATURES}))
def test_a_record_counts_if_and_only_if_its_encoder_accepts_it(
    datatype: str, layout: Any, values: dict[str, float]
) -> None:
    inputs = [TensorSpec("x", datatype, (-1, len(FEATURES)))]
    if layout == "columns":
        inputs = [TensorSpec(feature.name, datatype, (-1, 1)) for feature in FEATURES]
    signature = Signature(tuple(inputs), (), FEATURES, layout)
    judge = Judge(signature)
    counts = not judge.refused([{"amount": values["amount"]}], own=True) and judge.accepts(values)
    assert counts == (not FeatureEncoder(signature).encode([values]).problems)
