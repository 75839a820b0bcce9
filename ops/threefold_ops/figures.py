"""Figures as strict JSON holds them."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

# The metadata of a field that is for the program's own use.
UNWRITTEN: Final[Mapping[str, bool]] = MappingProxyType({"written": False})


def to_document(value: Any) -> Any:  # noqa: ANN401 - whatever figures are made of
    """A dataclass of figures as JSON: numbers that are not finite become "NaN", "Infinity" and "-Infinity".

    Fields that are marked as UNWRITTEN are left out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_document(getattr(value, field.name))
            for field in fields(value)
            if field.metadata.get("written", True)
        }
    if isinstance(value, dict):
        return {str(name): to_document(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_document(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
