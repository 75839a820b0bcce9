"""What one package takes: time, memory and money, measured here and priced for AWS."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from threefold import gate
from threefold.model import Model
from threefold.settings import Settings
from threefold_ops.evaluation.costs import CALL_MS, RUNTIME_MS, Tariff, batch_cost, https_cost, stream_cost
from threefold_ops.evaluation.footprint import measure_footprint
from threefold_ops.evaluation.rehearsal import rehearse
from threefold_ops.evaluation.timing import measure
from threefold_ops.evaluation.trial import Trial
from threefold_ops.evaluation.trial_rows import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from threefold.request import Records, Tensors
    from threefold_ops.evaluation.costs import Cost, PriceList
    from threefold_ops.evaluation.footprint import Footprint
    from threefold_ops.evaluation.rehearsal import Work
    from threefold_ops.evaluation.timing import Latency
    from threefold_ops.registry.reference import Found

BATCHES: Final = (1, 10, 100, 1_000, 4_000)
_ROWS: Final = 4_000
# A batch that would take longer a call is left out.
_LONGEST_CALL_SECONDS: Final = 10.0
PATH: Final = (
    "the doors' own predictor: route, encode, run, decide, and each outcome as JSON has it; without reading the "
    "request and writing the answer, which the costs have"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What the costs take for granted.

    Attributes:
        runtime_ms: processor time of Lambda's runtime client an invocation, measured once.
        call_ms: how long a call of DynamoDB, SQS or S3 is waited for; not measured.
        left_out: what is not counted.
    """

    runtime_ms: float = RUNTIME_MS
    call_ms: float = CALL_MS
    left_out: str = (
        "free tiers, cold starts, tries again, CloudWatch's logs and metrics, storage, data transfer to the internet"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a package takes. As JSON it has the fields of its parts, by their own names.

    Attributes:
        rows: the file that the rows are from; they are asked again and again.
        path: what `latencies` are of.
        memory_mb: the memory setting that threads and costs go by.
        threads: for one inference call.
        processors: of this machine.
        load_ms: until the package can be asked.
        gate_ms: the whole gate; a function runs the examples, and of the rest as much as it has time for.
        latencies: by rows a call; without those that would take longer than ten seconds.
        footprint: its memory.
        work: what the costs are made of.
        costs: an estimate: times of this machine, scaled to the share of a processor that the memory setting has.
        prices_as_of: the day of the price list.
        prices_region: its region.
        currency: of the costs.
    """

    label: str
    model: str
    version: str
    digest: str
    rows: str
    path: str = PATH
    memory_mb: int
    architecture: str
    threads: int
    processors: int
    load_ms: float
    gate_ms: float
    latencies: list[Latency]
    footprint: Footprint
    work: Work
    costs: list[Cost]
    assumptions: Assumptions = Assumptions()
    prices_as_of: str
    prices_region: str
    currency: str


def bench(  # noqa: PLR0913 - what is measured, and for which function
    found: Found,
    prices: PriceList,
    *,
    memory: int,
    architecture: str,
    scratch: Path,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> Bench:
    """Measure a package.

    Args:
        found: the package.
        prices: a price list.
        memory: of a function, in MB.
        architecture: x86_64 or arm64; for the price, the times are this machine's.
        scratch: an empty folder.
        seconds: how long each figure is measured.
        progress: told what is measured.

    Raises:
        OperatorError: the package has no rows to ask, or its memory cannot be measured.
        InvalidPackage: no door would serve it.
    """
    package, manifest = found.package, found.package.manifest
    threads = Settings(memory_megabytes=memory).threads
    sampled = sample(package, _ROWS)
    rows = sampled.payloads[0]
    progress("load and gate")
    model = Model(package, threads=threads)
    gated = measure(lambda _: gate.admit(model), batch=1, seconds=0.0, least=1)
    trial = Trial(package, found.serving, scratch / "trial", threads=threads)
    progress("latency")
    latencies = list(_latencies(trial, rows, seconds))
    progress("the doors' work")
    work = rehearse(trial, rows, seconds)
    progress("memory, in a process of its own")
    footprint = measure_footprint(package, threads=threads)
    tariff = Tariff(prices, memory, architecture)
    costs = [https_cost(tariff, work), stream_cost(tariff, work)]
    if work.batch is not None:
        costs.append(batch_cost(tariff, work, work.batch))
    return Bench(
        label=found.label,
        model=manifest.name,
        version=manifest.version,
        digest=package.digest,
        rows=sampled.source,
        memory_mb=memory,
        architecture=architecture,
        threads=threads,
        processors=os.cpu_count() or 1,
        load_ms=model.load_ms,
        gate_ms=gated.p50_us / 1000,
        latencies=latencies,
        footprint=footprint,
        work=work,
        costs=costs,
        prices_as_of=prices.as_of.isoformat(),
        prices_region=prices.region,
        currency=prices.currency,
    )


def _latencies(trial: Trial, rows: Records | Tensors, seconds: float) -> Iterator[Latency]:
    speed = 0.0
    for size in BATCHES:
        if speed and size / speed > _LONGEST_CALL_SECONDS:
            return
        starts = range(0, max(1, len(rows) - size + 1), max(1, size))
        choices = [rows.select(np.arange(start, start + size) % len(rows)) for start in starts]
        latency = measure(_ask(trial, choices), batch=size, seconds=seconds)
        speed = latency.rows_per_second
        yield latency


def _ask(trial: Trial, choices: list[Records | Tensors]) -> Callable[[int], object]:
    return lambda i: trial.predict(choices[i % len(choices)]).predictions()
