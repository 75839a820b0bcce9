"""What predictions cost on AWS, by service: list prices times what a door does for one unit of work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date  # noqa: TC003 - pydantic reads it at run time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from threefold.outcomes import WRITES_PER_CALL
from threefold.queues import MESSAGES_PER_CALL
from threefold.settings import MEGABYTES_PER_VCPU, Settings
from threefold.tables.objects import PART_BYTES
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from threefold_ops.evaluation.rehearsal import BatchWork, Work

PRICES: Final = Path(__file__).with_name("prices.json")

# Measured here: the processor time that Lambda's runtime client (awslambdaric 4.2) takes for an invocation of a handler
# that does nothing, as benchmarks/function.py runs it; between 500 and 4,500 invocations 0.23 and 0.24 ms each.
# docs/performance.md takes the same off its cold rows.
RUNTIME_MS: Final = 0.23
# Not measured, for it takes an account: how long one call of BatchWriteItem, SendMessageBatch or S3 is waited for.
CALL_MS: Final = 10.0
STREAM_MESSAGES: Final = 100
BATCH_ROWS: Final = 1_000_000
HTTPS_PREDICTIONS: Final = 1_000
# https://docs.aws.amazon.com/whitepapers/latest/best-practices-api-gateway-private-apis-integration/cost-optimization.html
_HTTP_API_BYTES: Final = 512 * 1024
# https://aws.amazon.com/sqs/pricing/: every 64 KB of a payload are billed as a request.
_SQS_BYTES: Final = 64 * 1024
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html
_WRITE_UNIT_BYTES: Final = 1024
# What functions/batch.py and its state machine do, tries again left out. By job: the upload, plan, manifest, and for
# both result files the listing, beginning and end; by chunk: parts of the results, rejects, and the copy of each.
_JOB_PUTS, _CHUNK_PUTS = 8, 4
_JOB_GETS, _CHUNK_GETS = 4, 3
# https://docs.aws.amazon.com/step-functions/latest/dg/concepts-transitions.html: a distributed map pays one transition
# for each child that it starts; the child goes through three states, the job through four.
_JOB_TRANSITIONS, _CHUNK_TRANSITIONS = 4, 4
# Plan and finish; the items of a job, two of them in a transaction, and the claim and the counts of a chunk.
_JOB_INVOCATIONS: Final = 2
_JOB_WRITES, _CHUNK_WRITES = 8, 2
# What a job's item must say for its cost to be known.
_TAKEN: Final = frozenset({"worker_ms", "memory_megabytes", "written_items", "rows", "chunks"})
_CHUNK_BYTES: Final = Settings().chunk_bytes


class Price(BaseModel):
    """One line of a price list.

    Attributes:
        price: for `per` units.
        unit: what is counted.
        source: the page that says so, Amazon's own.
        title: of that page.
        verified: how the figure was checked against it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    price: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    per: Annotated[int, Field(gt=0)]
    unit: str
    source: Annotated[str, Field(pattern="^https://")]
    title: str
    verified: str = ""

    def of(self, count: float) -> float:
        """What so many units cost."""
        return self.price * count / self.per


class Lines(BaseModel):
    """The lines that there must be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lambda_gb_second_x86_64: Price
    lambda_gb_second_arm64: Price
    lambda_requests: Price
    http_api_requests: Price
    sqs_requests: Price
    dynamodb_writes: Price
    s3_puts: Price
    s3_gets: Price
    step_functions_transitions: Price


class PriceList(BaseModel):
    """The prices of one region on one day."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_of: date
    region: str
    currency: str
    note: str = ""
    values: Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an amount of work costs.

    Attributes:
        what: the work.
        billed_ms: what Lambda bills for one invocation that does it; of a job, for one that scores a chunk.
        invocations: how many there are.
        services: by service.
        total: their sum.
    """

    what: str
    billed_ms: int
    invocations: int
    services: dict[str, float]
    total: float


def read_prices(path: Path = PRICES) -> PriceList:
    """Read a price list.

    Raises:
        OperatorError: all that is wrong with it.
    """
    try:
        return PriceList.model_validate_json(path.read_bytes())
    except OSError as error:
        raise OperatorError(f"{path}: want a file that can be read, got: {error.strerror}") from error
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in error.errors()]
        raise OperatorError("\n".join(lines)) from error


@dataclass(frozen=True, slots=True)
class Tariff:
    """Prices for functions of one size.

    Attributes:
        memory: of the functions, in MB.
        architecture: x86_64 or arm64.
    """

    prices: PriceList
    memory: int
    architecture: str

    def billed_ms(self, processor_ms: float, waited_ms: float = 0.0) -> int:
        """What Lambda bills for one invocation: whole milliseconds, rounded up.

        Args:
            processor_ms: as measured on a whole processor; with less memory than that of one vCPU, Lambda gives a share
                of it, in proportion.
            waited_ms: for calls over the network, which a smaller share does not make longer.
        """
        share = min(1.0, self.memory / MEGABYTES_PER_VCPU)
        return max(1, math.ceil(round((processor_ms + RUNTIME_MS) / share + waited_ms, 6)))

    def functions(self, billed_ms: float, invocations: int) -> dict[str, float]:
        """What invocations cost that are billed so many milliseconds altogether."""
        lines = self.prices.values
        second = lines.lambda_gb_second_arm64 if self.architecture == "arm64" else lines.lambda_gb_second_x86_64
        return {
            "lambda_duration": second.of(billed_ms / 1000 * self.memory / 1024),
            "lambda_requests": lines.lambda_requests.of(invocations),
        }


def https_cost(tariff: Tariff, work: Work) -> Cost:
    """What 1,000 predictions cost, each a call of one record."""
    billed, calls = tariff.billed_ms(work.https_ms), HTTPS_PREDICTIONS
    units = calls * _units(max(work.request_bytes, work.response_bytes), _HTTP_API_BYTES)
    services = tariff.functions(billed * calls, calls) | {
        "api_gateway": tariff.prices.values.http_api_requests.of(units)
    }
    return _cost(f"{calls:,} HTTPS predictions, one record a call", billed, calls, services)


def stream_cost(tariff: Tariff, work: Work, *, threads: tuple[int, int] = (4, 8)) -> Cost:
    """What 1,000 messages cost, in batches of 100: sent, received and deleted ten at a time, on both queues.

    Args:
        tariff: the prices.
        work: of 100 messages.
        threads: calls in flight to the table and to the queue, as the door has them.
    """
    messages, lines = 1_000, tariff.prices.values
    calls = (_units(STREAM_MESSAGES, WRITES_PER_CALL), _units(STREAM_MESSAGES, MESSAGES_PER_CALL))
    waited = sum(_units(count, at_once) * CALL_MS for count, at_once in zip(calls, threads, strict=True))
    billed, invocations = tariff.billed_ms(work.stream_ms, waited), messages // STREAM_MESSAGES
    bodies = [size * MESSAGES_PER_CALL for size in (work.message_bytes, work.outcome_bytes)]
    # A deletion carries no body.
    requests = messages // MESSAGES_PER_CALL * sum(2 * _units(size, _SQS_BYTES) + 1 for size in bodies)
    services = tariff.functions(billed * invocations, invocations) | {
        "sqs": lines.sqs_requests.of(requests),
        "dynamodb": lines.dynamodb_writes.of(messages * _units(work.item_bytes, _WRITE_UNIT_BYTES)),
    }
    return _cost(f"{messages:,} stream messages, {STREAM_MESSAGES} a batch", billed, invocations, services)


def batch_cost(tariff: Tariff, work: Work, rows_work: BatchWork, *, threads: int = 4) -> Cost:
    """What a job of a million rows costs.

    Args:
        tariff: the prices.
        work: the item of one outcome.
        rows_work: of one row.
        threads: calls in flight to the table, as the door has them.
    """
    rows, lines = BATCH_ROWS, tariff.prices.values
    chunks = max(_units(rows * rows_work.row_bytes, _CHUNK_BYTES), _units(rows, Settings().chunk_rows))
    each = rows / chunks
    parts = _units(each * rows_work.result_bytes, PART_BYTES)
    # More than one part is an upload of its own, begun and ended.
    puts = _JOB_PUTS + chunks * (_CHUNK_PUTS - 1 + (1 if parts == 1 else parts + 2))
    waited = _units(_units(each, WRITES_PER_CALL), threads) * CALL_MS + (puts / chunks + _CHUNK_GETS) * CALL_MS
    chunk = tariff.billed_ms(each * rows_work.row_us / 1000, waited)
    plan = tariff.billed_ms(
        rows * rows_work.plan_row_us / 1000, _units(rows * rows_work.row_bytes, PART_BYTES) * CALL_MS
    )
    finish = tariff.billed_ms(0.0, (_JOB_PUTS + chunks) * CALL_MS)
    invocations = chunks + _JOB_INVOCATIONS
    writes = rows * _units(work.item_bytes, _WRITE_UNIT_BYTES) + _JOB_WRITES + chunks * _CHUNK_WRITES
    services = tariff.functions(chunk * chunks + plan + finish, invocations) | {
        "dynamodb": lines.dynamodb_writes.of(writes),
        **_steps(lines, puts, chunks),
    }
    return _cost(f"{rows:,} batch rows in {chunks} chunks", chunk, invocations, services)


def job_cost(prices: PriceList, job: Mapping[str, Any]) -> Cost | None:
    """What a job cost: the time that its workers took and the outcomes that they wrote, as its item says.

    An item that is larger than 1 KB is counted as one of 1 KB, and the time of plan and finish is left out.

    Args:
        prices: the prices.
        job: its item.

    Returns:
        None if the item does not say what the job took: it has not ended, or an earlier release ran it.
    """
    if not job.keys() >= _TAKEN:
        return None
    lines, chunks = prices.values, job["chunks"]
    tariff = Tariff(prices, job["memory_megabytes"], job.get("architecture", "x86_64"))
    puts, invocations = _JOB_PUTS + chunks * _CHUNK_PUTS, chunks + _JOB_INVOCATIONS
    services = tariff.functions(job["worker_ms"], invocations) | {
        "dynamodb": lines.dynamodb_writes.of(job["written_items"] + _JOB_WRITES + chunks * _CHUNK_WRITES),
        **_steps(lines, puts, chunks),
    }
    billed = math.ceil(job["worker_ms"] / max(1, chunks))
    return _cost(f"{job['rows']:,} batch rows in {chunks} chunks", billed, invocations, services)


def _steps(lines: Lines, puts: float, chunks: int) -> dict[str, float]:
    """What the files and the steps of a job cost."""
    return {
        "s3": lines.s3_puts.of(puts) + lines.s3_gets.of(_JOB_GETS + chunks * _CHUNK_GETS),
        "step_functions": lines.step_functions_transitions.of(_JOB_TRANSITIONS + chunks * _CHUNK_TRANSITIONS),
    }


def _cost(what: str, billed_ms: int, invocations: int, services: dict[str, float]) -> Cost:
    total = math.fsum(services.values())
    return Cost(what=what, billed_ms=billed_ms, invocations=invocations, services=services, total=total)


def _units(amount: float, size: float) -> int:
    """How many units of a size it takes: at least one."""
    return max(1, math.ceil(amount / size))
