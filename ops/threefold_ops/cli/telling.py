"""What is told of a job: a line in a list, all of it to a person, all of it to a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.filesize import decimal

from threefold.jobs import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from threefold.chunks import Counts
    from threefold.items import Values

_INTERNAL: Final = frozenset({"pk", "sk", "expires"})
# As much of an id as a person types, or a little more.
_SHORT: Final = 12
_ENDS: Final = ("predicted", "abstained", "held", "rejected")


def public(job: Values, counts: Counts | None = None) -> dict[str, Any]:
    """A job's item without the table's own attributes.

    Args:
        job: the item.
        counts: of its rows up to now, where they are known better than the item says.
    """
    found = {name: value for name, value in job.items() if name not in _INTERNAL}
    if counts is not None:
        found |= {name: getattr(counts, name) for name in _ENDS}
    return found


def line(job: Values, width: int) -> str:
    """A job in a list.

    Args:
        job: its item.
        width: of the column of models.
    """
    rows = f"{job['rows']:,} rows" if "rows" in job else ""
    rejected = f"{job['rejected']:,} rejected" if job.get("rejected") else ""
    words = [job.get("options", {}).get("note") or job["key"].partition("/")[2], rows, rejected]
    head = f"{job['job'][:_SHORT]}  {job['planned_at'][:19]}Z  {job['model']:{width}}  {job['state']:10}  "
    return head + ", ".join(word for word in words if word)


def ended(job: Values) -> str:
    """What became of the rows of a job that has ended; nothing where it has none."""
    if not job.get("rows"):
        return ""
    said = f"{job['rows']:,} rows: " + ", ".join(f"{job[name]:,} {name}" for name in _ENDS if job.get(name))
    rejects = f"; 'threefold results {job['job'][:_SHORT]} --rejects FILE' says why" if job.get("rejected") else ""
    return said + rejects


def lines(job: Mapping[str, Any], counts: Counts, cost: str | None, bucket: str) -> list[tuple[str, str]]:
    """All that is known of a job; what is not known is left out.

    Args:
        job: its item.
        counts: of its rows up to now.
        cost: what it cost, in words.
        bucket: where its results are.
    """
    options = job.get("options", {})
    found = {
        "job": job["job"],
        "model": " ".join([job["model"], job.get("model_version", ""), job.get("digest", "")[:_SHORT]]).rstrip(),
        "state": job["state"],
        "reason": job.get("reason"),
        "note": options.get("note"),
        "file": f"s3://{job['bucket']}/{job['key']}",
        "uploaded": f"{decimal(job.get('size_bytes', 0))}, version {job.get('version', 'none')}",
        "options": ", ".join(f"{name}={_option(value)}" for name, value in options.items() if name != "note"),
        "rows": _rows(job, counts),
        "chunks": _chunks(job),
        "planned": job["planned_at"],
        "started": job.get("started_at"),
        "resumed": f"{job['resumed_at']} (time {job['resumes']})" if "resumes" in job else None,
        "finished": _finished(job),
        "cost": cost,
    }
    for name in ("predictions", "rejects"):
        if key := job.get(f"{name}_key"):
            found[name] = f"s3://{bucket}/{key}"
    return [(name, str(text)) for name, text in found.items() if text]


def _option(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "tab" if value == "\t" else str(value)


def _rows(job: Mapping[str, Any], counts: Counts) -> str | None:
    if "rows" not in job:
        return None
    return f"{counts.rows:,} of {job['rows']:,}: " + ", ".join(f"{getattr(counts, name):,} {name}" for name in _ENDS)


def _chunks(job: Mapping[str, Any]) -> str | None:
    if "chunks" not in job:
        return None
    missing = job.get("missing")
    return f"{job['chunks']:,}" + (f"; without all their outcomes: {', '.join(map(str, missing))}" if missing else "")


def _finished(job: Mapping[str, Any]) -> str | None:
    # A job that was taken up again still has the time at which it ended before.
    if "finished_at" not in job or job["state"] == JobState.RUNNING:
        return None
    took = f" ({job['seconds']:,} s, {job['rows_per_second']:,} rows/s)" if "rows_per_second" in job else ""
    return f"{job['finished_at']}{took}"
