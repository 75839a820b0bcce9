"""What of a job is done, and what is still to do: the same reading for who finishes it and for who takes it up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from threefold.chunks import Chunk, Counts
from threefold.tables import objects

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mypy_boto3_s3 import S3Client

    from threefold.chunks import PartId
    from threefold.jobs import Files, JobTable

# The folders of what each part's worker writes.
PARTS: Final = "parts"
REJECTS: Final = "rejects"
# What an attempt says it took: its time, and how many outcomes it wrote to the table.
SPENT: Final = ("worker_ms", "written_items")


@dataclass(slots=True)
class Progress:
    """Where a job's chunks stand.

    Attributes:
        counts: of all that is done.
        files: what is done, in the order of the rows, as (key, size in bytes), by folder.
        missing: the chunks that are not done; of one that was handed on, what is left of it.
        spent: what all attempts took, as `ChunkTable.put` added it up.
    """

    counts: Counts = field(default_factory=Counts)
    files: dict[str, list[tuple[str, int]]] = field(default_factory=lambda: {PARTS: [], REJECTS: []})
    missing: list[Chunk] = field(default_factory=list)
    spent: dict[str, int] = field(default_factory=dict)


def survey(
    chunks: Sequence[Chunk],
    tried: Mapping[PartId, Mapping[str, Any]],
    files: Files,
    sizes: Mapping[str, int],
) -> Progress:
    """Follow every chunk from its first part to the one that left no rest.

    A part counts when its counts add up, its rows and those of its rest are the rows that it was given, and its files
    are as large as its worker says: a worker that was given up and ended late may have written others.

    Args:
        chunks: as they were planned.
        tried: the chunks' items, by number and part.
        files: the job's.
        sizes: what there is under its folders, in bytes by key.
    """
    found = Progress(spent={name: sum(item.get(name, 0) for item in tried.values()) for name in SPENT})
    for chunk in chunks:
        piece: Chunk | None = chunk
        while piece is not None:
            item = tried.get(piece.id)
            counts, rest = Counts.of(item), _rest(item)
            keys = {folder: _written(files, folder, piece, item, sizes) for folder in found.files}
            rows = 0 if counts is None else counts.rows + (rest.rows if rest else 0)
            if counts is None or not counts.reconciled or rows != piece.rows or None in keys.values():
                found.missing.append(piece)
                break
            found.counts += counts
            for folder, key in keys.items():
                assert key is not None, "both are there"
                found.files[folder].append((key, sizes[key]))
            piece = rest
    return found


def _rest(item: Mapping[str, Any] | None) -> Chunk | None:
    rest = item.get("rest") if item else None
    return Chunk.from_json(rest) if rest else None


def _written(
    files: Files, folder: str, piece: Chunk, item: Mapping[str, Any] | None, sizes: Mapping[str, int]
) -> str | None:
    """The key of a part's file, if it is there and is what its worker wrote."""
    key = files.part(folder, piece.number, piece.part)
    if key not in sizes and piece.part == 0:
        # A job that was planned by an earlier release may have parts of its naming.
        key = files.chunk(folder, piece.number)
    if key not in sizes:
        return None
    wanted = (item or {}).get(f"{folder}_bytes")
    return key if wanted is None or wanted == sizes[key] else None


def read_progress(client: S3Client, bucket: str, jobs: JobTable, files: Files) -> Progress:
    """Where a job stands.

    Args:
        client: an S3 client.
        bucket: where its files are.
        jobs: the jobs table.
        files: the job's.
    """
    chunks = [Chunk.from_json(chunk) for chunk in objects.read_json(client, bucket, files.manifest)]
    # The items first: a part's files are there before its item says so.
    tried = jobs.chunks.of(files.job)
    sizes: dict[str, int] = {}
    for folder in (PARTS, REJECTS):
        sizes |= objects.sizes(client, bucket, files.folder(folder))
    return survey(chunks, tried, files, sizes)
