"""Stored answers that may be served in place of a live one: the newest of a record, if its release stands by it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from threefold.errors import NoAnswer, UnknownPrediction, shown
from threefold.names import LOOKUP_INDEX
from threefold.outcomes import Place, from_attribute, milliseconds, outcome_of, whole
from threefold.prediction import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

    from threefold.release import Release

SERVED: Final = frozenset({Status.PREDICTED.value, Status.ABSTAINED.value})
# DynamoDB reads this many items before it filters: a record whose answers all expired costs more than one page.
_PAGE: Final = 25
_DAY_SECONDS: Final = 86_400


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored answer that can be served.

    Attributes:
        prediction: one of `Outcomes.predictions()`, as it was when the record was scored.
        age_seconds: how long ago that was.
    """

    prediction: dict[str, Any]
    age_seconds: float


class StoredAnswers:
    """Looks up what the batch and stream doors said of a record."""

    def __init__(
        self,
        client: DynamoDBClient,
        table: str,
        s3: S3Client,
        results_bucket: str,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Make a look-up.

        Args:
            client: a DynamoDB client.
            table: the predictions table.
            s3: an S3 client.
            results_bucket: where predictions stand that are too large for an item.
            now: seconds since 1970.
        """
        self._client = client
        self._table = table
        self._s3 = s3
        self._bucket = results_bucket
        self._now = now

    def newest(self, release: Release, key: str) -> Stored:
        """The newest stored answer of a record.

        Args:
            release: the release in force: of its champion or canary the answer must be, and no older than its
                `precomputed_max_age_days`.
            key: the record's own key, or a prediction's id where the record had none.

        Raises:
            NoAnswer: there is none, or the newest cannot be served; the message says why.
        """
        found = self._newest(release.model, key)
        if found is None:
            message = f"record {shown(key)}: want a stored answer, got none"
            raise NoAnswer(message)
        if found.get("status") not in SERVED:
            message = f"record {shown(key)}: want a prediction as its newest answer, got {shown(found.get('status'))}"
            raise NoAnswer(message)
        allowed = {release.champion.digest: release.champion.version}
        if (challenger := release.challenger) is not None and challenger.mode == "canary":
            allowed[challenger.digest] = challenger.version
        if found.get("digest") not in allowed:
            message = f"record {shown(key)}: want an answer of {list(allowed.values())}, got one of {found['version']}"
            raise NoAnswer(message)
        age = max(0.0, self._now() - milliseconds(found["at"]) / 1000)
        days = release.serving.get("precomputed_max_age_days")
        if days is not None and age > days * _DAY_SECONDS:
            message = (
                f"record {shown(key)}: want an answer of at most {days} days, got one of {age / _DAY_SECONDS:.2f} days"
            )
            raise NoAnswer(message)
        return Stored(found, round(age, 3))

    def of(self, model: str, identity: str) -> Stored:
        """What became of a prediction, whatever it was and whoever is champion since.

        Args:
            model: whose it is.
            identity: the prediction's id. One of a CSV's row is found if the row had no key; else by that key.

        Raises:
            UnknownPrediction: nothing is stored under it.
        """
        found = self._newest(model, identity, identity) or self._indexed(model, identity)
        if found is None:
            message = f"prediction: want the id of a stored outcome of model '{model}', got {shown(identity)}"
            raise UnknownPrediction(message)
        return Stored(found, round(max(0.0, self._now() - milliseconds(found["at"]) / 1000), 3))

    def _indexed(self, model: str, identity: str) -> dict[str, Any] | None:
        """What stands under the record's own key."""
        keys = self._client.query(
            TableName=self._table,
            IndexName=LOOKUP_INDEX,
            KeyConditionExpression="lookup = :lookup",
            ExpressionAttributeValues={":lookup": {"S": f"{model}#{identity}"}},
        )["Items"]
        for key in keys:
            item = self._client.get_item(TableName=self._table, Key={name: key[name] for name in ("pk", "sk")})
            found = item.get("Item")
            if found is not None and from_attribute(found["expires"]) > self._now():
                return self._whole(found)
        return None

    def _whole(self, item: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if item is None:
            return None
        try:
            return whole(outcome_of(item), self._s3, self._bucket)
        except self._s3.exceptions.NoSuchKey as error:
            message = "answer: want the whole of it, got its large part removed from the results"
            raise NoAnswer(message) from error

    def _newest(self, model: str, key: str, identity: str | None = None) -> dict[str, Any] | None:
        """The newest under a key; if an id is said, of that id."""
        named = {} if identity is None else {":id": {"S": identity}}
        pages = self._client.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="pk = :pk",
            # DynamoDB deletes expired items within days, not at once.
            FilterExpression="expires > :now" + (" AND id = :id" if named else ""),
            ExpressionAttributeValues={
                ":pk": {"S": Place(model, key, 0, "").pk},
                ":now": {"N": str(int(self._now()))},
                **named,
            },
            ScanIndexForward=False,
            PaginationConfig={"PageSize": _PAGE},
        )
        return self._whole(next((item for page in pages for item in page["Items"]), None))
