"""What more than one tier of tests needs."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the example models."""
    return ROOT / "models"
