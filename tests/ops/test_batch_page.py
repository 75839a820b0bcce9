"""The page about operating the batch door says what a job costs, and what the code's defaults are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infra.context import DeploymentContext
from threefold.names import WORK_DAYS, WORK_TAG
from threefold.tables.reader import MAXIMUM_KEY_BYTES
from threefold.tables.records import MAXIMUM_RECORD_BYTES
from threefold_ops.evaluation.costs import job_cost, read_prices

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "batch.md").read_text(encoding="utf-8")
ROWS: Final = 1_000_000
CHUNKS: Final = 40
DEFAULTS: Final = DeploymentContext()
PACE: Final = DEFAULTS.write_budget // DEFAULTS.chunk_concurrency
# Whether outcomes are stored, and a worker's pace.
CASES: Final = ((True, PACE), (True, 5 * PACE), (False, 5 * PACE))
SERVICES: Final = (("lambda_duration", "lambda_requests"), ("dynamodb",), ("s3",), ("step_functions",))


def table(name: str) -> list[list[str]]:
    """The cells of one of the page's tables."""
    text = PAGE.partition(f"<!-- {name} -->\n")[2].partition("<!-- end -->")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def lines() -> Iterator[list[str]]:
    """What the page should say, from the very function that says what a job cost."""
    for stored, pace in CASES:
        job: dict[str, Any] = {
            "worker_ms": ROWS / pace * 1000,
            "memory_megabytes": DEFAULTS.batch_memory,
            "written_items": ROWS if stored else 0,
            "rows": ROWS,
            "chunks": CHUNKS,
        }
        cost = job_cost(read_prices(), job)
        assert cost is not None
        parts = [sum(cost.services[name] for name in names) for names in SERVICES]
        yield ["yes" if stored else "no", f"{pace:,}", *(f"{figure:.3f} USD" for figure in [*parts, cost.total])]


def test_the_costs_are_those_of_the_price_list() -> None:
    wanted = [*lines()]
    assert table("costs") == wanted, "\n".join(f"| {' | '.join(line)} |" for line in wanted)


def test_the_page_names_the_price_lists_day_and_region() -> None:
    prices = read_prices()
    assert f"At the list prices of {prices.region} as of {prices.as_of:%B %Y}" in PAGE


def test_the_page_says_the_codes_limits() -> None:
    assert f"{PACE:,} rows a second and worker are the default" in PAGE
    assert f"in {CHUNKS} chunks, with {DEFAULTS.batch_memory:,} MB a worker" in PAGE
    assert f"while its working files are there, which is {WORK_DAYS} days" in PAGE
    assert f"tagged `{'='.join(WORK_TAG)}` | {WORK_DAYS} days |" in PAGE
    assert (MAXIMUM_RECORD_BYTES, MAXIMUM_KEY_BYTES) == (1024**2, 64 * 1024)
    assert "| a record | 1 MiB |" in PAGE
    assert "| a record's key | 64 KiB |" in PAGE
