"""Features that are named as a model's answers: what learns from answers learns their mistakes."""

from __future__ import annotations

import contextlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from threefold.package import MODEL
from threefold.tables.results import ANSWERS, PREFIX
from threefold_ops.authoring.graph import NoGraph, read_graph
from threefold_ops.authoring.manifest import MODEL_FILE, inspect_model_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from threefold.package import Manifest
    from threefold_ops.authoring.source import Location

# What libraries call a graph's outputs, or people a column: nobody's answer in particular.
GENERIC: Final = frozenset(
    {
        "answer",
        "class",
        "classes",
        "label",
        "labels",
        "logits",
        "output",
        "outputs",
        "output_label",
        "output_probability",
        "pred",
        "prediction",
        "predictions",
        "prob",
        "probs",
        "probability",
        "probabilities",
        "proba",
        "result",
        "results",
        "score",
        "scores",
        "target",
        "value",
        "values",
        "variable",
        "y",
        "y_hat",
        "y_pred",
    }
)
_NUMBERED: Final = re.compile(r"(?:output|dense|linear|softmax|sigmoid|add|gemm|identity)?_?[0-9]+")
_SUFFIXES: Final = ("label", "value", "score", "prediction")


def echoes(folder: Path, manifest: Manifest) -> Iterator[tuple[Location, str]]:
    """The features that are named as an answer of this model or of another one beside its folder.

    Args:
        folder: the model's own.
        manifest: of its package.
    """
    folder = folder.absolute()
    sources = {PREFIX + column: "a column of a result file" for columns in ANSWERS.values() for column in columns}
    for path in sorted(folder.parent.glob(f"*/{MODEL_FILE}")):
        own = path.parent == folder
        model, names = _answers(path.parent, path.stat().st_mtime_ns)
        for name in names if own else names | {_plain(model)}:
            sources.setdefault(name, "an answer of its own" if own else f"an answer of '{model}'")
    for i, feature in enumerate(manifest.signature.features):
        if source := sources.get(_plain(feature.name)):
            message = f"want what is known before any answer, got {feature.name!r}, which is named as {source}"
            yield ("features", i), f"{message}: a model that learns from answers learns their mistakes"


@lru_cache(maxsize=1024)
def _answers(folder: Path, _changed_ns: int) -> tuple[str, frozenset[str]]:
    """A model's name, and what its answers may be called in somebody's data."""
    written = inspect_model_file(folder / MODEL_FILE).written
    if written is None:
        return folder.name, frozenset()
    names = [written.output.label, written.output.scores, written.output.value, written.gate.target]
    if written.output.kind == "tensors":
        with contextlib.suppress(NoGraph):  # The check of that folder says so.
            names += read_graph(folder / MODEL).makers
    telling = {plain for name in names if name and not _generic(plain := _plain(name))}
    return written.name, frozenset(telling | {f"{_plain(written.name)}_{suffix}" for suffix in _SUFFIXES})


def _generic(name: str) -> bool:
    return name in GENERIC or _NUMBERED.fullmatch(name) is not None


def _plain(name: str) -> str:
    """A name however it is written: models have hyphens where columns have underscores."""
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")
