"""What would change if one package answered in the place of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from threefold.package import MODEL
from threefold_ops.errors import OperatorError
from threefold_ops.evaluation.row_set import RowSet, score
from threefold_ops.evaluation.timing import interleave
from threefold_ops.evaluation.trial import Trial
from threefold_ops.evaluation.trial_rows import read_example_rows, read_table, target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from threefold.package import Manifest
    from threefold.request import Records, Tensors
    from threefold_ops.evaluation.trial_rows import Rows
    from threefold_ops.registry.reference import Found

BATCH_ROWS: Final = 1000
# One call of a batch takes no longer; of a slow model it is fewer rows.
_BATCH_SECONDS: Final = 2.0
_SINGLE_ROWS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two packages.

    Attributes:
        model_bytes: the graph and the weights beside it, on disk.
        package_bytes: all files.
    """

    label: str
    model: str
    version: str
    digest: str
    model_bytes: int
    package_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast both are, called in turns: from a row that has been read to its outcome.

    Attributes:
        single_us_a: a's median of one record, in microseconds.
        single_us_b: b's.
        single_ratio: b's over a's.
        batch_rows: how many rows a batch had.
        rows_per_second_a: in batches.
        rows_per_second_b: likewise.
    """

    single_us_a: float
    single_us_b: float
    single_ratio: float
    batch_rows: int
    rows_per_second_a: float
    rows_per_second_b: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two packages, a and b, side by side. As JSON it has the fields of its parts, by their own names.

    Attributes:
        kind: classification, regression or tensors.
        size_ratio: b's model over a's, on disk.
        speed: None where there is no row that both take.
    """

    kind: str
    a: Side
    b: Side
    size_ratio: float
    sets: list[RowSet]
    speed: Speed | None


def compare(  # noqa: PLR0913 - what is compared, and how long one looks
    a: Found, b: Found, *, data: Path | None, scratch: Path, show: int, seconds: float, threads: int = 1
) -> Comparison:
    """Ask two packages the same rows, as the doors would.

    Args:
        a: what serves, say.
        b: what may come in its place.
        data: a CSV of rows, its features by name; with or without a column of the truth.
        scratch: an empty folder.
        show: how many of the rows that differ most to keep.
        seconds: how long each of both measurements of speed takes.
        threads: for one inference call.

    Raises:
        OperatorError: they cannot be compared, or there are no rows.
        InvalidPackage: one of them would be served by no door.
    """
    check(a, b)
    sets = _row_sets(a, b, data)
    trials = (
        Trial(a.package, a.serving, scratch / "trial-a", threads=threads),
        Trial(b.package, b.serving, scratch / "trial-b", threads=threads),
    )
    scored = [score(name, rows, trials, show=show) for name, rows in sets]
    sides = (_side(a), _side(b))
    return Comparison(
        kind=a.package.manifest.output.kind,
        a=sides[0],
        b=sides[1],
        size_ratio=sides[1].model_bytes / sides[0].model_bytes,
        sets=scored,
        speed=_speed(trials, scored, seconds),
    )


def check(a: Found, b: Found) -> None:
    """See that two packages answer the same question.

    Raises:
        OperatorError: why they cannot be compared.
    """
    one, other = a.package.manifest, b.package.manifest
    if one.output.kind != other.output.kind:
        message = f"want two models of one kind, got {a.label}: {one.output.kind}, and {b.label}: {other.output.kind}"
        raise OperatorError(message)
    names = [_asked(manifest) for manifest in (one, other)]
    if bool(one.signature.features) != bool(other.signature.features):
        got = [
            f"{found.label}: {'records' if found.package.manifest.signature.features else 'tensors'}"
            for found in (a, b)
        ]
        raise OperatorError(f"want two models that both take records, or both take tensors only, got {', '.join(got)}")
    if not set(names[0]) & set(names[1]):
        what = "features" if one.signature.features else "inputs"
        message = f"want {what} that both have, got {a.label}: {names[0][:20]}, and {b.label}: {names[1][:20]}"
        raise OperatorError(message)


def _asked(manifest: Manifest) -> list[str]:
    return [part.name for part in manifest.signature.features or manifest.signature.inputs]


def _row_sets(a: Found, b: Found, data: Path | None) -> list[tuple[str, Rows]]:
    packages = (a.package, b.package)
    manifests = [package.manifest for package in packages]
    sets: list[tuple[str, Rows]] = []
    tensors_only = not manifests[0].signature.features
    if data is not None:
        if tensors_only:
            raise OperatorError("--data: want models with named features for the columns, got models of tensors only")
        sets.append(("data", read_table(data, manifests)))
    carried = [None if tensors_only else manifest.gate.confidence for manifest in manifests]
    names = _named("confidence", [(one, target_of(owner)) for one, owner in zip(carried, manifests, strict=True)], a, b)
    for name, position in names:
        owner, file = manifests[position], carried[position]
        assert file is not None, "named only where there is one"
        sets.append((name, read_table(packages[position].folder / file, manifests, owner=owner)))
    if not sets:
        for name, position in _named("examples", [(one.gate.examples, "") for one in manifests], a, b):
            if rows := read_example_rows(packages[position], manifests):
                sets.append((name, rows))
    if not sets:
        wanted = "gate.examples" if tensors_only else "--data, gate.confidence or gate.examples"
        raise OperatorError(f"want rows to compare the answers to: {wanted}, got none")
    return sets


def _named(what: str, files: list[tuple[str | None, str]], a: Found, b: Found) -> list[tuple[str, int]]:
    """Whose sets there are, by name and position: one where both carry the same file."""
    contents = [
        None if file is None else (target, (found.package.folder / file).read_bytes())
        for (file, target), found in zip(files, (a, b), strict=True)
    ]
    if contents[0] is not None and contents[0] == contents[1]:
        return [(what, 0)]
    return [(f"{what}_{side}", i) for i, side in enumerate("ab") if contents[i] is not None]


def _side(found: Found) -> Side:
    package, manifest = found.package, found.package.manifest
    sizes = {path.name: path.stat().st_size for path in package.folder.iterdir()}
    return Side(
        label=found.label,
        model=manifest.name,
        version=manifest.version,
        digest=package.digest,
        model_bytes=sum(sizes[name] for name in (MODEL, *manifest.weights)),
        package_bytes=sum(sizes.values()),
    )


def _speed(trials: tuple[Trial, Trial], sets: Sequence[RowSet], seconds: float) -> Speed | None:
    taken = next((one for one in sets if one.agreement.rows), None)
    if taken is None:
        return None
    positions, payloads = taken.agreement.positions, taken.read.payloads
    ones = positions[:_SINGLE_ROWS, np.newaxis]
    single = interleave(
        [_calls(trial, rows, ones) for trial, rows in zip(trials, payloads, strict=True)], seconds=seconds
    )
    size = max(1, min(BATCH_ROWS, int(_BATCH_SECONDS / max(single))))
    many = np.resize(positions, (1, size))
    batch = interleave(
        [_calls(trial, rows, many) for trial, rows in zip(trials, payloads, strict=True)], seconds=seconds
    )
    return Speed(
        single_us_a=single[0] * 1e6,
        single_us_b=single[1] * 1e6,
        single_ratio=single[1] / single[0],
        batch_rows=size,
        rows_per_second_a=size / batch[0],
        rows_per_second_b=size / batch[1],
    )


def _calls(trial: Trial, rows: Records | Tensors, positions: npt.NDArray[np.intp]) -> Callable[[int], object]:
    """An act: one call with some of the rows, each time with the next of several choices."""
    choices = [rows.select(some) for some in positions]
    return lambda i: trial.predict(choices[i % len(choices)])
