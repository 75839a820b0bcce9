"""A model folder: the package that it makes, and everything that is wrong with it at once."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from threefold import gate
from threefold.errors import ThreefoldError
from threefold.gate import Finding
from threefold.model import Model, open_session, read_signature
from threefold.package import MANIFEST, MAXIMUM_BYTES, MAXIMUM_FILES, MODEL, Manifest, Package, digest_of, open_package
from threefold_ops.authoring.cautions import cautions
from threefold_ops.authoring.fit import misfits
from threefold_ops.authoring.graph import Graph, NoGraph, misplaced, read_graph
from threefold_ops.authoring.manifest import MODEL_FILE, Reading, inspect_model_file
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from threefold.gate import Report
    from threefold.signature import Signature
    from threefold_ops.authoring.manifest import ModelFile

# What no asset may be called.
_OWN: Final = frozenset({MODEL, MANIFEST})

__all__ = ["MODEL_FILE", "Inspection", "build_package", "inspect_folder", "model_folders"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What there is to say of a model folder.

    Attributes:
        manifest: of the package that it makes; None if model.yaml does not say all of it.
        digest: the package's; None if it cannot be published.
        errors: why it cannot be published; by file and line.
        warnings: what to think about before it is.
        report: what the gate measured; None if nothing could be run.
    """

    folder: Path
    manifest: Manifest | None = None
    digest: str | None = None
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    report: Report | None = None


@dataclass(slots=True)
class _Making:
    """A package on its way out of a folder, as far as it came."""

    folder: Path
    target: Path
    reading: Reading
    errors: list[Finding]
    graph: Graph | None = None
    package: Package | None = None
    report: Report | None = None


def model_folders(root: Path) -> list[Path]:
    """The folders under `models/` that hold a model."""
    return sorted(path.parent for path in root.glob(f"*/{MODEL_FILE}"))


def inspect_folder(folder: Path) -> Inspection:
    """Find everything that is wrong with a model folder, and what it is worth thinking about."""
    with tempfile.TemporaryDirectory(prefix="threefold-package-") as scratch:
        made = _make(folder, Path(scratch))
        warnings = list(cautions(folder, made.reading, made.graph, made.package, made.report))
        return Inspection(
            folder=folder,
            manifest=None if made.package is None or made.reading.findings else made.package.manifest,
            digest=None if made.package is None or made.errors else made.package.digest,
            errors=_sorted(made.errors),
            warnings=_sorted(warnings),
            report=made.report,
        )


def build_package(folder: Path, target: Path) -> tuple[Package, dict[str, Any]]:
    """Make the package of a model folder: data only, its signature read from the graph, its gate passed.

    Args:
        folder: holds model.yaml, model.onnx and the files that they name.
        target: an empty folder for the package.

    Returns:
        The package, and how the model is to be operated.

    Raises:
        OperatorError: all that is wrong with the folder, a line each.
    """
    made = _make(folder, target)
    if made.errors:
        raise OperatorError("\n".join(str(folder / str(finding)) for finding in _sorted(made.errors)))
    assert made.package is not None, "what makes no package says why"
    assert made.reading.written is not None, "as above"
    return made.package, made.reading.written.serving.settings()


def _make(folder: Path, target: Path) -> _Making:
    """Go from a folder to a package and through its gate, as far as there is something to go on with."""
    reading = inspect_model_file(folder / MODEL_FILE)
    made = _Making(folder, target, reading, list(reading.findings))
    written = reading.written
    _collect(made)
    if made.graph is None or not (target / MODEL).is_file():
        return made
    try:
        signature = read_signature(open_session(target / MODEL))
    except ThreefoldError as error:
        made.errors.append(Finding(MODEL, str(error).removeprefix(f"{MODEL}: ")))
        return made
    if written is None:
        return made
    wrong = [reading.finding(place, message) for place, message in misfits(written, signature, made.graph)]
    made.errors += wrong
    if not wrong:
        _pack(made, written, signature)
    return made


def _collect(made: _Making) -> None:
    """Copy the graph, the weights beside it and the assets, if they are there and fit."""
    reading, folder = made.reading, made.folder
    named = {} if reading.written is None else reading.written.named_files()
    wanted = {MODEL} if (folder / MODEL).is_file() else set()
    if not wanted:
        made.errors.append(Finding(MODEL, f"want the file {MODEL}, got none"))
    for place, name in named.items():
        if name in _OWN:
            made.errors.append(reading.finding(place, f"want a file of its own, got {name}"))
        elif not (folder / name).is_file():
            made.errors.append(reading.finding(place, f"want the file {name}, got none"))
        else:
            wanted.add(name)
    if MODEL in wanted:
        wanted |= _weights(made)
    sizes = {name: (folder / name).stat().st_size for name in wanted}
    if len(wanted) + 1 > MAXIMUM_FILES:
        message = f"want at most {MAXIMUM_FILES} files in the package, got {len(wanted) + 1} with {MANIFEST}"
        made.errors.append(Finding(MODEL, message))
    if (total := sum(sizes.values())) > MAXIMUM_BYTES:
        message = f"want at most {MAXIMUM_BYTES} bytes in the package, got {total}"
        made.errors.append(Finding(max(sizes, key=lambda name: sizes[name]), message))
        return
    made.errors += [found for name in sorted(wanted) if (found := _copy(folder / name, made.target / name)) is not None]


def _copy(source: Path, target: Path) -> Finding | None:
    """Copy a file into the package; or what is wrong with it."""
    if source.is_symlink():
        # What lies behind it is not of this folder, and a package is there to be read.
        return Finding(source.name, "want a file, got a link to one")
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        return Finding(source.name, f"want a file that can be read, got: {error.strerror}")
    return None


def _weights(made: _Making) -> set[str]:
    """The files beside the graph that hold some of its tensors; the graph is left out if it lacks one of them."""
    if (made.folder / MODEL).stat().st_size > MAXIMUM_BYTES:
        return set()  # No ONNX file is as large; the package's limit says so.
    try:
        graph = read_graph(made.folder / MODEL)
    except NoGraph as error:
        made.errors.append(Finding(MODEL, str(error)))
        return set()
    outside = misplaced(graph.weights)
    for name in outside:
        message = f"want weights in plain files beside it, got {name!r}: save the graph with its data in its own folder"
        made.errors.append(Finding(MODEL, message))
    absent = [name for name in graph.weights if name not in outside and not (made.folder / name).is_file()]
    made.errors += [
        Finding(MODEL, f"want the file {name}, which holds some of its weights, got none") for name in absent
    ]
    if not outside and not absent:
        made.graph = graph
    return {*graph.weights} - {*outside, *absent}


def _pack(made: _Making, written: ModelFile, signature: Signature) -> None:
    """Write the manifest, and run the gate."""
    assert made.graph is not None, "a signature was read from it"

    def there(name: str | None) -> bool:
        return name is not None and name not in _OWN and (made.target / name).is_file()

    # What is missing is an error already, and no reason to leave the rest of the gate out.
    checks = written.gate.gate()
    if not there(checks.examples):
        checks = replace(checks, examples=None, latency_ms=checks.latency_ms if checks.examples is None else None)
    if checks.confidence is not None and not there(checks.confidence):
        checks = replace(checks, confidence=None, metric=None, acceptable=None)
    reference = written.drift.reference if written.drift else None
    manifest = Manifest(
        name=written.name,
        version=written.version,
        signature=replace(
            signature,
            features=tuple(part.feature() for part in written.features),
            layout=(written.layout or "packed") if written.features else None,
        ),
        output=written.output.output(),
        description=written.description,
        key=written.key,
        gate=checks,
        reference=reference if there(reference) else None,
        training=_training(made.folder, written),
        bake=written.bake,
        notes=written.notes,
        weights=made.graph.weights,
        time=written.time,
    )
    try:
        text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False, default=str)
        (made.target / MANIFEST).write_text(text, encoding="utf-8")
    except (TypeError, ValueError) as error:
        made.errors.append(made.reading.finding(("training",), f"want what JSON can hold, got: {error}"))
        return
    try:
        made.package = open_package(made.target, digest_of(made.target))
        model = Model(made.package)
    except ThreefoldError as error:
        made.errors.append(Finding(MODEL, _plain(error)))
        return
    made.report = gate.inspect(model)
    made.errors += [_placed(finding, made.reading) for finding in made.report.findings]


def _placed(finding: Finding, reading: Reading) -> Finding:
    """What the gate says of the manifest, said of the file that it is made of."""
    if finding.file != MANIFEST:
        return finding
    part, _, message = finding.message.partition(": ")
    return reading.finding(("output", part) if part == "classes" else (part,), message)


def _training(folder: Path, written: ModelFile) -> dict[str, Any]:
    """Where the model came from; a training script that lies in the folder is told by its digest."""
    scripts = sorted(folder.glob("train*.py"))
    if "script_sha256" in written.training or len(scripts) != 1:
        return dict(written.training)
    return {**written.training, "script_sha256": hashlib.sha256(scripts[0].read_bytes()).hexdigest()}


def _plain(error: ThreefoldError) -> str:
    """What an error says, without the digest of a package that nobody has seen yet."""
    head, separator, rest = str(error).partition(": ")
    return rest if separator and head.startswith("package ") else str(error)


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(dict.fromkeys(findings), key=lambda found: (found.file != MODEL_FILE, found.file, found.line or 0))
