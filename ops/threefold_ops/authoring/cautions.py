"""What does not keep a model from being published, and is worth a thought before it is."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from threefold.examples import read_examples
from threefold.features import parse_cell
from threefold.gate import Finding
from threefold.labelled import read_labelled
from threefold.package import MODEL
from threefold.request import record_keys
from threefold_ops.authoring.feedback import echoes
from threefold_ops.authoring.graph import faults
from threefold_ops.errors import OperatorError
from threefold_ops.scaffold.table import read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from threefold.gate import Report
    from threefold.labelled import Labelled
    from threefold.package import Gate, Manifest, Package
    from threefold_ops.authoring.graph import Graph
    from threefold_ops.authoring.manifest import Reading

# Fewer say little more than that the graph runs.
LEAST_EXAMPLES: Final = 5
# Lambda's limit is 250 MB for code and all layers, unzipped; the runtime layer takes more than half of it.
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
BAKED_BYTES: Final = 100 * 1024**2
TRAINING: Final = ("data_sha256", "script_sha256", "libraries", "at")
# A key with fewer values, each in several rows, is a group and not an id.
LEAST_KEYS: Final = 50
_TELLING_ROWS: Final = 10
# What a metric can be at all.
_LIMITS: Final = {"accuracy": (0.0, 1.0), "f1_macro": (0.0, 1.0), "auc": (0.0, 1.0), "r2": (-math.inf, 1.0)}
_UNBOUNDED: Final = (0.0, math.inf)


def cautions(
    folder: Path, reading: Reading, graph: Graph | None, package: Package | None, report: Report | None
) -> Iterator[Finding]:
    """All of it.

    Args:
        folder: where the model lies, among others whose answers may be its features.
        reading: its model.yaml.
        graph: its graph; None if it cannot be read.
        package: what is made of it; None if nothing can be.
        report: what its gate measured.
    """
    if graph is not None and package is not None and (fault := faults(package.model_path)):
        message = f"want what ONNX's checker accepts, though ONNX Runtime loads it: got {fault}"
        yield Finding(MODEL, message)
    if package is None:
        return
    manifest = package.manifest
    yield from _gate(reading, manifest, report)
    yield from _training(reading, manifest)
    size = sum(path.stat().st_size for path in package.folder.iterdir())
    if manifest.bake and size > BAKED_BYTES:
        message = f"want at most {BAKED_BYTES} bytes in the model layer, got {size}: with bake: false it is downloaded"
        yield reading.finding(("bake",), message)
    for place, message in echoes(folder, manifest):
        yield reading.finding(place, message)
    if manifest.signature.features:
        yield from _records(reading, package)


def _gate(reading: Reading, manifest: Manifest, report: Report | None) -> Iterator[Finding]:
    checks = manifest.gate
    if checks.examples is None:
        message = "want examples, got none: nothing shows that the graph says what the training library said"
        yield reading.finding(("gate",), message)
    elif report is not None and report.examples < LEAST_EXAMPLES and not report.findings:
        yield reading.finding(("gate", "examples"), f"want {LEAST_EXAMPLES} examples or more, got {report.examples}")
    if manifest.signature.features:
        if checks.confidence is None and manifest.output.kind != "tensors":
            message = "want a confidence set, got none: nothing measures how good this version is"
            yield reading.finding(("gate",), message)
        if manifest.reference is None:
            yield reading.finding(("drift",), "want a reference, got none: nothing tells when the records change")
    # A warning: folders were published so before a metric was ever measured.
    parts = {"confidence": checks.confidence, "metric": checks.metric, "acceptable": checks.acceptable}
    absent = [name for name, part in parts.items() if part is None]
    if absent and len(absent) < len(parts):
        message = f"want confidence, metric and acceptable together, got no {' and no '.join(absent)}"
        yield reading.finding(("gate",), message)
    elif not absent and (message := _slack(checks)):
        yield reading.finding(("gate", "acceptable"), message)


def _slack(checks: Gate) -> str:
    """What is wrong with a range that a good model can miss, or that no model does."""
    low, high = checks.acceptable or (0.0, 0.0)
    least, most = _LIMITS.get(checks.metric or "", _UNBOUNDED)
    if low == high:
        return f"want room between the ends, got {low:g} alone: another machine may measure a little else"
    if low <= least and high >= most:
        return f"want a range that a bad model misses, got all that {checks.metric} can be"
    return ""


def _training(reading: Reading, manifest: Manifest) -> Iterator[Finding]:
    if lacking := [name for name in TRAINING if not manifest.training.get(name)]:
        message = f"want {', '.join(lacking)}, got none: nobody can tell later what this version was made of"
        yield reading.finding(("training",), message)


def _records(reading: Reading, package: Package) -> Iterator[Finding]:
    manifest, labelled = package.manifest, None
    if manifest.gate.confidence is not None:
        labelled = read_labelled(package.folder / manifest.gate.confidence, manifest)
    if manifest.key is not None and (message := _grouping(package, manifest.key, labelled)):
        yield reading.finding(("key",), message)
    if manifest.reference is None:
        return
    try:
        reference = _reference(package, manifest.reference)
    except OperatorError as error:
        yield Finding(manifest.reference, str(error).removeprefix(f"{package.folder / manifest.reference}: "))
        return
    if labelled is not None and manifest.gate.confidence is not None and reference:
        names = [feature.name for feature in manifest.signature.features]
        rows = [tuple(record.get(name) for name in names) for record in labelled.records]
        if found := _leaked(rows, reference):
            message = f"want records that no training saw, got {len(found)} that {manifest.reference} has too"
            yield Finding(manifest.gate.confidence, message, labelled.lines[found[0]])


def _reference(package: Package, name: str) -> list[tuple[object, ...]]:
    features = package.manifest.signature.features
    table = read_table(package.folder / name, [feature.name for feature in features])
    if absent := [feature.name for feature in features if feature.name not in table.columns]:
        raise OperatorError(f"want a column for each feature, got none for {absent}")
    columns = [[parse_cell(feature, cell) for cell in table.cells(feature.name)] for feature in features]
    return list(zip(*columns, strict=True))


def _leaked(rows: Sequence[tuple[object, ...]], reference: Sequence[tuple[object, ...]]) -> list[int]:
    """The rows that stand in the reference as well, unless rows repeat by their nature."""
    known = Counter(map(_comparable, reference))
    found = [i for i, row in enumerate(rows) if _comparable(row) in known]
    # Few features of few values repeat by chance: as often among the training's own rows as here.
    alike = sum(count for count in known.values() if count > 1) / len(reference)
    return found if len(found) > alike * len(rows) else []


def _comparable(row: tuple[object, ...]) -> tuple[object, ...]:
    """A row that equals another whose blanks are the same; NaN equals nothing, itself included."""
    return tuple(None if value != value else value for value in row)  # noqa: PLR0124


def _grouping(package: Package, key: str, labelled: Labelled | None) -> str | None:
    """What is wrong with a key that names groups of records and not each of them."""
    consequence = "a canary takes or leaves whole groups, and their answers crowd one partition of the table"
    for feature in package.manifest.signature.features:
        if feature.name == key and feature.allowed is not None and len(feature.allowed) < LEAST_KEYS:
            return f"want a record's own id, got a feature of {len(feature.allowed)} values: {consequence}"
    seen: list[Iterable[object]] = [(labelled.keys or []) if labelled else [], _example_keys(package, key)]
    for values in seen:
        known = [value for value in values if value is not None]
        distinct = len(set(known))
        if len(known) >= _TELLING_ROWS and distinct < LEAST_KEYS and 2 * distinct <= len(known):
            return f"want a record's own id, got {distinct} values in {len(known)} records: {consequence}"
    return None


def _example_keys(package: Package, key: str) -> list[str | None]:
    if package.manifest.gate.examples is None:
        return []
    examples, _ = read_examples(package.folder / package.manifest.gate.examples, package.manifest)
    return record_keys([example.record for example in examples], key) or []
