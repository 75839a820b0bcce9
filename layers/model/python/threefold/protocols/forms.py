"""The bodies of the api function: what it takes, what it gives, and what is said of a body that does not fit."""

# ruff: noqa: TC003 - pydantic reads the annotations
from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from threefold.errors import shown


class _Part(BaseModel):
    """A part of a body: what it does not know, it refuses, and it converts nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class UploadOptions(_Part):
    """How the file is read, and what becomes of its predictions."""

    delimiter: Literal[",", ";", "\t", "|"] | None = None
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")] | None = Field(
        default=None, description="a version or digest that the release names; the job is scored by it alone"
    )
    store: bool | None = Field(default=None, description="whether outcomes go to the predictions table")
    windows: Literal["table", "file"] | None = Field(
        default=None, description="whether the rows are a part of the stream, or all there is of it"
    )
    # S3 takes 2 KB of metadata: this much text, in whatever letters.
    note: Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = Field(
        default=None, description="shown with the job"
    )


class UploadRequest(_Part):
    """A CSV that somebody means to upload."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = "upload.csv"
    options: UploadOptions = UploadOptions()
    size_bytes: Annotated[int, Field(gt=0)] | None = Field(default=None, description="S3 then takes no larger file")


class UploadForm(BaseModel):
    """A presigned POST: `fields` go before the file in a multipart form to `url`."""

    url: str
    fields: dict[str, str]
    key: str
    expires_at: datetime
    jobs: str = Field(description="where the job is found once the file is there")


class Job(BaseModel):
    """One uploaded CSV; what is not known yet is null."""

    model_config = ConfigDict(extra="allow")

    job: str
    model: str
    state: Literal["planned", "running", "complete", "failed", "cancelled", "incomplete"]
    key: str
    planned_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    rows: int | None = None
    predicted: int | None = None
    abstained: int | None = None
    held: int | None = None
    rejected: int | None = None
    code: str | None = None
    reason: str | None = None


class JobPage(BaseModel):
    """Jobs of a model, newest first."""

    jobs: list[Job]
    next: str | None = Field(description="the address of what follows")


class Results(BaseModel):
    """Addresses that the job's files can be read from for a while."""

    predictions: str
    rejects: str
    expires_at: datetime


class StoredAnswer(BaseModel):
    """A stored prediction in the form of a live one."""

    predictions: list[dict[str, Any]]
    age_seconds: float


class WaitingAnswer(BaseModel):
    """A prediction that was asked for and has no outcome yet."""

    predictions: list[dict[str, Any]]


class PendingRequest(_Part):
    """Records that can wait for the next collection."""

    records: Annotated[list[dict[str, Any]], Field(min_length=1)]


class PendingAnswer(BaseModel):
    """What was left in the inbox."""

    accepted: int
    key: str
    next_collection: datetime | None = Field(description="when it has begun at the latest; null where none is planned")


def explain(findings: Sequence[Mapping[str, Any]]) -> str:
    """Pydantic's findings as what, wanted, got: one sentence each."""
    return "; ".join(map(_problem, findings))


def _problem(found: Mapping[str, Any]) -> str:
    """One of pydantic's findings as what, wanted, got."""
    where = ".".join(str(part) for part in found["loc"][1:]) or str(found["loc"][0])
    if found["type"] == "missing":
        return f"{where}: want a value, got nothing"
    if found["type"] == "extra_forbidden":
        return f"{where}: want no field of this name, got one"
    return f"{where}: want {found['msg'].removeprefix('Input should be ')}, got {shown(found.get('input'))}"
