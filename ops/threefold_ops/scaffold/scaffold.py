"""From a model file to a model folder: everything that can be inferred, with what it means written beside it."""

from __future__ import annotations

import re
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from threefold.errors import ThreefoldError
from threefold.model import Answer, Model, open_session, read_signature
from threefold.package import MODEL, Output
from threefold_ops.authoring.folder import Inspection, inspect_folder
from threefold_ops.authoring.graph import Graph, NoGraph, misplaced, read_graph
from threefold_ops.authoring.manifest import MODEL_FILE, NAME, PATTERNS, VERSION
from threefold_ops.errors import OperatorError
from threefold_ops.scaffold.draft import Draft, render
from threefold_ops.scaffold.drawn import draw
from threefold_ops.scaffold.first_assets import (
    CONFIDENCE,
    EXAMPLES,
    REFERENCE,
    Material,
    write_confidence,
    write_examples,
    write_reference,
)
from threefold_ops.scaffold.first_run import FirstRun, load, run_over
from threefold_ops.scaffold.inference import Inputs, infer_inputs
from threefold_ops.scaffold.meaning import infer_output, read_truth
from threefold_ops.scaffold.table import Table, read_table

if TYPE_CHECKING:
    from datetime import date

    from threefold.signature import Signature

_OWN: Final = frozenset({MODEL_FILE, EXAMPLES, CONFIDENCE, REFERENCE})
_TIMINGS: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody has, and what it shall be called.

    Attributes:
        model: the ONNX file.
        into: the folder of the model folders.
        today: the day that `training` begins with.
        data: a labelled CSV.
        target: its column that says what was right.
        key: its column that is a record's own id.
    """

    name: str
    model: Path
    into: Path
    today: date
    version: str = "1.0.0"
    data: Path | None = None
    target: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Scaffold:
    """What was made.

    Attributes:
        files: what each file is, in a few words.
        notes: what of the data could not be used, and what could not be inferred.
        inspection: what the check says of it.
    """

    folder: Path
    files: dict[str, str]
    notes: list[str]
    inspection: Inspection


@dataclass(slots=True, kw_only=True)
class _Making:
    """A folder on its way."""

    wanted: Wanted
    scratch: Path
    graph: Graph
    signature: Signature
    table: Table | None
    inputs: Inputs
    notes: list[str] = field(default_factory=list)


def scaffold(wanted: Wanted) -> Scaffold:
    """Make a model folder and check it.

    Raises:
        OperatorError: the name is none, the folder is there, the graph cannot be served, or the data is not its own.
    """
    folder = wanted.into / wanted.name
    for what, text, pattern in (("name", wanted.name, NAME), ("--version", wanted.version, VERSION)):
        if not re.fullmatch(pattern, text):
            raise OperatorError(f"{what}: want {PATTERNS[pattern]}, got {text!r}")
    if folder.exists():
        raise OperatorError(f"{folder}: want a folder that is not there yet, got one; nothing is overwritten")
    if wanted.data is None and (wanted.target or wanted.key):
        raise OperatorError(f"{'--target' if wanted.target else '--key'}: want --data with it, got none")
    with tempfile.TemporaryDirectory(prefix="threefold-new-") as temporary:
        # Within, for the temporary one is its owner's alone, and a copy would be too.
        scratch = Path(temporary) / wanted.name
        scratch.mkdir()
        try:
            making = _begin(wanted, scratch)
            files = _write(making)
        except ThreefoldError as error:
            raise OperatorError(f"{wanted.model}: {error}") from error
        try:
            folder.mkdir(parents=True)
            shutil.copytree(scratch, folder, dirs_exist_ok=True)
        except OSError as error:
            raise OperatorError(f"{folder}: want a folder that can be written, got: {error.strerror}") from error
    return Scaffold(folder, files, making.notes, inspect_folder(folder))


def _begin(wanted: Wanted, scratch: Path) -> _Making:
    """Read what there is, and find the features."""
    graph = _copy_graph(wanted.model, scratch)
    signature = read_signature(open_session(scratch / MODEL))
    table = None if wanted.data is None else _read_data(wanted, wanted.data, signature)
    inputs = infer_inputs(signature, table, wanted.target, wanted.key)
    making = _Making(wanted=wanted, scratch=scratch, graph=graph, signature=signature, table=table, inputs=inputs)
    if table is not None:
        if inputs.layout is None:
            making.table, making.inputs = None, Inputs()
            making.notes.append("the graph takes tensors, not features, so the data is not used")
        elif not table.rows:
            making.notes.append("the data has no rows: only the names of its columns are used")
        if table.malformed:
            making.notes.append(f"{table.malformed} rows of the data have not the form of its header: left out")
        if table.unread:
            making.notes.append(f"the data is large: only its first {len(table.rows)} rows are used")
    return making


def _read_data(wanted: Wanted, data: Path, signature: Signature) -> Table:
    given = {"--target": wanted.target, "--key": wanted.key}
    table = read_table(data, [*(spec.name for spec in signature.inputs), *(name for name in given.values() if name)])
    for option, name in given.items():
        # A column without a name, as pandas writes its index under, is nobody's answer and no id.
        if name is not None and (not name or name not in table.columns):
            raise OperatorError(f"{option}: want one of the columns {list(filter(None, table.columns))}, got {name!r}")
    if wanted.target is not None and wanted.target == wanted.key:
        raise OperatorError(f"--key: want another column than the target, got {wanted.key!r}")
    return table


def _copy_graph(source: Path, scratch: Path) -> Graph:
    try:
        graph = read_graph(source)
        if outside := [name for name in graph.weights if name in misplaced(graph.weights) or name in _OWN]:
            raise OperatorError(
                f"{source}: want weights in plain files beside it, got {outside}: save the graph again with its "
                "external data in its own folder"
            )
        if absent := [name for name in graph.weights if not (source.parent / name).is_file()]:
            raise OperatorError(f"{source}: want the files {absent}, which hold some of its weights, got none")
        shutil.copyfile(source, scratch / MODEL)
        for name in graph.weights:
            shutil.copyfile(source.parent / name, scratch / name)
    except NoGraph as error:
        raise OperatorError(f"{source}: {error}") from error
    except OSError as error:
        raise OperatorError(f"{source}: want files that can be copied, got: {error.strerror}") from error
    return graph


def _write(making: _Making) -> dict[str, str]:
    """Run the graph, and write what follows from its answers."""
    run, signature = _run(making)
    cells = _truth_cells(making, run)
    # Without features nobody asks for a label: tensors are answered as tensors.
    output = Output(kind="tensors")
    if signature.features:
        output = infer_output(signature.outputs, run.answers, making.graph, [cell for cell in cells if cell])
    model = load(making.scratch / MODEL, signature, making.graph.weights, output)
    stacked = signature.stackable or bool(signature.features)
    material = Material(
        run=run,
        answer=model.answer(run.tensors) if run.tensors else Answer({}),
        output=output,
        truth=read_truth(output, signature.outputs, cells),
        target=making.wanted.target,
        inputs=making.inputs,
        table=making.table,
        stacked=stacked,
    )
    if output.kind != "tensors" and (unknown := list(material.truth).count(None)):
        making.notes.append(
            f"{unknown} rows have nothing in {material.target!r} that the model could say: not held out"
        )
    if output.kind == "tensors" and material.target is not None and signature.features:
        making.notes.append("no confidence set: nothing tells which of the outputs is the answer, and what it means")
    parts = material.split()
    proposal = write_confidence(making.scratch / CONFIDENCE, material, parts, making.notes)
    examples = write_examples(making.scratch / EXAMPLES, material, parts, making.notes)
    reference = write_reference(making.scratch / REFERENCE, material, parts)
    draft = Draft(
        name=making.wanted.name,
        version=making.wanted.version,
        output=output,
        layout=signature.layout,
        features=signature.features,
        remarks=run.remarks,
        key=making.inputs.key,
        examples=examples > 0,
        drawn=run.drawn,
        rows=len(parts.confidence),
        target=material.target,
        proposal=proposal,
        reference=reference > 0,
        latency_ms=_latency_ms(model, run, stacked=stacked) if examples else None,
        training=_training(making),
        producer=making.graph.producer,
    )
    (making.scratch / MODEL_FILE).write_text(render(draft), encoding="utf-8")
    return {
        MODEL_FILE: "what the model takes and answers, and what it must pass: yours to correct",
        MODEL: f"{making.wanted.model.name} as it was",
        **dict.fromkeys(making.graph.weights, "weights of the graph"),
        **(
            {EXAMPLES: f"{examples} {'random inputs' if run.drawn else 'records'} and their answers"}
            if examples
            else {}
        ),
        **({CONFIDENCE: f"{len(parts.confidence)} labelled records, for the metric"} if proposal else {}),
        **({REFERENCE: f"{reference} records, to measure drift against"} if reference else {}),
    }


def _run(making: _Making) -> tuple[FirstRun, Signature]:
    """Run the graph over the data, or where there is none or none of it is taken, over inputs drawn at random."""
    path, weights = making.scratch / MODEL, making.graph.weights
    run = FirstRun()
    if making.inputs.layout is not None:
        run = run_over(path, making.signature, weights, making.inputs, making.table)
    signature = replace(making.signature, features=run.features, layout=making.inputs.layout)
    if making.table is not None and run.refused:
        first = min(run.refused)
        why = f"line {making.table.lines[first]}: {run.refused[first]}"
        if not run.rows:
            raise OperatorError(f"--data: want rows that the model takes, got none; {why}")
        making.notes.append(f"{len(run.refused)} rows of the data are not what the model takes: left out; {why}")
    if not run.rows:
        drawn = draw(load(path, signature, weights, Output(kind="tensors")))
        run = replace(drawn, features=run.features, remarks=run.remarks)
    return run, signature


def _truth_cells(making: _Making, run: FirstRun) -> list[str]:
    """The truth as the data writes it, for each record; empty where it is blank."""
    if making.table is None or making.wanted.target is None:
        return []
    cells = making.table.cells(making.wanted.target)
    return [cells[row].strip() for row in run.rows]


def _latency_ms(model: Model, run: FirstRun, *, stacked: bool) -> float:
    """The median time of one record."""
    alone = {name: array[:1] for name, array in run.tensors.items()} if stacked else run.tensors
    times = []
    for _ in range(_TIMINGS):
        started = time.perf_counter()
        model.answer(alone)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def _training(making: _Making) -> dict[str, str]:
    known = {} if making.table is None else {"data_sha256": making.table.sha256}
    return {**known, "at": making.wanted.today.isoformat()}
