"""What the long tests share: seeded records of any number, and a way to tell what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.long.batch_door import MODEL, Rows
from threefold_ops.authoring.manifest import read_model_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def make_rows(models: Path) -> Callable[[int, int], Rows]:
    """Makes so many records from a seed: numbers well within the features' ranges."""
    features = read_model_file(models / MODEL / "model.yaml").features
    limits = np.array([[feature.min, feature.max] for feature in features], np.float32)

    def make(seed: int, count: int) -> Rows:
        dice = np.random.default_rng(seed)
        # Where the model says now this and now that; a score of 1.0 for each row would tell no row from another.
        shares = 0.15 + 0.2 * dice.random((count, len(features)), np.float32)
        values = limits[:, 0] + shares * (limits[:, 1] - limits[:, 0])
        texts = [",".join(map(str, row)).encode() for row in values]
        return Rows(["sample_id", *(feature.name for feature in features)], texts)

    return make


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a figure that was measured."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n  {line}", end="", flush=True)  # noqa: T201 - the figures are what one runs these for

    return say
