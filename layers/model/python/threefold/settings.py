"""The one place that reads the environment, and the one that says what the stacks write there."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Auth = Literal["iam", "jwt", "none"]

PREFIX: Final = "THREEFOLD_"
# Set by Lambda or by AWS's own tools: read, never written by a stack.
OWN_VARIABLES: Final = {
    "memory_megabytes": "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "endpoint_url": "AWS_ENDPOINT_URL",
    "region": "AWS_REGION",
    "initialization": "AWS_LAMBDA_INITIALIZATION_TYPE",
}
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html: 1,769 MB is one vCPU.
MEGABYTES_PER_VCPU: Final = 1769


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a function is told by its stack.

    `from_env` and `to_env` are each other's inverse: a variable's name exists once, as the field's name in capitals
    after `THREEFOLD_`. The last four are Lambda's own variables and are never written.

    Attributes:
        door: the function's name in metrics and logs: predict, batch or stream; or monitor, which is no door.
        stage: the stage of the account that this function belongs to.
        auth: who may call the HTTPS door; `none` is refused unless `endpoint_url` is set.
        scope_template: the OAuth scope that opens a model with `auth: jwt`.
        operate_scope_template: the OAuth scope that lets its holder cancel and resume a model's jobs.
        model_bucket: the versioned bucket that is the registry.
        inbox_bucket: the versioned bucket that takes uploads and pending records.
        results_bucket: where the batch door writes its files.
        predictions_table: the DynamoDB table of outcomes.
        jobs_table: the DynamoDB table of jobs and of their chunks.
        requests_queue: the name of the queue that the stream door reads.
        features_table: the DynamoDB table of what is known of entities.
        predictions_queue_url: where the stream door sends its outcomes.
        predictions_topic_arn: the topic that it sends them to instead, if it has one.
        dead_letter_queue_url: where it copies what it gives up.
        state_machine_arn: the state machine that runs a job's chunks.
        refresh_seconds: the most seconds by which a release may be unconfirmed when an invocation begins.
        load_budget_seconds: how long an invocation waits for a newly released package before the last good one
            answers in its place.
        gate_seconds: how long the gate of a package that is loaded may go on beyond its examples in one call.
        session_cache_megabytes: memory for loaded models, least recently used first out; 0 means 40 % of the
            function's memory.
        ttl_days: how long outcomes stay in the predictions table.
        chunk_bytes: the size a chunk of a CSV aims at.
        chunk_rows: the most rows of a chunk.
        writes_per_second: how many items of up to 1 KB one worker writes to the predictions table.
        pending_minutes: how often pending records are collected; 0 means never.
        link_seconds: how long a presigned form or address is good for.
        upload_limit_bytes: the largest upload that a presigned form takes.
        memory_megabytes: the function's memory.
        endpoint_url: another AWS than Amazon's.
        region: the AWS region.
        initialization: how Lambda initializes the function; empty outside of Lambda.
    """

    door: str = "local"
    stage: str = "dev"
    auth: Auth = "iam"
    scope_template: str = "predict:{model}"
    operate_scope_template: str = "operate:{model}"
    model_bucket: str = ""
    inbox_bucket: str = ""
    results_bucket: str = ""
    predictions_table: str = ""
    jobs_table: str = ""
    requests_queue: str = ""
    features_table: str = ""
    predictions_queue_url: str = ""
    predictions_topic_arn: str = ""
    dead_letter_queue_url: str = ""
    state_machine_arn: str = ""
    refresh_seconds: float = 30.0
    load_budget_seconds: float = 2.0
    gate_seconds: float = 1.0
    session_cache_megabytes: int = 0
    ttl_days: int = 90
    chunk_bytes: int = 8 * 1024 * 1024
    chunk_rows: int = 50_000
    writes_per_second: float = 500.0
    pending_minutes: int = 60
    link_seconds: int = 900
    upload_limit_bytes: int = 5 * 1024**3
    memory_megabytes: int = MEGABYTES_PER_VCPU
    endpoint_url: str = ""
    region: str = ""
    initialization: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings; what is not set keeps its default.

        Raises:
            ValueError: a number is not a number; the message names the variable.
        """
        values: dict[str, object] = {}
        for field in fields(cls):
            variable = _variable(field.name)
            if text := environ.get(variable):
                kind: type[str | int | float] = type(field.default)  # type: ignore[assignment]
                try:
                    values[field.name] = kind(text)
                except ValueError as error:
                    message = f"{variable}: want {kind.__name__}, got {text!r}"
                    raise ValueError(message) from error
        return cls(**values)  # type: ignore[arg-type]

    def to_env(self) -> dict[str, str]:
        """The variables that a stack sets on a function: only what differs from the defaults."""
        return {
            _variable(field.name): str(getattr(self, field.name))
            for field in fields(self)
            if field.name not in OWN_VARIABLES and getattr(self, field.name) != field.default
        }

    @property
    def threads(self) -> int:
        """Threads for one inference call: the whole vCPUs that Lambda gives this much memory, at least one."""
        return max(1, self.memory_megabytes // MEGABYTES_PER_VCPU)

    @property
    def session_cache_bytes(self) -> int:
        """Memory for loaded models, in bytes."""
        megabytes = self.session_cache_megabytes or self.memory_megabytes * 2 // 5
        return megabytes * 1024 * 1024


def _variable(name: str) -> str:
    return OWN_VARIABLES.get(name, PREFIX + name.upper())
