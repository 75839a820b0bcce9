"""Rows to try packages with: a CSV that somebody has, and the sets that the packages carry."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold.errors import InvalidTable
from threefold.examples import read_examples
from threefold.labelled import read_labelled
from threefold.request import Records, Tensors
from threefold.tables.header import read_header
from threefold.tables.reader import RowReader
from threefold.tables.records import read_blocks
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from threefold.package import Manifest, Package
    from threefold.tables.reader import Batch

_GZIP: Final = b"\x1f\x8b"
_SHOWN_COLUMNS: Final = 50


@dataclass(slots=True)
class Rows:
    """The same rows as each of some packages reads them.

    Attributes:
        source: the file that they are from.
        payloads: what each package is asked, in the order of the packages; all of one length.
        lines: the line of the file that each row begins on.
        keys: each row's own id, where there is one.
        truth: what was right, by position, as far as the file says so.
        unreadable: how many records of the file have not the header's form, and are no rows.
    """

    source: str
    payloads: list[Records | Tensors]
    lines: list[int]
    keys: list[str | None] | None = None
    truth: dict[int, str | int | float] = field(default_factory=dict)
    unreadable: int = 0

    def __len__(self) -> int:
        """How many rows."""
        return len(self.lines)


def read_table(path: Path, manifests: Sequence[Manifest], *, owner: Manifest | None = None) -> Rows:
    """Read a CSV as the batch door reads an upload, once for each package's features.

    Args:
        path: UTF-8, with a header; columns by name in any order.
        manifests: of the packages that will be asked.
        owner: whose confidence set it is; its gate names the column of the truth. Without one, the column may be named
            by any of the packages, or be missing.

    Raises:
        OperatorError: the file cannot be read, or none of the packages finds its features in it.
    """
    try:
        return _read(path, manifests, owner)
    except OSError as error:
        raise OperatorError(f"{path}: want a file that can be read, got: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OperatorError(f"{path}: want UTF-8, got byte 0x{error.object[error.start]:02x}") from error
    except InvalidTable as error:
        raise OperatorError(f"{path}: {error}") from error


def _read(path: Path, manifests: Sequence[Manifest], owner: Manifest | None) -> Rows:
    content = path.read_bytes()
    if content.startswith(_GZIP):
        raise InvalidTable("file: want plain CSV, got gzip")
    top = read_header(content, {feature.name for one in manifests for feature in one.signature.features})
    header, columns = top.header, top.header.columns
    _check(manifests, columns)
    key = next((one.key for one in manifests if one.key in columns), None)
    # Cell by cell: what a matrix cannot hold is to be read in the same way as what it can.
    readers = [RowReader(header, one.signature.features, key=key, numeric=False) for one in manifests]
    found: list[list[Any]] = [[] for _ in manifests]
    rows = Rows(path.name, [Records(records) for records in found], [], None if key is None else [])
    for block in read_blocks(iter([content[top.size_bytes :]]), header.delimiter, line=top.line):
        for batches in zip(*(reader.read(block) for reader in readers), strict=True):
            for records, batch in zip(found, batches, strict=True):
                records.extend(_records(batch))
            first = batches[0]
            rows.lines += first.lines(list(first.good))
            rows.unreadable += len(first.bad)
            if rows.keys is not None:
                rows.keys += first.keys or []
    rows.truth = _truth(path, owner, manifests, columns, rows.lines)
    return rows


def read_example_rows(package: Package, manifests: Sequence[Manifest]) -> Rows | None:
    """What goes into a package's end-to-end examples, as each of some packages takes it; None without examples."""
    manifest = package.manifest
    if (name := manifest.gate.examples) is None:
        return None
    examples, _ = read_examples(package.folder / name, manifest)
    lines = [example.line for example in examples]
    if manifest.signature.features:
        records = [dict(example.record) for example in examples]
        keys = None if manifest.key is None else [_text(record.get(manifest.key)) for record in records]
        return Rows(name, [Records(records) for _ in manifests], lines, keys)
    stackable = manifest.signature.stackable
    # An example leaves out the dimension of the rows.
    tensors = [
        {part: array[np.newaxis] if stackable else array for part, array in example.tensors.items()}
        for example in examples
    ]
    return Rows(name, [Tensors(tensors) for _ in manifests], lines)


def sample(package: Package, most: int) -> Rows:
    """Some rows of a package: of its confidence set, its examples, or its reference file, in this order.

    Raises:
        OperatorError: it has none of them.
    """
    manifest = package.manifest
    named = bool(manifest.signature.features)
    for name in (manifest.gate.confidence, None, manifest.reference) if named else (None,):
        rows = read_table(package.folder / name, [manifest]) if name else read_example_rows(package, [manifest])
        if rows:
            few = rows.payloads[0].select(np.arange(min(most, len(rows))))
            return replace(rows, payloads=[few], lines=rows.lines[:most], keys=rows.keys and rows.keys[:most], truth={})
    wanted = "gate.confidence, gate.examples or drift.reference" if named else "gate.examples"
    raise OperatorError(f"{manifest.name} {manifest.version}: want rows in {wanted}, got none")


def target_of(manifest: Manifest) -> str:
    """The column that holds the truth."""
    return manifest.gate.target or ("value" if manifest.output.kind == "regression" else "label")


def _check(manifests: Sequence[Manifest], columns: tuple[str, ...]) -> None:
    """See that some package finds all that it needs; where another one does not, its rows are rejected by it."""
    lacking = [
        [feature.name for feature in one.signature.features if feature.missing is None and feature.name not in columns]
        for one in manifests
    ]
    if all(lacking):
        got = list(columns[:_SHOWN_COLUMNS])
        raise InvalidTable(f"header: want columns {min(lacking, key=len)}, got {got}")


def _records(batch: Batch) -> list[Any]:
    assert isinstance(batch.rows, Records), "read cell by cell"
    return list(batch.rows.records)


def _truth(
    path: Path, owner: Manifest | None, manifests: Sequence[Manifest], columns: tuple[str, ...], lines: list[int]
) -> dict[int, str | int | float]:
    """What was right, by position, wherever the file says it."""
    judges = [owner] if owner is not None else list(manifests)
    judge = next((one for one in judges if target_of(one) in columns), None)
    if judge is None or judge.output.kind == "tensors":
        return {}
    # A class that only one of the packages knows is one that the other gets wrong.
    known = [one.output.classes for one in manifests]
    classes = tuple(dict.fromkeys([name for names in known for name in names])) if all(known) else judge.output.classes
    bare = replace(
        judge,
        key=None,
        signature=replace(judge.signature, features=()),
        output=replace(judge.output, classes=classes),
        gate=replace(judge.gate, target=target_of(judge)),
    )
    labelled = read_labelled(path, bare)
    by_line = dict(zip(labelled.lines, labelled.truth, strict=True))
    return {position: by_line[line] for position, line in enumerate(lines) if line in by_line}


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, str | int | float) and value != "" else None
