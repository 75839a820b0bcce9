"""The S3 door: a CSV parsed, scored and written, against pyarrow, against csv.DictReader, and for its memory."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.csv

from benchmarks.measure import MEGABYTE, Goal, compare, interleave
from benchmarks.models import KINDS, NAMES, matrix, open_model
from benchmarks.stubs import answered, client
from threefold.chunks import Chunk
from threefold.outcomes import OutcomeTable
from threefold.pacing import Pacer
from threefold.tables.header import Header
from threefold.tables.planner import Plan
from threefold.tables.scoring import ChunkScorer
from threefold.tables.worker import ChunkWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from benchmarks.measure import Row
    from benchmarks.models import BenchModel

    Score = Callable[[bytes], "tuple[npt.NDArray[Any], npt.NDArray[Any]]"]

_ROWS: Final = 50_000
_WRITTEN: Final = 4_000
_FEW, _MANY = 100_000, 1_000_000
_PIECE: Final = 1 << 20
_LEAST: Final = {"tree": 0.9, "linear": 0.6}
_HEADER: Final = ",".join(("id", *NAMES))


def measure() -> list[Row]:
    """The rows of the S3 door."""
    found = []
    for kind in KINDS:
        model = open_model(kind)
        content = csv_text(_ROWS)
        ours, theirs = scorer(model), with_pyarrow(model)
        assert_same(ours(content), theirs(content))
        taken = interleave({"ours": lambda: ours(content), "theirs": lambda: theirs(content)}, rounds=5)  # noqa: B023
        speed = {name: _ROWS / seconds for name, seconds in taken.items()}
        goal = Goal(_LEAST[kind], at_most=False)
        name = f"batch, parse + score, {kind} model / a pyarrow stream"
        found.append(compare(name, speed["ours"], "rows/s", speed["theirs"], goal))
        if kind == "tree":
            found += [*_growth(ours, content), *_writing(model)]
    return found + _memory()


def csv_text(rows: int) -> bytes:
    """Rows of the bench model as a CSV file, without its header."""
    lines = ((f"customer-{i}", *map(str, row)) for i, row in enumerate(matrix(rows)))
    return "".join(",".join(line) + "\n" for line in lines).encode()


def scorer(model: BenchModel) -> Score:
    """A chunk through the door's own reader and the one path."""
    chunks = chunk_scorer(model)

    def score(content: bytes) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        found = [part for scored in chunks.score(pieces(content), chunk(content)) for part in _parts(scored.outcomes)]
        labels = [part.answer.labels for part in found]
        return np.array(list(itertools.chain.from_iterable(labels))), np.concatenate([part.score for part in found])

    return score


def chunk_scorer(model: BenchModel) -> ChunkScorer:
    """The scorer of a job that is pinned to the model's release."""
    predictor = model.predictor()
    # The store in memory keeps no versions: the release in force is the one that the job is pinned to.
    predictor.registry.pinned = lambda name, _: predictor.registry.release(name)  # type: ignore[method-assign, assignment]
    return ChunkScorer(predictor, plan(model), lambda: "2023-11-14T22:13:20.000Z")


def plan(model: BenchModel) -> Plan:
    """What the planner would say of such a file."""
    confirmed = model.registry.release(model.name)
    header = Header(_HEADER, ",", "\n")
    return Plan("bench", model.name, confirmed.id, confirmed.release.champion.digest, "classification", 0, header)


def chunk(content: bytes) -> Chunk:
    """All of a content as one chunk."""
    return Chunk(0, "inbox", "bench.csv", None, 0, len(content), 1, 2, content.count(b"\n"))


def pieces(content: bytes) -> Iterator[bytes]:
    """The content as it comes from S3."""
    return (content[start : start + _PIECE] for start in range(0, len(content), _PIECE))


def with_pyarrow(model: BenchModel) -> Score:
    """Pyarrow's streaming reader, a record batch a call; nothing is checked beyond what it reads as float32."""
    session = model.session
    tensor = session.get_inputs()[0].name
    types: dict[str, pa.DataType] = {name: pa.float32() for name in NAMES}
    options = pa.csv.ConvertOptions(column_types=types | {"id": pa.string()})

    def score(content: bytes) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        read = pa.csv.ReadOptions(column_names=["id", *NAMES])
        labels, scores = [], []
        for table in pa.csv.open_csv(io.BytesIO(content), read_options=read, convert_options=options):
            x = np.column_stack([table.column(name).to_numpy() for name in NAMES])
            found, of = session.run(None, {tensor: x})
            labels.append(found)
            scores.append(of[np.arange(len(found)), found])
        return np.concatenate(labels), np.concatenate(scores)

    return score


def assert_same(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> None:
    """See that both say the same, before anyone times them."""
    assert np.array_equal(ours[0], theirs[0]), "want the reference's labels"
    # One call of the graph and several may differ in the last bit.
    assert np.allclose(ours[1], theirs[1], rtol=1e-6), "want the reference's scores"


def _growth(score: Score, content: bytes) -> list[Row]:
    few = b"".join(line + b"\n" for line in content.split(b"\n", 1000)[:1000])
    times = _ROWS // 1000

    def repeat() -> None:
        for _ in range(times):
            score(few)

    taken = interleave({"few": repeat, "many": lambda: score(content)}, rounds=5)
    us = {name: seconds / _ROWS * 1e6 for name, seconds in taken.items()}
    name = f"batch, growth: a row among {_ROWS:,} / among 1,000"
    return [compare(name, us["many"], "µs", us["few"], Goal(1.1))]


def _writing(model: BenchModel) -> list[Row]:
    content = csv_text(_WRITTEN)
    chunks, pinned = chunk_scorer(model), plan(model)
    stub = client("dynamodb", b"{}", validate=False)
    # As the door has it, at a pace that this never comes up with.
    table = OutcomeTable(stub, "predictions", ttl_days=90, pacer=Pacer(1e9))
    worker = ChunkWorker(model.predictor(), table, client("s3", b""), results_bucket="results", writes_per_second=1e9)

    def ours() -> None:
        for scored in chunks.score(pieces(content), chunk(content)):
            worker.store(pinned, scored.batch, scored.predictions(), time.monotonic() + 60)

    theirs = with_batch_writer(model)
    taken = interleave({"ours": ours, "theirs": lambda: theirs(content)}, rounds=3)
    speed = {name: _WRITTEN / seconds for name, seconds in taken.items()}
    name = "batch, CSV to DynamoDB / csv.DictReader + batch_writer"
    return [compare(name, speed["ours"], "rows/s", speed["theirs"], Goal(2, at_most=False))]


def with_batch_writer(model: BenchModel) -> Callable[[bytes], None]:
    """The usual pipeline: rows as dictionaries, one run over all of them, a Decimal item a row."""
    session = model.session
    tensor = session.get_inputs()[0].name
    resource = boto3.resource(
        "dynamodb", region_name="eu-central-1", aws_access_key_id="bench", aws_secret_access_key="bench"
    )
    table = answered(resource.Table("predictions"), b'{"UnprocessedItems":{}}')
    facts = {"model": model.name, "version": "1.0.0", "digest": "0" * 64, "role": "champion", "release": "1"}
    facts |= {"status": "predicted", "at": "2023-11-14T22:13:20.000Z", "runtime": "onnxruntime 1.31.1, numpy 2.4.6"}

    def run(content: bytes) -> None:
        reader = csv.DictReader(io.StringIO(content.decode()), fieldnames=["id", *NAMES])
        rows = list(reader)
        x = np.array([[float(row[name]) for name in NAMES] for row in rows], np.float32)
        labels, scores = session.run(None, {tensor: x})
        with table.batch_writer() as writer:
            for i, (row, label, score) in enumerate(zip(rows, labels.tolist(), scores, strict=True)):
                place = {"pk": f"{model.name}#{row['id']}", "sk": f"{0:014d}#bench#{i:010d}", "expires": 1_700_000_000}
                answer = {"id": f"bench-{i}", "key": row["id"], "label": label, "score": Decimal(str(score[label]))}
                writer.put_item(Item={**place, **facts, **answer})

    return run


def _memory() -> list[Row]:
    """Peaks of processes of their own; a file is given to them piece by piece, and never held."""
    few, many = (_peak(rows) for rows in (_FEW, _MANY))
    return [
        compare(f"batch, memory above start, {_MANY:,} rows", many["above"], "MB", goal=Goal(120)),
        compare(
            f"batch, memory: {_MANY:,} rows / {_FEW:,}, the whole process",
            many["whole"],
            "MB",
            few["whole"],
            Goal(1.05),
        ),
        compare(
            f"batch, the whole process, {_MANY:,} rows, {many['read']:.0f} MB", many["whole"], "MB", goal=Goal(256)
        ),
    ]


def _peak(rows: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.batch", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _report_peak(rows: int) -> dict[str, float]:
    """Score many rows, and say what memory that took: at its peak, and above what the process had at its start."""
    chunks, text = chunk_scorer(open_model("tree")), csv_text(10_000)
    Path("/proc/self/clear_refs").write_text("5")
    start = _status("VmRSS")
    read = 0

    def stream() -> Iterator[bytes]:
        nonlocal read
        for _ in range(rows // 10_000):
            read += len(text)
            yield from pieces(text)

    whole = Chunk(0, "inbox", "bench.csv", None, 0, 0, 1, 2, rows)
    count = sum(len(scored.predictions()) for scored in chunks.score(stream(), whole))
    assert count == rows, f"want {rows} outcomes, got {count}"
    peak = _status("VmHWM")
    return {"above": peak - start, "whole": peak, "read": read / MEGABYTE}


def _status(field: str) -> float:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None, field
    return int(match[1]) * 1024 / MEGABYTE


def _parts(outcomes: Any) -> list[Any]:  # noqa: ANN401 - None or Outcomes
    assert outcomes is not None
    assert not outcomes.problems, outcomes.problems
    parts: list[Any] = outcomes.parts
    return parts


if __name__ == "__main__":
    print(json.dumps(_report_peak(int(sys.argv[1]))))
