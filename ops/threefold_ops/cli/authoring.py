"""The verbs of a model folder: make one, and see what is wrong with it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold_ops.authoring.folder import inspect_folder, model_folders
from threefold_ops.cli.console import Json, app, out, print_json
from threefold_ops.errors import OperatorError
from threefold_ops.paths import MODELS
from threefold_ops.scaffold.scaffold import Wanted, scaffold

if TYPE_CHECKING:
    from threefold_ops.authoring.folder import Inspection


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="What the model is called: a-z, 0-9 and -.")],
    *,
    model: Annotated[Path, typer.Option("--from", help="The ONNX file.")],
    data: Annotated[Path | None, typer.Option(help="A labelled CSV, best of rows that the model never saw.")] = None,
    target: Annotated[str | None, typer.Option(help="The data's column that says what was right.")] = None,
    key: Annotated[str | None, typer.Option(help="The data's column that is a record's own id.")] = None,
    into: Annotated[Path, typer.Option(help="Where the model folders are.", show_default="models/")] = MODELS,
    version: Annotated[str, typer.Option("--version", help="The version's label.")] = "1.0.0",
    as_json: Json = False,
) -> None:
    """Make a model folder of a model file: all that can be inferred, with what it means."""
    today = datetime.now(UTC).date()
    wanted = Wanted(name=name, model=model, into=into, today=today, version=version, data=data, target=target, key=key)
    made = scaffold(wanted)
    if as_json:
        print_json(
            {"folder": str(made.folder), "files": made.files, "notes": made.notes, "check": _document(made.inspection)}
        )
    else:
        folder, width = _shown(made.folder), max(map(len, made.files))
        for file, about in made.files.items():
            out.print(f"{folder}/{file:<{width}}  {about}", markup=False)
        for note in made.notes:
            out.print(f"note: {note}", markup=False)
        _tell(made.inspection)
        out.print(f"next: read {folder}/model.yaml, then 'threefold publish {folder}'", markup=False)
    if made.inspection.errors:
        raise typer.Exit(1)


@app.command()
def check(
    folders: Annotated[list[Path] | None, typer.Argument(help="Model folders; default: all under models/.")] = None,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Take warnings for errors.")] = False,
    as_json: Json = False,
) -> None:
    """Say everything that is wrong with model folders, and what their gates measure; nothing is published."""
    wanted = folders or model_folders(MODELS)
    if not wanted:
        raise OperatorError(f"{MODELS}: want a model folder, got none")
    if absent := [folder for folder in wanted if not folder.is_dir()]:
        raise OperatorError(f"{absent[0]}: want a model folder, got {'a file' if absent[0].exists() else 'none'}")
    found = [inspect_folder(folder) for folder in wanted]
    if as_json:
        print_json([_document(inspection) for inspection in found])
    else:
        for inspection in found:
            _tell(inspection)
    if any(inspection.errors or (strict and inspection.warnings) for inspection in found):
        raise typer.Exit(1)


def _tell(inspection: Inspection) -> None:
    """Whole lines, whatever is in them: a terminal makes files and lines links."""
    folder = _shown(inspection.folder)
    for finding in inspection.errors:
        out.print(str(folder / str(finding)), markup=False)
    for finding in inspection.warnings:
        out.print(f"{folder / finding.file}{_line(finding.line)}: warning: {finding.message}", markup=False)
    state = _count(len(inspection.errors), "error") if inspection.errors else "can be published"
    parts = [state, *([_count(len(inspection.warnings), "warning")] if inspection.warnings else [])]
    out.print(f"{folder}: {', '.join([*parts, *_figures(inspection)])}", markup=False)


def _figures(inspection: Inspection) -> list[str]:
    report, manifest = inspection.report, inspection.manifest
    if report is None or manifest is None:
        return []
    said = [f"{manifest.name} {manifest.version}" + (f" ({inspection.digest[:12]})" if inspection.digest else "")]
    if report.examples:
        said.append(_count(report.examples, "example"))
    if report.latency_ms is not None:
        said.append(f"{report.latency_ms:.2g} ms a record")
    if report.value is not None and manifest.gate.acceptable is not None:
        low, high = manifest.gate.acceptable
        said.append(f"{manifest.gate.metric} {report.value:.4g} in [{low:g}, {high:g}] on {_count(report.rows, 'row')}")
    return said


def _document(inspection: Inspection) -> dict[str, Any]:
    manifest, report = inspection.manifest, inspection.report
    return {
        "folder": str(inspection.folder),
        "name": None if manifest is None else manifest.name,
        "version": None if manifest is None else manifest.version,
        "digest": inspection.digest,
        "errors": [asdict(finding) for finding in inspection.errors],
        "warnings": [asdict(finding) for finding in inspection.warnings],
        "examples": None if report is None else report.examples,
        "rows": None if report is None else report.rows,
        "metric": None if manifest is None else manifest.gate.metric,
        "acceptable": None if manifest is None else manifest.gate.acceptable,
        "value": None if report is None else report.value,
        "latency_ms": None if report is None else report.latency_ms,
    }


def _shown(path: Path) -> Path:
    """A path as it is typed."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def _line(line: int | None) -> str:
    return "" if line is None else f":{line}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
